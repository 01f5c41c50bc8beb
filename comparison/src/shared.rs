//! Typed values: a struct of twenty fields, decoded by each read (`get`) or once (`get_shared`).

use std::collections::BTreeMap;
use std::time::Instant;

use keepwarm::{Cache, Timeout};
use serde::{Deserialize, Serialize};

use crate::contender::Which;
use crate::plan::Plan;
use crate::results::Results;

pub(crate) const GROUP: &str = "typed";

/// A typical cached user: twenty fields of common types.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Profile {
    id: u64,
    name: String,
    email: String,
    city: String,
    country: String,
    street: String,
    postcode: String,
    phone: Option<String>,
    created: u64,
    updated: u64,
    logins: u32,
    age: u8,
    score: f64,
    balance: i64,
    is_active: bool,
    is_staff: bool,
    roles: Vec<String>,
    friends: Vec<u64>,
    settings: BTreeMap<String, String>,
    note: String,
}

fn profile(id: u64) -> Profile {
    let text = |what: &str| format!("{what} of number {id}");
    Profile {
        id,
        name: text("the name"),
        email: format!("customer.{id}@example.org"),
        city: text("the city"),
        country: text("the country"),
        street: text("the street"),
        postcode: format!("{:05}", id % 100_000),
        phone: Some(format!("+49 30 {id:07}")),
        created: 1_700_000_000 + id,
        updated: 1_760_000_000 + id,
        logins: id as u32,
        age: (id % 100) as u8,
        score: id as f64 / 7.0,
        balance: -(id as i64),
        is_active: true,
        is_staff: id.is_multiple_of(100),
        roles: vec!["reader".to_owned(), "editor".to_owned(), "guest".to_owned()],
        friends: (id..id + 10).collect(),
        settings: ["colour", "language", "time zone"].map(|s| (s.to_owned(), text(s))).into(),
        note: text("a somewhat longer note that a customer wrote on the life"),
    }
}

/// Few enough that all decoded values stay in the hot tier.
const PROFILES: u64 = 1000;

pub(crate) fn run(plan: &Plan, results: &mut Results) {
    if !plan.contenders.contains(&Which::Keepwarm) {
        return;
    }
    let dir = plan.fresh_dir();
    let cache = Cache::open(dir.path().join("cache")).unwrap();
    let keys: Vec<String> = (0..PROFILES).map(|id| format!("profile:{id}")).collect();
    let profiles: Vec<Profile> = (0..PROFILES).map(profile).collect();
    for _ in 0..plan.rounds {
        let set = |n: usize| cache.set(&keys[n], &profiles[n], Timeout::Never).unwrap();
        time(plan, "set of a struct", results, set);
        let get = |n: usize| {
            assert_eq!(cache.get::<Profile>(&keys[n]).unwrap().unwrap().id, n as u64);
        };
        time(plan, "get of a struct", results, get);
        let get_shared = |n: usize| {
            assert_eq!(cache.get_shared::<Profile>(&keys[n]).unwrap().unwrap().id, n as u64);
        };
        time(plan, "get_shared of a struct", results, get_shared);
    }
}

fn time(plan: &Plan, metric: &str, results: &mut Results, mut call: impl FnMut(usize)) {
    let (started, mut calls) = (Instant::now(), 0u32);
    while started.elapsed() < plan.slice {
        (0..PROFILES as usize).for_each(&mut call);
        calls += PROFILES as u32;
    }
    let each = started.elapsed().as_secs_f64() / f64::from(calls);
    results.add(GROUP, metric, Which::Keepwarm, each);
}
