//! Damage to the index of an open directory: each operation ends, in a result or an error, and no
//! value is read that was not stored under its key.
//!
//! `KEEPWARM_DAMAGE=all` flips each bit of each word of the header; otherwise the words that loops
//! depend on are flipped bit by bit, and one bit in eleven of the others.
#![cfg(test)]

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How long the operations after one change may take, on a busy machine. Waits for another process
/// that seems to hold something are part of it.
const DEADLINE: Duration = Duration::from_secs(240);

/// Generation, drops, count, clear lock and record, the list of overflow buckets, the next segment.
const IN_LOOPS: [usize; 8] = [8, 13, 24, 32, 33, 40, 41, 48];

// Shows invariant I5.
#[test]
fn each_operation_ends_after_a_flipped_bit_in_the_live_header() {
    let all = std::env::var("KEEPWARM_DAMAGE").is_ok_and(|what| what == "all");
    let (tell, told) = channel();
    let flips = std::thread::spawn(move || {
        keepwarm::fuzzing::flip_live_header(|word, bit| {
            let wanted =
                all || IN_LOOPS.contains(&word) || (word * 64 + bit as usize).is_multiple_of(11);
            if wanted {
                tell.send((word, bit)).unwrap();
            }
            wanted
        });
    });
    let (mut last, mut flipped) = (None, 0);
    loop {
        match told.recv_timeout(DEADLINE) {
            Ok(next) => (last, flipped) = (Some(next), flipped + 1),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => panic!("no end after word and bit {last:?}"),
        }
    }
    assert!(flips.join().is_ok(), "a panic after word and bit {last:?}");
    assert!(flipped >= 700, "{flipped} bits were flipped");
    println!("{flipped} bits of the header flipped");
}
