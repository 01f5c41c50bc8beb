//! Where a program keeps an attachment that it must not use any more.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Where a program keeps an attachment.
pub(crate) trait Holder: Send + Sync {
    /// Drops the attachment, if it must not be used any more.
    fn release_unusable(&self);
}

/// All that keep one attachment.
#[derive(Default)]
pub(crate) struct Holders(Mutex<Vec<Weak<dyn Holder>>>);

impl Holders {
    /// Notes that `holder` is about to keep the attachment.
    pub(crate) fn add(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|holder| holder.strong_count() > 0);
        holders.push(holder);
    }

    /// Has all of them drop the attachment, if it must not be used any more.
    pub(crate) fn release_unusable(&self) {
        let holders: Vec<Arc<_>> = {
            let holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            holders.iter().filter_map(Weak::upgrade).collect()
        };
        holders.iter().for_each(|holder| holder.release_unusable());
    }
}
