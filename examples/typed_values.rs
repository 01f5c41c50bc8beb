//! Typed values: any serde type can be stored, and a program whose types change keeps working.
//!
//!     cargo run --example typed_values [-- DIR]

#![expect(clippy::print_stdout, reason = "the output is the point of an example")]

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

/// The next release of the program: the fields in another order, and a new field.
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

/// The release after that: the count has become a list, so old values no longer decode.
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

    // Any serde type. The reader names the type.
    cache.set("primes", &[2, 3, 5, 7], Timeout::Default)?;
    cache.set("scores", &BTreeMap::from([("Ada", 3), ("Grace", 5)]), Timeout::Default)?;
    println!("primes: {:?}", cache.get::<Vec<u8>>("primes")?);
    println!("scores: {:?}", cache.get::<BTreeMap<String, u64>>("scores")?);

    // A missing value is not the same as a stored `None`.
    cache.set("nickname", &None::<String>, Timeout::Default)?;
    println!(
        "stored: {:?}, missing: {:?}",
        cache.get::<Option<String>>("nickname")?,
        cache.get::<u8>("missing")?
    );

    // Raw bytes, without any encoding.
    cache.set_bytes("icon", b"\x89PNG\r\n", Timeout::Default)?;
    println!("icon: {} bytes", cache.get_bytes("icon")?.map_or(0, |icon| icon.len()));

    // A struct is stored with the names of its fields: the order does not matter, and a field may
    // be added.
    let ada = User { name: "Ada".into(), email: "ada@example.org".into(), logins: 7 };
    cache.set("user", &ada, Timeout::Default)?;
    println!("\nas stored:        {:?}", cache.get::<User>("user")?);
    println!("next release:     {:?}", cache.get::<next::User>("user")?);

    // A value that does not fit the type is a decode error for its reader.
    match cache.get::<after::User>("user") {
        Err(error) if error.kind() == ErrorKind::Decode => println!("release after it: {error}"),
        other => println!("unexpected: {other:?}"),
    }
    // For `get_or_set` such a value counts as missing and is replaced; there is no need to delete
    // it.
    let fresh = || after::User { name: "Ada".into(), logins: vec!["Monday".into()] };
    println!("recomputed:       {:?}", cache.get_or_set("user", Timeout::Default, fresh)?);
    println!("and stored:       {:?}", cache.get::<after::User>("user")?);

    // Alternatively each release has its own version. The old release still finds its values.
    let second = cache.with_version(2);
    second.delete("user")?;
    println!("\nversion 2: {:?}", second.get::<after::User>("user")?);
    println!("moved from 1 to {}", cache.incr_version("user", 1)?);
    println!("version 2: {:?}", second.get::<after::User>("user")?);
    println!("version 1: {:?}", cache.get::<after::User>("user")?);
    Ok(())
}
