//! A doubly linked list of keys, indexed by key: a key is in it at most once.

const NONE: u32 = u32::MAX;

#[derive(Default)]
pub(crate) struct List {
    /// The keys before and after each key; `NONE` at the ends.
    links: Vec<(u32, u32)>,
    front: Option<u32>,
    back: Option<u32>,
    len: usize,
}

fn some(key: u32) -> Option<u32> {
    (key != NONE).then_some(key)
}

impl List {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn back(&self) -> Option<u32> {
        self.back
    }

    /// The key before this one, nearer to the front.
    pub(crate) fn before(&self, key: u32) -> Option<u32> {
        some(self.links[key as usize].0)
    }

    pub(crate) fn push_front(&mut self, key: u32) {
        if self.links.len() <= key as usize {
            self.links.resize(key as usize + 1, (NONE, NONE));
        }
        self.links[key as usize] = (NONE, self.front.unwrap_or(NONE));
        match self.front {
            Some(front) => self.links[front as usize].0 = key,
            None => self.back = Some(key),
        }
        self.front = Some(key);
        self.len += 1;
    }

    /// Removes a key that is in the list.
    pub(crate) fn remove(&mut self, key: u32) {
        let (before, after) = self.links[key as usize];
        match some(before) {
            Some(before) => self.links[before as usize].1 = after,
            None => self.front = some(after),
        }
        match some(after) {
            Some(after) => self.links[after as usize].0 = before,
            None => self.back = some(before),
        }
        self.len -= 1;
    }

    pub(crate) fn pop_back(&mut self) -> Option<u32> {
        let key = self.back?;
        self.remove(key);
        Some(key)
    }

    /// Moves a key that is in the list to the front.
    pub(crate) fn make_first(&mut self, key: u32) {
        self.remove(key);
        self.push_front(key);
    }
}

/// A value for each key; the default for a key that was never set.
#[derive(Default)]
pub(crate) struct Table<T>(Vec<T>);

impl<T: Default + Copy> Table<T> {
    pub(crate) fn get(&self, key: u32) -> T {
        self.0.get(key as usize).copied().unwrap_or_default()
    }

    pub(crate) fn set(&mut self, key: u32, value: T) {
        if self.0.len() <= key as usize {
            self.0.resize(key as usize + 1, T::default());
        }
        self.0[key as usize] = value;
    }
}
