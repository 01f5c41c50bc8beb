//! Values that were decoded from entries, least recently used first, bounded in bytes.

use std::any::TypeId;

use hashlink::LinkedHashMap;

use crate::backend::{Decoded, SharedValue};

/// What one takes beside its key and value, roughly.
const OVERHEAD: u64 = 192;

/// By the slot of their entry. A change or removal of an entry also removes what was decoded from
/// it, so nothing here is stale.
#[derive(Default)]
pub(super) struct DecodedValues {
    values: LinkedHashMap<usize, (Decoded, u64)>,
    bytes: u64,
}

impl DecodedValues {
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The value of `slot` if it is a `wanted`, from now on the most recently used one.
    pub(super) fn get(&mut self, slot: usize, wanted: TypeId) -> Option<SharedValue> {
        let (decoded, _) = self.values.to_back(&slot)?;
        decoded.is_a(wanted).then(|| decoded.value.clone())
    }

    /// Keeps a value for `slot` within `capacity` bytes. What makes room for it goes to `garbage`,
    /// and so does the value itself if it alone is too large.
    pub(super) fn insert(
        &mut self,
        slot: usize,
        value: Decoded,
        weight: u64,
        capacity: u64,
        garbage: &mut Vec<Decoded>,
    ) {
        garbage.extend(self.remove(slot));
        let weight = weight + OVERHEAD;
        if weight > capacity {
            garbage.push(value);
            return;
        }
        self.values.insert(slot, (value, weight));
        self.bytes += weight;
        while self.bytes > capacity {
            let Some((_, (out, weight))) = self.values.pop_front() else { break };
            self.bytes -= weight;
            garbage.push(out);
        }
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Decoded> {
        if self.values.is_empty() {
            return None;
        }
        let (decoded, weight) = self.values.remove(&slot)?;
        self.bytes -= weight;
        Some(decoded)
    }
}
