//! Replays what Django's caches answered, on a cache on the backend.
//!
//! `operations.txt` has cases, each a line `case`, default timeout, prefix, version, followed by
//! its steps: the operation, its version (`-`: the cache's), key, arguments, and the recorded
//! answer, separated by tabs. A timeout is in milliseconds, `d` for the default, `n` for never. A
//! value is an integer, or a text that begins with `'`.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error as _, Visitor};
use serde::ser::{Serialize, Serializer};

use super::bench::Bench;
use super::verdict::Verdict;
use crate::cache::Cache;
use crate::error::{ErrorKind, Result as CacheResult};
use crate::time::ManualClock;
use crate::timeout::Timeout;

const OPERATIONS: &str = include_str!("operations.txt");

/// A recorded value.
#[derive(Debug, Clone, PartialEq)]
enum RecordedValue {
    Integer(i64),
    Text(String),
}

impl RecordedValue {
    fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix('\'') {
            Some(text) => Ok(Self::Text(text.to_owned())),
            None => integer(text).map(Self::Integer),
        }
    }

    fn text(self) -> String {
        match self {
            Self::Integer(number) => number.to_string(),
            Self::Text(text) => format!("'{text}"),
        }
    }
}

impl Serialize for RecordedValue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Integer(number) => serializer.serialize_i64(*number),
            Self::Text(text) => serializer.serialize_str(text),
        }
    }
}

impl<'de> Deserialize<'de> for RecordedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = RecordedValue;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an integer or a text")
            }

            fn visit_i64<E>(self, number: i64) -> Result<RecordedValue, E> {
                Ok(RecordedValue::Integer(number))
            }

            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<RecordedValue, E> {
                i64::try_from(number).map(RecordedValue::Integer).map_err(E::custom)
            }

            fn visit_str<E>(self, text: &str) -> Result<RecordedValue, E> {
                Ok(RecordedValue::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Either).map_err(D::Error::custom)
    }
}

pub(super) fn recorded_operations(bench: &Bench) -> Result<Verdict, String> {
    let mut steps = 0;
    for case in OPERATIONS.split("case\t").filter(|case| !case.is_empty()) {
        // Only a clock that is ours can be moved as it was when this was recorded.
        if bench.real_time.is_some() && case.contains("\nadvance\t") {
            continue;
        }
        steps += replay(bench, case)?;
    }
    match steps {
        0 => Ok(Verdict::Unchecked("the clock is the server's")),
        _ => Ok(Verdict::Kept),
    }
}

fn replay(bench: &Bench, case: &str) -> Result<usize, String> {
    let mut lines = case.lines();
    let head: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let [default, prefix, version] = head[..] else { return Err(format!("no case: {head:?}")) };
    let (default, version) = (timeout(default)?, integer(version)?);
    let (cache, clock) = bench
        .cache(|builder| builder.default_timeout(default).key_prefix(prefix).version(version))?;
    let mut before = Vec::new();
    for line in lines {
        let (said, recorded) = answer(&cache, &clock, line)?;
        if recorded != "any" && said != recorded {
            let story: Vec<&str> = before.into_iter().rev().take(6).rev().collect();
            return Err(format!("{line:?} gave {said}, after {story:?}"));
        }
        before.push(line);
    }
    Ok(before.len())
}

/// What the cache says to a step, and what was recorded.
fn answer<'a>(
    cache: &Cache,
    clock: &ManualClock,
    line: &'a str,
) -> Result<(String, &'a str), String> {
    let parts: Vec<&str> = line.split('\t').collect();
    let said = |result: CacheResult<String>| result.map_err(|e| format!("{line:?} failed: {e}"));
    let of = |version: &str| -> Result<Cache, String> {
        Ok(if version == "-" { cache.clone() } else { cache.with_version(integer(version)?) })
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    Ok(match parts[..] {
        ["advance", millis] => {
            let millis = u64::try_from(integer(millis)?).unwrap_or(0);
            clock.advance(Duration::from_millis(millis));
            (String::new(), "any")
        }
        ["clear"] => (said(cache.clear().map(|()| String::new()))?, "any"),
        ["set", version, key, value, life, recorded] => {
            let set = of(version)?.set(key, &RecordedValue::parse(value)?, timeout(life)?);
            (said(set.map(|()| "-".to_owned()))?, recorded)
        }
        ["add", version, key, value, life, recorded] => {
            let added = of(version)?.add(key, &RecordedValue::parse(value)?, timeout(life)?);
            (said(added.map(yes))?, recorded)
        }
        ["get_or_set", version, key, value, life, recorded] => {
            let value = RecordedValue::parse(value)?;
            let got = of(version)?.get_or_set(key, timeout(life)?, || value);
            (said(got.map(RecordedValue::text))?, recorded)
        }
        ["get", version, key, recorded] => {
            let got = of(version)?.get::<RecordedValue>(key);
            (said(got.map(|value| value.map_or("miss".to_owned(), RecordedValue::text)))?, recorded)
        }
        ["touch", version, key, life, recorded] => {
            (said(of(version)?.touch(key, timeout(life)?).map(yes))?, recorded)
        }
        ["delete", version, key, recorded] => (said(of(version)?.delete(key).map(yes))?, recorded),
        ["has_key", version, key, recorded] => {
            (said(of(version)?.contains_key(key).map(yes))?, recorded)
        }
        [operation, version, key, delta, recorded] => {
            let (cache, delta) = (of(version)?, integer(delta)?);
            let result = match operation {
                "incr" => cache.incr(key, delta),
                "decr" => cache.decr(key, delta),
                "incr_version" => cache.incr_version(key, delta),
                "decr_version" => cache.decr_version(key, delta),
                _ => return Err(format!("no step: {line:?}")),
            };
            let number = match result {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotAnInteger) => {
                    Ok("error".to_owned())
                }
                other => other.map(|number| number.to_string()),
            };
            (said(number)?, recorded)
        }
        _ => return Err(format!("no step: {line:?}")),
    })
}

fn timeout(text: &str) -> Result<Timeout, String> {
    Ok(match text {
        "d" => Timeout::Default,
        "n" => Timeout::Never,
        millis => Duration::from_millis(u64::try_from(integer(millis)?).unwrap_or(0)).into(),
    })
}

fn integer(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| format!("{text:?} is no integer"))
}
