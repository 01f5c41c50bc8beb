//! Panics of which nobody wants to read: those that have to happen, and those by which loom takes threads down.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Loom and shuttle run the threads of a scenario on the one that asks for it.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// From now on only what is told with a message, and not expected, is printed.
pub(crate) fn quieten() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // Shuttle has a hook of its own, from its first run on, which would be in front of this one.
        shuttle::check_random(|| {}, 1);
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let told = panicked.payload().is::<&str>() || panicked.payload().is::<String>();
            if told && !EXPECTED.get() {
                hook(panicked);
            }
        }));
    });
}

/// Whether `what` panics. Nothing is printed of it.
pub(crate) fn fails(what: impl FnOnce()) -> bool {
    quieten();
    EXPECTED.set(true);
    let failed = catch_unwind(AssertUnwindSafe(what)).is_err();
    EXPECTED.set(false);
    failed
}
