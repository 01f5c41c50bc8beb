//! Tests of the checker: histories that it must accept, and anomalies that it must find.

use super::*;
use crate::harness::Verdict;
use crate::rng::{self, Rng};

fn event(begin: u64, end: u64, saw: Saw, did: Did) -> Event {
    Event { begin, end, acknowledged: true, saw, did, lifetime: None, by: Name(begin << 20 | end) }
}

fn write(begin: u64, end: u64, value: u64) -> Event {
    event(begin, end, Saw::Unknown, Did::Wrote(value))
}

fn read(begin: u64, end: u64, value: u64) -> Event {
    event(begin, end, Saw::Value(value), Did::Nothing)
}

fn miss(begin: u64, end: u64) -> Event {
    event(begin, end, Saw::Absent, Did::Nothing)
}

fn delete(begin: u64, end: u64) -> Event {
    event(begin, end, Saw::Present, Did::Removed)
}

fn clear(begin: u64, end: u64) -> Event {
    event(begin, end, Saw::Unknown, Did::Removed)
}

fn touch(begin: u64, end: u64) -> Event {
    event(begin, end, Saw::Present, Did::Nothing)
}

/// An increment from one value to the next.
fn count(begin: u64, end: u64, from: u64) -> Event {
    event(begin, end, Saw::Value(from), Did::Wrote(from + 1))
}

/// An operation that was never acknowledged.
fn begun(begin: u64, did: Did) -> Event {
    Event { acknowledged: false, ..event(begin, u64::MAX, Saw::Unknown, did) }
}

fn living(event: Event, millis: u64) -> Event {
    Event { lifetime: Some(millis * 1_000_000), ..event }
}

/// Milliseconds.
const MS: u64 = 1_000_000;

fn found(events: &[Event], evicts: bool) -> Option<Anomaly> {
    check(events, evicts).err().map(|violation| violation.anomaly)
}

pub(crate) fn finds_each_anomaly() -> Verdict {
    use Anomaly::*;
    let cases: &[(&str, Option<Anomaly>, Vec<Event>)] = &[
        ("not written yet, and absent", None, vec![miss(1, 2)]),
        ("read after its write", None, vec![write(1, 2, 1), read(3, 4, 1)]),
        ("absent or not during the write", None, vec![write(1, 9, 1), miss(2, 3), read(4, 5, 1)]),
        ("never written", Some(FromNowhere), vec![read(3, 4, 1)]),
        ("not written yet", Some(FromNowhere), vec![read(1, 2, 1), write(3, 4, 1)]),
        ("superseded", Some(Stale), vec![write(1, 2, 1), write(3, 4, 2), read(5, 6, 1)]),
        ("superseded during the read", None, vec![write(1, 2, 1), write(3, 6, 2), read(5, 7, 1)]),
        (
            "the old value after the new one",
            Some(Stale),
            vec![write(1, 2, 1), write(3, 20, 2), read(5, 6, 2), read(7, 8, 1)],
        ),
        (
            "two concurrent writes, read alternately",
            Some(Stale),
            vec![write(1, 20, 1), write(1, 20, 2), read(3, 4, 1), read(5, 6, 2), read(7, 8, 1)],
        ),
        ("deleted", Some(Stale), vec![write(1, 2, 1), delete(3, 4), read(5, 6, 1)]),
        ("cleared", Some(Stale), vec![write(1, 2, 1), clear(3, 4), read(5, 6, 1)]),
        (
            "a miss between two hits",
            Some(Stale),
            vec![write(1, 2, 1), read(3, 4, 1), miss(5, 6), read(7, 8, 1)],
        ),
        ("lost", Some(Lost), vec![write(1, 2, 1), miss(3, 4)]),
        ("absent after its delete", None, vec![write(1, 2, 1), delete(3, 4), miss(5, 6)]),
        ("absent during its delete", None, vec![write(1, 2, 1), delete(3, 9), miss(5, 6)]),
        (
            "absent before its clear",
            Some(Lost),
            vec![write(1, 2, 1), miss(3, 4), clear(5, 6), write(7, 8, 2)],
        ),
        (
            "deleted before the last write",
            Some(Lost),
            vec![write(1, 2, 1), delete(3, 4), write(5, 6, 2), miss(7, 8)],
        ),
        (
            "absent after a touch",
            Some(Lost),
            vec![write(1, 9, 1), delete(2, 3), touch(5, 6), miss(7, 8)],
        ),
        (
            "touched after its delete",
            Some(Resurrected),
            vec![write(1, 2, 1), delete(3, 4), touch(5, 6)],
        ),
        ("touched before any write", Some(FromNowhere), vec![touch(1, 2)]),
        (
            "expired too early",
            Some(Lost),
            vec![living(write(1, 2, 1), 100), miss(50 * MS, 60 * MS)],
        ),
        ("expired", None, vec![living(write(1, 2, 1), 100), miss(100 * MS, 110 * MS)]),
        (
            "touched, then expired",
            None,
            vec![living(write(1, 2, 1), 100), touch(5, 6), miss(100 * MS, 110 * MS)],
        ),
        (
            "expired too late",
            Some(Expired),
            vec![living(write(1, 2, 1), 100), read(150 * MS, 151 * MS, 1)],
        ),
        (
            "the next value does not expire",
            Some(Lost),
            vec![living(write(1, 2, 1), 100), write(3, 4, 2), miss(200 * MS, 201 * MS)],
        ),
        ("counted", None, vec![write(1, 2, 1), count(3, 9, 1), count(4, 8, 2), read(10, 11, 3)]),
        (
            "one count lost",
            Some(WrittenTwice),
            vec![write(1, 2, 1), count(3, 9, 1), count(4, 8, 1)],
        ),
        (
            "counted backwards",
            Some(FromNowhere),
            vec![write(1, 2, 1), count(3, 4, 2), count(5, 6, 1)],
        ),
        (
            "added twice",
            Some(Stale),
            vec![
                event(1, 2, Saw::Absent, Did::Wrote(1)),
                event(3, 4, Saw::Absent, Did::Wrote(2)),
                read(5, 6, 1),
            ],
        ),
        (
            "added where a value was",
            Some(Lost),
            vec![write(1, 2, 1), event(3, 4, Saw::Absent, Did::Wrote(2)), read(5, 6, 2)],
        ),
        (
            "killed before it took effect",
            None,
            vec![write(1, 2, 1), begun(3, Did::Wrote(2)), read(5, 6, 1)],
        ),
        (
            "killed after it took effect",
            None,
            vec![write(1, 2, 1), begun(3, Did::Wrote(2)), read(5, 6, 1), read(7, 8, 2)],
        ),
        (
            "in effect, then not",
            Some(Stale),
            vec![write(1, 2, 1), begun(3, Did::Wrote(2)), read(5, 6, 2), read(7, 8, 1)],
        ),
        ("counted and killed", None, vec![write(1, 2, 1), begun(3, Did::Counted), count(5, 6, 2)]),
        (
            "two counts of one killed increment",
            Some(FromNowhere),
            vec![write(1, 2, 1), begun(3, Did::Counted), read(5, 6, 2), read(7, 8, 3)],
        ),
        (
            "a delete that was killed",
            None,
            vec![write(1, 2, 1), begun(3, Did::Removed), miss(5, 6)],
        ),
    ];
    for (name, anomaly, events) in cases {
        assert_eq!(found(events, false), *anomaly, "{name}");
        // With evictions, a miss needs no cause. All other anomalies remain.
        assert_eq!(
            found(events, true),
            anomaly.filter(|anomaly| *anomaly != Lost),
            "{name}, with evictions"
        );
    }
    Ok(())
}

/// A random correct history: each operation takes effect at one moment between its begin and end.
fn possible(rng: &mut Rng, evicts: bool) -> Vec<Event> {
    let (mut there, mut made, mut events) = (None, 0, Vec::new());
    for step in 1..=200 {
        let (begin, end) =
            (1000 * step - rng.below(8000).min(1000 * step - 1), 1000 * step + rng.below(8000));
        made += 1;
        let saw = there.map_or(Saw::Absent, Saw::Value);
        let present = if there.is_some() { Saw::Present } else { Saw::Absent };
        let (saw, did) = match rng.below(100) {
            0..40 => (saw, Did::Nothing),
            40..60 => (Saw::Unknown, Did::Wrote(made)),
            60..70 => (present, if there.is_some() { Did::Removed } else { Did::Nothing }),
            70..78 => (present, if there.is_none() { Did::Wrote(made) } else { Did::Nothing }),
            78..84 => (saw, Did::Wrote(made)),
            84..90 => (present, Did::Nothing),
            90..92 => (Saw::Unknown, Did::Removed),
            _ if evicts => {
                there = None;
                continue;
            }
            _ => continue,
        };
        match did {
            Did::Wrote(value) => there = Some(value),
            Did::Removed => there = None,
            _ => {}
        }
        // Some are never acknowledged, whether they took effect or not.
        let acknowledged = rng.below(20) > 0;
        match (acknowledged, did) {
            (false, Did::Nothing) => {}
            (false, _) => events.push(Event {
                acknowledged,
                end: u64::MAX,
                saw: Saw::Unknown,
                ..event(begin, end, saw, did)
            }),
            (true, _) => events.push(event(begin, end, saw, did)),
        }
    }
    events
}

/// The checker accepts every correct history, and refuses it once one read gets a superseded value.
pub(crate) fn accepts_possible_histories() -> Verdict {
    let mut rng = Rng::new(rng::seed());
    let mut planted = 0;
    for round in 0..400 {
        let evicts = round % 2 == 0;
        let mut events = possible(&mut rng, evicts);
        if let Err(violation) = check(&events, evicts) {
            panic!("round {round}: {violation:?}");
        }
        // One read now returns an old value, which another write superseded before the read began.
        let writes: Vec<Event> = events
            .iter()
            .filter(|e| e.acknowledged && matches!(e.did, Did::Wrote(_)))
            .copied()
            .collect();
        let reads = events
            .iter()
            .enumerate()
            .filter(|(_, e)| matches!(e.saw, Saw::Value(_)) && e.did == Did::Nothing);
        let mut plant = reads.filter_map(|(at, read)| {
            let last = writes.iter().rfind(|write| write.end < read.begin)?;
            let Did::Wrote(old) = writes.iter().rfind(|write| write.end < last.begin)?.did else {
                return None;
            };
            Some((at, old))
        });
        if let Some((at, old)) = plant.next_back() {
            events[at].saw = Saw::Value(old);
            planted += 1;
            let found = found(&events, evicts);
            assert_eq!(found, Some(Anomaly::Stale), "round {round}: {:?} is stale", events[at]);
        }
    }
    assert!(planted > 200, "{planted} stale reads planted");
    println!("400 correct histories accepted; {planted} stale reads planted, all found");
    Ok(())
}
