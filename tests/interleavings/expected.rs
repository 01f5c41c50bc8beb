//! Silences panics that are not failures: those that a test expects, and those with which loom ends
//! threads.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// Loom and shuttle run all threads of a scenario on the thread that starts it.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Prints from now on only panics that have a message and are not expected.
pub(crate) fn quieten() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // Shuttle installs its own hook at its first run, which would then precede this one.
        shuttle::check_random(|| {}, 1);
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let has_message = panicked.payload().is::<&str>() || panicked.payload().is::<String>();
            if has_message && !EXPECTED.get() {
                hook(panicked);
            }
        }));
    });
}

/// Whether `what` panics. The panic is not printed.
pub(crate) fn fails(what: impl FnOnce()) -> bool {
    quieten();
    EXPECTED.set(true);
    let failed = catch_unwind(AssertUnwindSafe(what)).is_err();
    EXPECTED.set(false);
    failed
}
