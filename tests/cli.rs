//! The command line tool, run as a program: its output, its exit codes, and what it must not
//! change.

// A file in `tests` is always compiled with `test`. The attribute tells clippy that the helpers
// are test code too.
#![cfg(test)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use keepwarm::{Cache, Timeout, Ttl};
use serde_json::{Value, json};

fn keepwarm(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keepwarm"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Runs a command on `dir`: exit code, standard output, standard error.
fn run(command: &str, dir: &Path, rest: &[&str]) -> (i32, String, String) {
    let args: Vec<&str> =
        [command, dir.to_str().unwrap()].into_iter().chain(rest.iter().copied()).collect();
    decoded(&keepwarm(&args).output().unwrap())
}

fn decoded(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The standard output of a command, which must succeed and write nothing to standard error.
fn stdout(command: &str, dir: &Path, rest: &[&str]) -> String {
    let (code, out, err) = run(command, dir, rest);
    assert_eq!((code, err.as_str()), (0, ""), "{command} {rest:?}");
    out
}

/// A directory that a program has filled and closed.
fn filled(fill: impl FnOnce(&Cache)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    fill(&cache);
    dir
}

#[test]
fn set_get_ls_stats_and_check_agree() {
    let parent = tempfile::tempdir().unwrap();
    let dir = &parent.path().join("cache");
    assert_eq!(stdout("set", dir, &["greeting", "hello \"you\""]), "");
    assert_eq!(stdout("get", dir, &["greeting"]), "\"hello \\\"you\\\"\"\n");
    assert_eq!(stdout("get", dir, &["greeting", "--raw"]), "hello \"you\"");
    assert_eq!(stdout("ls", dir, &[]), "greeting\n");
    assert_eq!(stdout("stats", dir, &[]).lines().next(), Some("entries    1"));
    assert!(stdout("check", dir, &[]).ends_with("\nsound\n"));
    assert_eq!(run("get", dir, &["missing"]), (1, String::new(), String::new()));
}

#[test]
fn a_program_reads_values_that_the_tool_stored() {
    let dir = tempfile::tempdir().unwrap();
    stdout("set", dir.path(), &["text", "5"]);
    stdout("set", dir.path(), &["number", "5", "--json", "--timeout", "never"]);
    stdout("set", dir.path(), &["map", r#"{"a": [1, 2.5, null]}"#, "--json"]);
    stdout("set", dir.path(), &["bytes", "raw", "--bytes", "--timeout", "90s"]);
    stdout("set", dir.path(), &["gone", "x", "--timeout", "0s"]);
    let cache = Cache::open(dir.path()).unwrap();
    assert_eq!(cache.get::<String>("text").unwrap().as_deref(), Some("5"));
    assert!(cache.ttl("text").unwrap().unwrap().remaining().unwrap() <= Duration::from_secs(300));
    assert_eq!(cache.incr("number", 1).unwrap(), 6);
    assert_eq!(cache.ttl("number").unwrap(), Some(Ttl::Never));
    assert_eq!(cache.get::<Value>("map").unwrap(), Some(json!({ "a": [1, 2.5, null] })));
    assert_eq!(cache.get_bytes("bytes").unwrap().as_deref(), Some(&b"raw"[..]));
    let left = cache.ttl("bytes").unwrap().unwrap().remaining().unwrap();
    assert!(Duration::from_secs(60) < left && left <= Duration::from_secs(90), "{left:?}");
    assert!(!cache.contains_key("gone").unwrap());
}

#[test]
fn the_tool_shows_every_value_that_a_program_stored() {
    #[derive(serde::Serialize)]
    enum Shape {
        Point,
        Circle { radius: f32 },
    }
    let dir = filled(|cache| {
        cache.set("none", &None::<u8>, Timeout::Never).unwrap();
        cache
            .set("shapes", &[Shape::Point, Shape::Circle { radius: 0.1 }], Timeout::Never)
            .unwrap();
        cache.set("by number", &BTreeMap::from([(1, true)]), Timeout::Never).unwrap();
        cache.set("least", &i64::MIN, Timeout::Never).unwrap();
        cache.set("most", &u64::MAX, Timeout::Never).unwrap();
        cache.set("array", &vec![200u8; 3], Timeout::Never).unwrap();
        cache.set_bytes("raw", b"\x00\xff\n", Timeout::Never).unwrap();
        cache.set("ünï\n\u{1b}[31m", "", Timeout::Never).unwrap();
    });
    let get = |key| stdout("get", dir.path(), &[key]);
    assert_eq!(get("none"), "null\n");
    assert_eq!(get("shapes"), "[\"Point\",{\"Circle\":{\"radius\":0.1}}]\n");
    assert_eq!(get("by number"), "{\"1\":true}\n");
    assert_eq!(get("least"), "-9223372036854775808\n");
    assert_eq!(get("most"), "18446744073709551615\n");
    assert_eq!(get("array"), "{\"$bytes\":\"c8c8c8\"}\n");
    assert_eq!(get("raw"), "{\"$bytes\":\"00ff0a\"}\n");
    let raw = keepwarm(&["get", dir.path().to_str().unwrap(), "raw", "--raw"]).output().unwrap();
    assert_eq!(raw.stdout, b"\x00\xff\n");

    let lines = stdout("ls", dir.path(), &[]);
    assert_eq!(lines.lines().count(), 8);
    assert!(lines.contains("ünï\\n\\u{1b}[31m\n"), "control characters are escaped: {lines:?}");
    assert!(
        stdout("ls", dir.path(), &["--values"])
            .lines()
            .any(|line| line == "least\t-9223372036854775808")
    );
    assert_eq!(stdout("ls", dir.path(), &["--limit", "3"]).lines().count(), 3);
    let objects = stdout("ls", dir.path(), &["--json", "--values"]);
    let objects: Vec<Value> =
        objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(objects.contains(&json!({ "key": "ünï\n\u{1b}[31m", "value": "" })));
    assert!(stdout("ls", dir.path(), &["--json"]).contains("{\"key\":\"none\"}\n"));
}

#[test]
fn prefix_and_version_select_the_key() {
    let dir = filled(|cache| {
        cache.set("a", &1, Timeout::Never).unwrap();
        cache.with_prefix("app").with_version(-2).set("a", &2, Timeout::Never).unwrap();
    });
    let app = ["a", "--prefix", "app", "--key-version", "-2"];
    assert_eq!(stdout("get", dir.path(), &["a"]), "1\n");
    assert_eq!(stdout("get", dir.path(), &app), "2\n");
    assert_eq!(run("get", dir.path(), &["a", "--prefix", "app"]).0, 1);
    assert_eq!(stdout("get", dir.path(), &["app:-2:a", "--stored"]), "2\n");
    let all = stdout("ls", dir.path(), &["--stored"]);
    let mut all: Vec<&str> = all.lines().collect();
    all.sort_unstable();
    assert_eq!(all, [":1:a", "app:-2:a"]);
    assert_eq!(stdout("ls", dir.path(), &app[1..]), "a\n");
}

#[test]
fn a_value_from_standard_input_is_stored_whole() {
    let dir = tempfile::tempdir().unwrap();
    let value: Vec<u8> = (0..200_000).map(|i| (i % 251) as u8).collect();
    let mut set = keepwarm(&["set", dir.path().to_str().unwrap(), "big", "-", "--bytes"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    set.stdin.take().unwrap().write_all(&value).unwrap();
    assert!(set.wait().unwrap().success());
    let got = keepwarm(&["get", dir.path().to_str().unwrap(), "big", "--raw"]).output().unwrap();
    assert!(got.stdout == value);
}

#[test]
fn reading_a_missing_directory_creates_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let (missing, empty) = (parent.path().join("missing"), parent.path().join("empty"));
    let (foreign, file) = (parent.path().join("foreign"), parent.path().join("file"));
    std::fs::create_dir(&empty).unwrap();
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis"), "x").unwrap();
    std::fs::write(&file, "x").unwrap();
    for (dir, why) in [
        (&missing, "there is no such directory"),
        (&empty, "this is not a keepwarm directory"),
        (&foreign, "this is not a keepwarm directory"),
        (&file, "not a directory"),
    ] {
        for command in ["stats", "ls", "check", "get"] {
            let rest: &[&str] = if command == "get" { &["key"] } else { &[] };
            let (code, out, err) = run(command, dir, rest);
            assert_eq!((code, out.as_str()), (2, ""), "{command} {dir:?}");
            assert!(err.starts_with("keepwarm: ") && err.contains(why), "{command}: {err}");
        }
    }
    assert!(!missing.exists());
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    // A refused `set` creates nothing either.
    assert_eq!(run("set", &foreign, &["a", "b"]).0, 2);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1);
    assert_eq!(run("set", &missing.join("deeper"), &["a", "b"]).0, 2);
    assert!(!missing.exists());
}

#[test]
fn the_tool_works_while_a_program_has_the_directory_open() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path()).unwrap();
    cache.set("a", &1, Timeout::Never).unwrap();
    assert_eq!(stdout("get", dir.path(), &["a"]), "1\n");
    stdout("set", dir.path(), &["a", "2"]);
    assert_eq!(cache.get::<String>("a").unwrap().as_deref(), Some("2"));
    assert!(cache.delete("a").unwrap());
    assert_eq!(stdout("stats", dir.path(), &[]).lines().next(), Some("entries    0"));
    let (code, _, err) = run("salvage", dir.path(), &[]);
    assert!(code == 2 && err.contains("already"), "{err}");
    assert!(stdout("check", dir.path(), &[]).ends_with("\nsound\n"));
}

#[test]
fn stats_lists_each_process_that_has_the_directory_open() {
    let dir = tempfile::tempdir().unwrap();
    let without_processes = "entries    1\nbytes      ";
    stdout("set", dir.path(), &["a", "b"]);
    let text = stdout("stats", dir.path(), &[]);
    assert!(text.starts_with(without_processes) && text.ends_with("\nprocesses  0\n"), "{text}");
    let _cache = Cache::open(dir.path()).unwrap();
    let text = stdout("stats", dir.path(), &[]);
    let lines: Vec<_> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let id = std::process::id();
    assert_eq!(lines[2], ["processes", "1"]);
    assert_eq!(
        lines[3],
        ["pid", "seconds", "hits", "misses", "commits", "evicted", "expired", "corrupt"]
    );
    assert_eq!((lines[4][0], lines[4].len()), (&*id.to_string(), 8));
    assert_eq!((lines[5][0], lines[5].len(), lines.len()), ("all", 7, 6));
    let json: Value = serde_json::from_str(&stdout("stats", dir.path(), &["--json"])).unwrap();
    assert_eq!((&json["entries"], &json["all"]["entries"]), (&json!(1), &json!(1)));
    assert_eq!(json["processes"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&json["processes"][0]["pid"], &json["processes"][0]["stats"]["corrupt"]),
        (&json!(id), &json!(0))
    );
}

#[test]
fn the_tool_keeps_the_limits_of_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let (least, most) = (100, 1_200_000);
    {
        // More than the default limits allow.
        let cache = Cache::builder(dir.path()).max_entries(most).max_bytes(2 << 30).open().unwrap();
        let stored =
            cache.warm((0..1_000_100u32).map(|n| (n.to_string(), n)), Timeout::Never).unwrap();
        assert_eq!(stored, 1_000_100);
    }
    assert_eq!(stdout("stats", dir.path(), &[]).lines().next(), Some("entries    1000100"));
    stdout("set", dir.path(), &["one more", "x"]);
    assert_eq!(stdout("get", dir.path(), &["77"]), "77\n");
    assert_eq!(stdout("stats", dir.path(), &[]).lines().next(), Some("entries    1000101"));

    let dir = tempfile::tempdir().unwrap();
    {
        let cache =
            Cache::builder(dir.path()).max_entries(least).max_bytes(1 << 20).open().unwrap();
        cache.warm((0..least).map(|n| (n.to_string(), n)), Timeout::Never).unwrap();
    }
    let bytes = || -> u64 {
        let stats: Value = serde_json::from_str(&stdout("stats", dir.path(), &["--json"])).unwrap();
        assert!(stats["entries"].as_u64().unwrap() <= least);
        stats["bytes"].as_u64().unwrap()
    };
    assert!(bytes() <= 1 << 20);
    stdout("set", dir.path(), &["one more", "x"]);
    assert!(bytes() <= 1 << 20, "the small directory did not grow");
}

#[test]
fn check_reports_problems_and_exits_with_1() {
    let dir = filled(|cache| {
        cache.set_bytes("a", &[b'x'; 1000], Timeout::Never).unwrap();
    });
    let report = stdout("check", dir.path(), &["--json"]);
    assert_eq!(serde_json::from_str::<Value>(&report).unwrap()["entries"], 1);
    let segment =
        std::fs::read_dir(dir.path().join("segments")).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(100).position(|w| w == [b'x'; 100]).unwrap();
    bytes[at + 50] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (code, out, err) = run("check", dir.path(), &[]);
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(out.contains("\nproblem: ") && out.ends_with("\nnot sound\n"), "{out}");
    let (code, out, _) = run("check", dir.path(), &["--json"]);
    assert_eq!(code, 1);
    assert_ne!(serde_json::from_str::<Value>(&out).unwrap()["problems"], json!([]));
    assert_eq!(run("get", dir.path(), &["a"]).0, 1, "a damaged entry is a miss");
}

#[test]
fn wrong_usage_exits_with_2() {
    let dir = filled(|_| ());
    assert_eq!(run("stats", dir.path(), &["surplus"]).0, 2);
    let (code, _, err) = run("set", dir.path(), &["a", "b", "--timeout", "5"]);
    assert_eq!(code, 2);
    assert!(err.contains("a unit is missing"), "{err}");
    assert_eq!(run("set", dir.path(), &["a", "{", "--json"]).0, 2);
    assert_eq!(run("set", dir.path(), &["a", "1", "--json", "--bytes"]).0, 2);
    assert_eq!(run("get", dir.path(), &["a", "--stored", "--prefix", "p"]).0, 2);
    assert_eq!(decoded(&keepwarm(&[]).output().unwrap()).0, 2);
    let (code, out, _) = decoded(&keepwarm(&["--help"]).output().unwrap());
    assert!(code == 0 && out.contains("Exit codes"), "{out}");
}

#[test]
fn a_closed_output_pipe_is_not_a_failure() {
    let dir = filled(|cache| {
        cache
            .warm(
                (0..20_000).map(|n| (format!("a rather long key, number {n}"), n)),
                Timeout::Never,
            )
            .unwrap();
    });
    let mut ls = keepwarm(&["ls", dir.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, ls.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("a rather long key"));
    let output = ls.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
