//! Typed values: what serde carries can be kept, and a program whose types change goes on working.
//!
//!     cargo run --example typed_values [-- DIR]

#![expect(clippy::print_stdout, reason = "it is a program that shows something")]

use std::collections::BTreeMap;
use std::env;
use std::error::Error;
use std::path::PathBuf;

use keepwarm::{Cache, ErrorKind, Timeout};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, PartialEq)]
struct User {
    name: String,
    email: String,
    logins: u32,
}

/// The next release of the program: the fields in another order, and a new one.
mod next {
    use super::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, Debug)]
    pub(crate) struct User {
        pub(crate) email: String,
        pub(crate) name: String,
        #[serde(default)]
        pub(crate) admin: bool,
        pub(crate) logins: u32,
    }
}

/// The release after that: the count has become a list, which the old values are not.
mod after {
    use super::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize, Debug)]
    pub(crate) struct User {
        pub(crate) name: String,
        pub(crate) logins: Vec<String>,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let temporary = tempfile::tempdir()?;
    let dir = env::args_os().nth(1).map_or_else(|| temporary.path().join("cache"), PathBuf::from);
    let cache = Cache::open(dir)?;

    // Anything that serde carries. The type is said where the value is read.
    cache.set("primes", &[2, 3, 5, 7], Timeout::Default)?;
    cache.set("scores", &BTreeMap::from([("Ada", 3), ("Grace", 5)]), Timeout::Default)?;
    println!("primes: {:?}", cache.get::<Vec<u8>>("primes")?);
    println!("scores: {:?}", cache.get::<BTreeMap<String, u64>>("scores")?);

    // That there is no value is not the same as that the value is nothing.
    cache.set("nickname", &None::<String>, Timeout::Default)?;
    println!(
        "kept: {:?}, missing: {:?}",
        cache.get::<Option<String>>("nickname")?,
        cache.get::<u8>("missing")?
    );

    // Bytes as they are, without any encoding.
    cache.set_bytes("icon", b"\x89PNG\r\n", Timeout::Default)?;
    println!("icon: {} bytes", cache.get_bytes("icon")?.map_or(0, |icon| icon.len()));

    // A struct is kept with the names of its fields, so their order does not matter, and one may be added.
    let ada = User { name: "Ada".into(), email: "ada@example.org".into(), logins: 7 };
    cache.set("user", &ada, Timeout::Default)?;
    println!("\nas kept:          {:?}", cache.get::<User>("user")?);
    println!("next release:     {:?}", cache.get::<next::User>("user")?);

    // What is no longer of the type is an error where it is read, and says so.
    match cache.get::<after::User>("user") {
        Err(error) if error.kind() == ErrorKind::Decode => println!("release after it: {error}"),
        other => println!("unexpected: {other:?}"),
    }
    // Where a value can be computed, it counts as missing and is replaced: nothing has to be deleted by hand.
    let fresh = || after::User { name: "Ada".into(), logins: vec!["Monday".into()] };
    println!("computed anew:    {:?}", cache.get_or_set("user", Timeout::Default, fresh)?);
    println!("and kept:         {:?}", cache.get::<after::User>("user")?);

    // Or each release has a version of its own. The old one finds its values as long as they live.
    let second = cache.with_version(2);
    second.delete("user")?;
    println!("\nversion 2: {:?}", second.get::<after::User>("user")?);
    println!("moved from 1 to {}", cache.incr_version("user", 1)?);
    println!("version 2: {:?}", second.get::<after::User>("user")?);
    println!("version 1: {:?}", cache.get::<after::User>("user")?);
    Ok(())
}
