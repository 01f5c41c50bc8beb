//! Values that are nested deep: what `set` accepts, `get` gives, on a small stack.

use std::collections::BTreeMap;

use keepwarm::{Builder, Cache, ErrorKind, Timeout};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::for_each_backend;
use crate::nested::{Any, Endless, Flat, List, Tree, on_a_small_stack};

/// Nests `value` until `set` refuses it. Every value that it accepts is read. Returns how often it
/// was nested.
fn deepest<T>(cache: &Cache, mut value: T, nest: fn(T) -> T) -> u32
where
    T: Serialize + DeserializeOwned + Clone + PartialEq + Send + Sync + std::fmt::Debug,
{
    for depth in 0..2000 {
        let stored = on_a_small_stack(|| cache.set("k", &value, Timeout::Never));
        if let Err(error) = stored {
            assert_eq!(error.kind(), ErrorKind::Encode, "{error}");
            assert!(format!("{error:?}").contains("128 levels"), "{error:?}");
            let before = on_a_small_stack(|| cache.get::<T>("k").unwrap());
            assert!(before.is_some(), "a value that is refused replaces nothing");
            return depth - 1;
        }
        let read = on_a_small_stack(|| cache.get::<T>("k"));
        assert_eq!(read.unwrap().as_ref(), Some(&value), "at depth {depth}");
        value = nest(value);
    }
    panic!("a value that is nested 2,000 deep is stored")
}

#[test]
fn what_is_accepted_is_read_up_to_128_levels() {
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        let list = List { value: 1, name: "n".into(), next: None };
        let nest = |list| List { value: 1, name: "n".into(), next: Some(Box::new(list)) };
        assert_eq!(deepest(&cache, list, nest), 127);
        assert_eq!(deepest(&cache, Tree::Leaf, |tree| Tree::Wrapped(Box::new(tree))), 128);
        let pair = |tree| Tree::Pair(Box::new(Tree::Leaf), Box::new(tree));
        assert_eq!(deepest(&cache, Tree::Leaf, pair), 64);
        let named = |tree| Tree::Named { left: Some(Box::new(tree)), tags: Vec::new() };
        assert_eq!(deepest(&cache, Tree::Leaf, named), 63);
        assert_eq!(deepest(&cache, Any::Number(300), |any| Any::Sequence(vec![any])), 128);
        let map = |any| Any::Map(BTreeMap::from([("k".to_owned(), any)]));
        assert_eq!(deepest(&cache, Any::Bytes(vec![200; 20]), map), 127);
        let flat = Flat { id: 1, rest: BTreeMap::new() };
        let nest = |flat| Flat { id: 1, rest: BTreeMap::from([("k".to_owned(), flat)]) };
        assert_eq!(deepest(&cache, flat, nest), 127);
    });
}

/// It would be computed again by each call if it were stored and could not be read.
#[test]
fn a_computed_value_that_is_too_deep_is_returned_and_not_stored() {
    let nested = |depth| (0..depth).fold(Any::Number(300), |any, _| Any::Sequence(vec![any]));
    for_each_backend(|make| {
        let cache = make.builder().open().unwrap();
        for (depth, is_stored) in [(128, true), (129, false)] {
            let key = depth.to_string();
            let get = || cache.get_or_set(&key, Timeout::Never, || nested(depth)).unwrap();
            assert_eq!(get(), nested(depth));
            assert_eq!(cache.get::<Any>(&key).unwrap().is_some(), is_stored);
            assert_eq!(cache.stats().store_failures > 0, !is_stored);
        }
    });
}

/// serde reads no bytes on the way, so nothing but a count ends this.
#[test]
fn a_type_that_contains_itself_without_end_is_refused() {
    let cache = Builder::in_memory().open().unwrap();
    cache.set("k", &5, Timeout::Never).unwrap();
    let read = on_a_small_stack(|| cache.get::<Endless>("k").map(drop));
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Decode);
    let mut deep = Endless(None);
    for _ in 0..600 {
        deep = Endless(Some(Box::new(deep)));
    }
    let stored = on_a_small_stack(|| cache.set("k", &deep, Timeout::Never));
    assert_eq!(stored.unwrap_err().kind(), ErrorKind::Encode);
}

/// A value within the `Serialize` of another has its own depth.
#[test]
fn a_value_that_is_stored_while_another_is_written_is_apart() {
    struct Outer<'a>(&'a Cache, &'a Any);
    impl Serialize for Outer<'_> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.set("inner", self.1, Timeout::Never).map_err(serde::ser::Error::custom)?;
            self.1.serialize(serializer)
        }
    }
    let any = (0..128).fold(Any::Number(300), |any, _| Any::Sequence(vec![any]));
    let cache = Builder::in_memory().open().unwrap();
    cache.set("outer", &Outer(&cache, &any), Timeout::Never).unwrap();
    assert_eq!(cache.get::<Any>("inner").unwrap().as_ref(), Some(&any));
    assert_eq!(cache.get::<Any>("outer").unwrap(), Some(any));
}
