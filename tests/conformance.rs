//! Conformance with Django: replays recorded operations and compares every answer with that of
//! Django's caches.
//!
//! The recordings are in `tests/conformance`, or in the directory that `KEEPWARM_CONFORMANCE`
//! names; `tests/conformance/README.md` describes their format. The tests in `tests/api` cover what
//! the recordings do not.
//!
//! Shows invariant I35.

// A file in `tests` is always compiled with `test`. The attribute tells clippy that the helpers
// are test code too.
#![cfg(test)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use common::for_each_backend;
use keepwarm::{Cache, Error, ErrorKind, ManualClock, Timeout};
use serde_json::{Map, Value, json};

fn recordings(name: &str) -> Vec<Value> {
    let dir = match std::env::var_os("KEEPWARM_CONFORMANCE") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance"),
    };
    let path = dir.join(name);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect()
}

#[test]
fn every_operation_answers_as_in_django() {
    replay_operations(answer);
}

#[cfg(feature = "async")]
#[test]
fn every_async_operation_answers_as_in_django() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    replay_operations(|cache, clock, step| {
        runtime.block_on(answer_async(&cache.clone().into_async(), clock, step))
    });
}

fn replay_operations(answer: impl Fn(&Cache, &ManualClock, &Value) -> Value) {
    let cases = recordings("operations.jsonl");
    for_each_backend(|make| {
        let mut steps = 0;
        let mut differences = Vec::new();
        for case in &cases {
            let clock = ManualClock::new();
            let config = &case["config"];
            let cache = make
                .builder()
                .clock(clock.clone())
                .default_timeout(timeout(&config["default_timeout"]))
                .key_prefix(text(&config["key_prefix"]))
                .version(integer(&config["version"]))
                .open()
                .unwrap();
            for (number, step) in array(&case["steps"]).iter().enumerate() {
                steps += 1;
                let answer = answer(&cache, &clock, step);
                if !agrees(&answer, &step["out"]) {
                    differences
                        .push(format!("{} step {number}: {step} gave {answer}", case["name"]));
                    // Later steps of this case would only repeat the difference.
                    break;
                }
            }
            drop(cache);
            make.clean();
        }
        println!("{}: {} cases, {steps} steps", make.name, cases.len());
        assert!(
            differences.is_empty(),
            "{} differences:\n{}",
            differences.len(),
            differences.join("\n")
        );
        assert!(steps > 0, "no steps were recorded");
    });
}

#[test]
fn culling_keeps_as_many_entries_as_in_django() {
    replay_culling(|cache, key, value| cache.set(key, &value, Timeout::Default).unwrap());
}

#[cfg(feature = "async")]
#[test]
fn async_culling_keeps_as_many_entries_as_in_django() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    replay_culling(|cache, key, value| {
        let cache = cache.clone().into_async();
        runtime.block_on(cache.set(key, &value, Timeout::Default)).unwrap();
    });
}

fn replay_culling(set: impl Fn(&Cache, &str, u64)) {
    let cases = recordings("culling.jsonl");
    for_each_backend(|make| {
        let mut sets = 0;
        for case in &cases {
            let cache = make
                .builder()
                .default_timeout(Timeout::Never)
                .max_entries(count(&case["max_entries"]))
                .cull_frequency(count(&case["cull_frequency"]))
                .open()
                .unwrap();
            for n in 0..count(&case["sets"]) {
                set(&cache, &format!("key {n}"), n);
                assert!(cache.len() <= count(&case["max_entries"]), "{case}");
                sets += 1;
            }
            assert_eq!(cache.len(), count(&case["left"]), "{case}");
            assert_eq!(cache.keys().count() as u64, count(&case["left"]), "{case}");
            drop(cache);
            make.clean();
        }
        println!("{}: {} cases, {sets} sets", make.name, cases.len());
        assert!(sets > 0, "no sets were recorded");
    });
}

/// Whether `answer` equals the recorded one. The kind of a number counts: 1 is not 1.0.
fn agrees(answer: &Value, recorded: &Value) -> bool {
    *recorded == json!({"any": true}) || answer == recorded
}

/// Defines a function that runs one step on a cache and returns its answer in the format of the
/// recordings. One body serves both facades, which differ only by `await`.
macro_rules! answering {
    ($(#[$attribute:meta])* $name:ident, $Cache:ty, [$($async:tt)?] [$($wait:tt)*]) => {
        $(#[$attribute])*
        $($async)? fn $name(cache: &$Cache, clock: &ManualClock, step: &Value) -> Value {
            let cache = &match step.get("version") {
                Some(version) => cache.with_version(integer(version)),
                None => cache.clone(),
            };
            let key = || text(&step["key"]);
            let delta = || integer(&step["delta"]);
            let timeout = || timeout(&step["timeout"]);
            let value = &step["value"];
            match text(&step["op"]) {
                "set" => {
                    cache.set(key(), value, timeout())$($wait)*.unwrap();
                    Value::Null
                }
                "get" => match cache.get::<Value>(key())$($wait)*.unwrap() {
                    Some(value) => json!({ "hit": value }),
                    None => json!({ "miss": true }),
                },
                "add" => cache.add(key(), value, timeout())$($wait)*.unwrap().into(),
                "get_or_set" => {
                    let compute = $($async)? || value.clone();
                    cache.get_or_set(key(), timeout(), compute)$($wait)*.unwrap()
                }
                "touch" => cache.touch(key(), timeout())$($wait)*.unwrap().into(),
                "delete" => cache.delete(key())$($wait)*.unwrap().into(),
                "has_key" => cache.contains_key(key())$($wait)*.unwrap().into(),
                "incr" => number_or_error(cache.incr(key(), delta())$($wait)*),
                "decr" => number_or_error(cache.decr(key(), delta())$($wait)*),
                "incr_version" => number_or_error(cache.incr_version(key(), delta())$($wait)*),
                "decr_version" => number_or_error(cache.decr_version(key(), delta())$($wait)*),
                "get_many" => {
                    let keys: Vec<&str> = array(&step["keys"]).iter().map(text).collect();
                    let values = cache.get_many::<Value, _>(&keys)$($wait)*;
                    let pairs = keys.iter().zip(values);
                    let hits = pairs
                        .filter_map(|(key, value)| Some((key.to_string(), value.unwrap()?)));
                    Value::Object(hits.collect::<Map<_, _>>())
                }
                "set_many" => {
                    let items = step["values"].as_object().expect("values is an object");
                    let failed = cache.set_many(items, timeout())$($wait)*;
                    failed.into_iter().map(|(key, _)| key.clone()).collect()
                }
                "delete_many" => {
                    let keys: Vec<&str> = array(&step["keys"]).iter().map(text).collect();
                    let deleted = cache.delete_many(&keys)$($wait)*;
                    deleted.into_iter().for_each(|deleted| _ = deleted.unwrap());
                    Value::Null
                }
                "clear" => {
                    cache.clear()$($wait)*.unwrap();
                    Value::Null
                }
                "advance" => {
                    clock.advance(seconds(&step["seconds"]));
                    Value::Null
                }
                other => panic!("there is no operation {other}"),
            }
        }
    };
}

answering!(answer, Cache, [] []);
answering!(
    #[cfg(feature = "async")]
    answer_async, keepwarm::AsyncCache, [async] [.await]
);

fn number_or_error(result: Result<i64, Error>) -> Value {
    match result {
        Ok(number) => number.into(),
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotAnInteger),
                "{error}"
            );
            json!({ "error": true })
        }
    }
}

fn timeout(recorded: &Value) -> Timeout {
    match recorded {
        Value::Null => Timeout::Never,
        Value::String(word) if word == "default" => Timeout::Default,
        number => seconds(number).into(),
    }
}

/// A number of seconds; a negative one counts as 0, which means expired.
fn seconds(number: &Value) -> Duration {
    Duration::from_secs_f64(number.as_f64().expect("a number of seconds").max(0.0))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or_else(|| panic!("{value} is no integer"))
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no array"))
}
