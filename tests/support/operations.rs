//! Decodes any bytes as operations on a cache. So a fuzzer varies the operations, keys and numbers,
//! and every input is valid.

use std::path::Path;
use std::sync::Once;

use arbitrary::{Arbitrary, Result, Unstructured};

use keepwarm::Eviction;

use crate::model::{Bounds, Key, Life, Op, WIDE, run};

/// The most operations of one input.
const MOST: usize = 200;

/// Applies the operations in `bytes` to a cache in a directory and to a model.
///
/// # Panics
/// If the cache differs from the model.
pub(crate) fn operations(bytes: &[u8]) {
    static IN_MEMORY: Once = Once::new();
    // In memory if possible: most of the time goes to files and syncs.
    IN_MEMORY.call_once(|| {
        let memory = Path::new("/dev/shm");
        if tempfile::tempdir_in(memory).is_ok() {
            let _ = tempfile::env::override_temp_dir(memory);
        }
    });
    let mut input = Unstructured::new(bytes);
    let Ok(first) = bounds(&mut input) else { return };
    let mut ops = Vec::new();
    while let Ok(op) = op(&mut input)
        && ops.len() < MOST
        && !input.is_empty()
    {
        ops.push(op);
    }
    if let Err(why) = run(|dir| keepwarm::Builder::new(dir), &ops, first) {
        panic!("{why}\nof {ops:#?}\nfrom {first:?}");
    }
}

/// Half of the bounds are so wide that they are never reached.
fn bounds(input: &mut Unstructured<'_>) -> Result<Bounds> {
    if bool::arbitrary(input)? {
        return Ok(WIDE);
    }
    let max_entries = input.int_in_range(1..=50)?;
    Ok(Bounds {
        max_entries,
        max_bytes: 1 << 20,
        cull_frequency: input.int_in_range(0..=4)?,
        // Not read from the input, so that the inputs in the corpora keep their meaning.
        eviction: [Eviction::Lru, Eviction::Adaptive][max_entries as usize % 2],
        hot_bytes: if bool::arbitrary(input)? { 200_000 } else { 0 },
    })
}

fn key(input: &mut Unstructured<'_>) -> Result<Key> {
    let byte = u8::arbitrary(input)?;
    Ok((byte % 24, if byte >= 240 { i64::from(byte % 2) + 2 } else { 1 }))
}

fn names(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let count = input.int_in_range(0..=5)?;
    (0..count).map(|_| input.int_in_range(0..=23)).collect()
}

fn life(input: &mut Unstructured<'_>) -> Result<Life> {
    Ok(match u8::arbitrary(input)? % 8 {
        0..3 => None,
        3 => Some(0),
        _ => Some(input.int_in_range(1..=60_000)?),
    })
}

/// Most values are small, some take pages.
fn len(input: &mut Unstructured<'_>) -> Result<usize> {
    match u8::arbitrary(input)? {
        kind @ 0..200 => Ok(usize::from(kind)),
        200..245 => input.int_in_range(200..=9000),
        _ => input.int_in_range(9000..=120_000),
    }
}

fn op(input: &mut Unstructured<'_>) -> Result<Op> {
    let kind = u8::arbitrary(input)? % 40;
    Ok(match kind {
        0..5 => Op::Get(key(input)?),
        5 => Op::GetMany(names(input)?),
        6..12 => Op::Set(key(input)?, len(input)?, life(input)?),
        12 => Op::SetMany(names(input)?, life(input)?),
        13 => Op::SetCount(key(input)?, i64::arbitrary(input)?, life(input)?),
        14 => Op::Add(key(input)?, len(input)?, life(input)?),
        15 => Op::Touch(key(input)?, life(input)?),
        16 => Op::Persist(key(input)?),
        17 => Op::ExpireAt(key(input)?, input.int_in_range(-5000..=30_000)?),
        18 => Op::Incr(key(input)?, i64::arbitrary(input)?),
        19 => {
            let (delta, initial) = (input.int_in_range(-9..=9)?, input.int_in_range(-9..=9)?);
            Op::IncrOrInit(key(input)?, delta, initial, life(input)?)
        }
        20..22 => Op::Delete(key(input)?),
        22 => Op::DeleteMany(names(input)?),
        23 => Op::GetOrSet(key(input)?, len(input)?, life(input)?),
        24 => Op::IncrVersion(key(input)?, input.int_in_range(-2..=2)?),
        25 => Op::SwapCurrent(key(input)?, len(input)?, life(input)?),
        26 => Op::SwapRemembered(key(input)?, len(input)?, life(input)?),
        27 => Op::SwapAbsent(key(input)?, len(input)?, life(input)?),
        28 => Op::Hold(key(input)?),
        29 => Op::Scan,
        30 => Op::Clear,
        31 => Op::Maintain,
        32 => Op::Flush,
        33 => Op::Clock(input.int_in_range(-20_000..=40_000)?),
        34 | 35 => Op::ClockToEnd(key(input)?, input.int_in_range(-1..=1)?),
        36 => Op::Close,
        37 => Op::Reopen(bounds(input)?),
        _ => Op::Kill(bounds(input)?),
    })
}
