//! The engines of this process: one for each directory, found by device and inode.
//!
//! Each directory has a place of its own, with a lock of its own. So a directory that cannot be
//! opened, because a stopped process holds its attach mutex, delays no other directory, and not the
//! threads that use it already.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::engine::shared::accounting::{SpaceInUse, Usage};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::storage::FileId;

/// A thread waits longer than an attach can: the thread that it waits for learns the reason first.
const PATIENCE: Duration = Duration::from_secs(75);

/// What a registry holds: an attachment.
pub(crate) trait Tenant {
    /// Whether the files of the directory were removed or replaced since the attach, or became
    /// unreadable, so that a new attachment must take its place.
    fn is_displaced(&self) -> bool;
}

type Observers<A> = HashMap<FileId, Arc<Mutex<Weak<A>>>>;

pub(crate) struct Registry<A> {
    places: Mutex<HashMap<FileId, Arc<Place<A>>>>,
    /// The read-only attachments. Each has a mutex that is locked during its attach, which may take
    /// long.
    observers: Mutex<Observers<A>>,
    /// The byte counts of each directory. They exist while the program holds any value of the
    /// directory, even if it is closed. A segment that a value holds since an earlier attach, and
    /// that is in use again, counts twice.
    spaces: Mutex<Vec<(FileId, Weak<Usage>)>>,
}

impl<A> Default for Registry<A> {
    fn default() -> Self {
        Self { places: Mutex::default(), observers: Mutex::default(), spaces: Mutex::default() }
    }
}

/// What this process does with a directory.
struct Place<A> {
    state: Mutex<State<A>>,
    changed: Condvar,
}

enum State<A> {
    Closed,
    /// A thread attaches.
    Attaching,
    /// It is attached; or, if there is no reference left, a thread detaches.
    Attached(Weak<A>),
}

impl<A> Default for Place<A> {
    fn default() -> Self {
        Self { state: Mutex::new(State::Closed), changed: Condvar::new() }
    }
}

/// The result of [`Registry::enter`].
pub(crate) enum Entered<A> {
    Found(Arc<A>),
    /// The caller attaches. Other threads that open the directory wait, then share the engine.
    Attaching(Attaching<A>),
}

/// The right to attach to a directory in this process. Dropping it gives it to another thread.
pub(crate) struct Attaching<A>(Arc<Place<A>>);

impl<A> Attaching<A> {
    pub(crate) fn finish(self, attached: &Arc<A>) {
        *lock(&self.0.state) = State::Attached(Arc::downgrade(attached));
    }
}

impl<A> Drop for Attaching<A> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if matches!(*state, State::Attaching) {
            *state = State::Closed;
        }
        drop(state);
        self.0.changed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<A: Tenant> Registry<A> {
    fn place(&self, id: FileId) -> Arc<Place<A>> {
        let mut places = lock(&self.places);
        // A thread that uses a place also holds a reference to it.
        places.retain(|_, place| {
            Arc::strong_count(place) > 1 || !matches!(*lock(&place.state), State::Closed)
        });
        places.entry(id).or_default().clone()
    }

    /// The engine of the directory at `path`, or the right to attach. Waits while another thread
    /// attaches or detaches.
    ///
    /// # Errors
    /// `Busy` if that takes too long.
    pub(crate) fn enter(&self, id: FileId, path: &Path) -> Result<Entered<A>> {
        let place = self.place(id);
        let started = Instant::now();
        let mut state = lock(&place.state);
        loop {
            let why = match &*state {
                State::Closed => {
                    *state = State::Attaching;
                    drop(state);
                    return Ok(Entered::Attaching(Attaching(place)));
                }
                State::Attaching => "another thread of this process is opening it",
                State::Attached(attached) => match attached.upgrade() {
                    Some(found) if !found.is_displaced() => {
                        // Before a drop of `found` could detach, which takes this lock.
                        drop(state);
                        return Ok(Entered::Found(found));
                    }
                    Some(displaced) => {
                        drop(state);
                        drop(displaced);
                        state = lock(&place.state);
                        if !matches!(&*state, State::Attached(there) if there.strong_count() > 0) {
                            continue;
                        }
                        "calls of this process still use its files as they were before"
                    }
                    None => "another thread of this process is closing it",
                },
            };
            state = wait(&place, state, started, why, path)?;
        }
    }

    /// The engine of the directory at `path`, if this process has it open. Waits while another
    /// thread detaches.
    ///
    /// # Errors
    /// `Busy` if that takes too long.
    pub(crate) fn find(&self, id: FileId, path: &Path) -> Result<Option<Arc<A>>> {
        let place = self.place(id);
        let started = Instant::now();
        let mut state = lock(&place.state);
        loop {
            let State::Attached(attached) = &*state else { return Ok(None) };
            if let Some(found) = attached.upgrade() {
                drop(state);
                return Ok((!found.is_displaced()).then_some(found));
            }
            let why = "another thread of this process is closing it";
            state = wait(&place, state, started, why, path)?;
        }
    }

    /// Notes that `attached`, which was attached to the directory `id`, has detached.
    pub(crate) fn leave(&self, id: FileId, attached: &A) {
        let place = self.place(id);
        let mut state = lock(&place.state);
        if matches!(&*state, State::Attached(there) if std::ptr::eq(there.as_ptr(), attached)) {
            *state = State::Closed;
        }
        drop(state);
        place.changed.notify_all();
    }

    /// The cell of the read-only attachment to a directory.
    pub(crate) fn observer(&self, id: FileId) -> Arc<Mutex<Weak<A>>> {
        let mut observers = lock(&self.observers);
        let is_in_use = |cell: &Arc<Mutex<Weak<A>>>| {
            // Never waits: a thread that has locked the cell also holds a reference to it.
            Arc::strong_count(cell) > 1 || lock(cell).strong_count() > 0
        };
        observers.retain(|_, cell| is_in_use(cell));
        observers.entry(id).or_default().clone()
    }

    pub(crate) fn space(&self, id: FileId) -> SpaceInUse {
        let mut spaces = lock(&self.spaces);
        spaces.retain(|(_, count)| count.strong_count() > 0);
        if let Some(space) =
            spaces.iter().find(|(i, _)| *i == id).and_then(|(_, c)| SpaceInUse::upgrade(c))
        {
            return space;
        }
        let space = SpaceInUse::default();
        spaces.push((id, space.downgrade()));
        space
    }
}

/// Waits for a change of the place, or fails with `why` if the wait is over.
fn wait<'a, A>(
    place: &'a Place<A>,
    state: MutexGuard<'a, State<A>>,
    started: Instant,
    why: &'static str,
    path: &Path,
) -> Result<MutexGuard<'a, State<A>>> {
    let Some(left) = PATIENCE.checked_sub(started.elapsed()) else {
        return Err(Error::new(ErrorKind::Busy, "open").with_path(path).with_source(why));
    };
    let waited = place.changed.wait_timeout(state, left);
    Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
}
