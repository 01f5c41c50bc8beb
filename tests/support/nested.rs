//! Any bytes as MessagePack, read as types that contain themselves, on a small stack.

use std::collections::BTreeMap;
use std::thread;

use keepwarm::backend::{Change, Codec, Condition};
use keepwarm::{Builder, Cache, Timeout};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

/// Threads of programs may have a stack of 128 KiB. Without optimization the frames are larger.
pub(crate) const STACK: usize = if cfg!(debug_assertions) { 4 << 20 } else { 128 << 10 };

pub(crate) fn on_a_small_stack<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    thread::scope(|scope| {
        let spawned = thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work);
        spawned.unwrap().join().unwrap()
    })
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) value: u64,
    pub(crate) name: String,
    pub(crate) next: Option<Box<List>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Tree {
    Leaf,
    Wrapped(Box<Tree>),
    Pair(Box<Tree>, Box<Tree>),
    Named { left: Option<Box<Tree>>, tags: Vec<String> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Any {
    Number(i64),
    Bytes(Vec<u8>),
    Sequence(Vec<Any>),
    Map(BTreeMap<String, Any>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Flat {
    pub(crate) id: u32,
    #[serde(flatten)]
    pub(crate) rest: BTreeMap<String, Flat>,
}

/// Has no end but `None`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Endless(pub(crate) Option<Box<Endless>>);

/// Reads `bytes` as each type. What was read and can be stored again is read again.
pub(crate) fn msgpack_decode(bytes: &[u8]) {
    let backend = Builder::in_memory().open_backend().unwrap();
    let change = Change::store(bytes, Codec::MessagePack, None);
    backend.commit(":1:k", Condition::Always, change).unwrap();
    let cache = &Builder::backend(backend).open().unwrap();
    on_a_small_stack(|| {
        assert!(cache.contains_key("k").unwrap());
        read_as::<List>(cache);
        read_as::<Tree>(cache);
        read_as::<Any>(cache);
        read_as::<Flat>(cache);
        read_as::<Endless>(cache);
        drop(cache.get::<IgnoredAny>("k"));
    });
}

fn read_as<T: Serialize + DeserializeOwned>(cache: &Cache) {
    if let Ok(Some(value)) = cache.get::<T>("k")
        && cache.set("again", &value, Timeout::Never).is_ok()
    {
        assert!(cache.get::<T>("again").unwrap().is_some(), "what `set` accepts, `get` gives");
    }
}
