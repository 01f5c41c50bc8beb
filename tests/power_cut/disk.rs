//! What a disk has of a directory at any moment, as far as a program can rely on it: of each file what its last
//! sync covered, of each directory the names that were synced. And from that, what a power cut at this moment may
//! leave: of each sector the content that was synced or the one in memory, and any of the changes of names.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use keepwarm::observe::{self, Step};

use crate::rng::Rng;

const SECTOR: usize = 512;
/// Sectors in a page.
const PAGE: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// By a number of its own: its inode, as long as it is there.
    File(u64),
    /// By its path below the root.
    Directory(PathBuf),
}

/// A change of names that no sync has covered yet.
#[derive(Debug, Clone)]
enum Change {
    Make(OsString, Node),
    Remove(OsString),
    Rename(OsString, OsString, Node),
}

/// The names in a directory.
#[derive(Debug, Clone, Default)]
struct Names {
    synced: BTreeMap<OsString, Node>,
    since: Vec<Change>,
    /// How many changes there were before those in `since`.
    applied: usize,
}

impl Names {
    /// The names after those of the changes since the last sync that `happened` picks.
    fn with(&self, mut happened: impl FnMut() -> bool) -> BTreeMap<OsString, Node> {
        let mut names = self.synced.clone();
        self.since.iter().filter(|_| happened()).for_each(|change| apply(&mut names, change));
        names
    }

    fn now(&self) -> BTreeMap<OsString, Node> {
        self.with(|| true)
    }

    fn sync_until(&mut self, total: usize) {
        let covered = total.saturating_sub(self.applied).min(self.since.len());
        self.since.drain(..covered).for_each(|change| apply(&mut self.synced, &change));
        self.applied += covered;
    }

    fn mentions(&self) -> impl Iterator<Item = &Node> {
        let made = self.since.iter().filter_map(|change| match change {
            Change::Make(_, node) | Change::Rename(_, _, node) => Some(node),
            Change::Remove(_) => None,
        });
        self.synced.values().chain(made)
    }
}

fn apply(names: &mut BTreeMap<OsString, Node>, change: &Change) {
    match change {
        Change::Make(name, node) => drop(names.insert(name.clone(), node.clone())),
        Change::Remove(name) => drop(names.remove(name)),
        Change::Rename(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), node.clone());
        }
    }
}

/// What the disk has of a file.
#[derive(Debug, Clone, Default)]
struct Synced {
    /// `None` if it was never synced: not even its length is sure.
    bytes: Option<Vec<u8>>,
    /// It was emptied since.
    emptied: bool,
}

#[derive(Debug)]
enum Memory {
    File(File),
    /// Of a file that a killed process had removed.
    Removed(Vec<u8>),
}

impl Memory {
    fn read(&self) -> Vec<u8> {
        match self {
            Self::Removed(bytes) => bytes.clone(),
            Self::File(file) => {
                let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
                let mut read = 0;
                // It may be emptied meanwhile.
                while let Ok(more @ 1..) = file.read_at(&mut bytes[read..], read as u64) {
                    read += more;
                }
                bytes
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u64, (Memory, Synced)>,
    directories: BTreeMap<PathBuf, Names>,
    /// What the syncs that are under way cover.
    syncing: HashMap<(ThreadId, u64), Vec<u8>>,
    syncing_names: HashMap<(ThreadId, PathBuf), usize>,
}

/// What a disk has of the directory `root`.
pub(crate) struct Disk {
    root: PathBuf,
    state: Mutex<State>,
}

impl Disk {
    /// A disk that has all that there is now.
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        let mut state = State::default();
        let mut files = HashMap::new();
        load(root, Path::new(""), &mut state, &mut files);
        for (memory, synced) in state.files.values_mut() {
            synced.bytes = Some(memory.read());
        }
        Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) })
    }

    /// The disk of a machine on which the process was killed at `moment`, which left what is in `root`.
    pub(crate) fn after_kill(root: &Path, moment: &Moment) -> Arc<Self> {
        let mut state = State::default();
        let mut paths = HashMap::new();
        load(root, Path::new(""), &mut state, &mut paths);
        // From the numbers that the files had to those that they have.
        let mut numbers = HashMap::new();
        moment.walk(Path::new(""), &mut |path, number| {
            numbers.insert(number, paths[path]);
        });
        for (number, (bytes, synced)) in &moment.files {
            // Above all inodes.
            let next = u64::MAX - numbers.len() as u64;
            let now = *numbers.entry(*number).or_insert(next);
            let file = state
                .files
                .entry(now)
                .or_insert((Memory::Removed(bytes.clone()), Synced::default()));
            file.1 = synced.clone();
        }
        let renumber = |node: &mut Node| {
            if let Node::File(number) = node {
                *number = numbers[number];
            }
        };
        state.directories = moment.directories.clone();
        for names in state.directories.values_mut() {
            names.synced.values_mut().for_each(renumber);
            names.since.iter_mut().for_each(|change| match change {
                Change::Make(_, node) | Change::Rename(_, _, node) => renumber(node),
                Change::Remove(_) => {}
            });
        }
        Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) })
    }

    /// Has the library tell this disk what it does, until another disk is watched. Each sync lets other threads go on
    /// for so many turns while it is under way.
    pub(crate) fn watch(self: &Arc<Self>, turns: u32) {
        let disk = self.clone();
        observe::observe(Some(Arc::new(move |step| {
            disk.take(step);
            if matches!(step, Step::Syncing(_) | Step::SyncingNames(_)) {
                (0..turns).for_each(|_| std::thread::yield_now());
            }
        })));
    }

    /// Directory below the root, and name; `None` for what is elsewhere.
    fn place(&self, path: &Path) -> Option<(PathBuf, OsString)> {
        let below = path.strip_prefix(&self.root).ok()?;
        Some((below.parent()?.to_owned(), below.file_name()?.to_owned()))
    }

    fn take(&self, step: Step<'_>) {
        let thread = std::thread::current().id();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let names =
            |state: &mut State, path: &Path, change: &dyn Fn(OsString, &Names) -> Change| {
                let Some((directory, name)) = self.place(path) else { return };
                let Some(names) = state.directories.get_mut(&directory) else { return };
                let change = change(name, names);
                names.since.push(change);
            };
        match step {
            Step::Created(path) => {
                if self.place(path).is_none() {
                    return;
                }
                // A file that is being made by one who seems to have died may be removed at once.
                let Ok(file) = File::open(path) else { return };
                let number = file.metadata().unwrap().ino();
                state.files.insert(number, (Memory::File(file), Synced::default()));
                names(state, path, &|name, _| Change::Make(name, Node::File(number)));
            }
            Step::DirectoryCreated(path) => {
                let Some((directory, name)) = self.place(path) else { return };
                let below = directory.join(name);
                state.directories.entry(below.clone()).or_default();
                names(state, path, &|name, _| Change::Make(name, Node::Directory(below.clone())));
            }
            Step::Removing(path) => names(state, path, &|name, _| Change::Remove(name)),
            Step::Renaming(from, to) => {
                let Some((_, from)) = self.place(from) else { return };
                names(state, to, &|to, names| {
                    let node = names.now().remove(&from).expect("what is renamed was made");
                    Change::Rename(from.clone(), to, node)
                });
            }
            Step::Emptying(number) => {
                if let Some((_, synced)) = state.files.get_mut(&number) {
                    synced.emptied = true;
                }
            }
            Step::Syncing(number) => {
                if let Some((memory, _)) = state.files.get(&number) {
                    state.syncing.insert((thread, number), memory.read());
                }
            }
            Step::Synced(number) => {
                let Some(bytes) = state.syncing.remove(&(thread, number)) else { return };
                if let Some((_, synced)) = state.files.get_mut(&number) {
                    *synced = Synced { bytes: Some(bytes), emptied: false };
                }
            }
            Step::SyncingNames(path) => {
                let Ok(below) = path.strip_prefix(&self.root) else { return };
                let Some(names) = state.directories.get(below) else { return };
                let total = names.applied + names.since.len();
                state.syncing_names.insert((thread, below.to_owned()), total);
            }
            Step::SyncedNames(path) => {
                let Ok(below) = path.strip_prefix(&self.root) else { return };
                let Some(total) = state.syncing_names.remove(&(thread, below.to_owned())) else {
                    return;
                };
                if let Some(names) = state.directories.get_mut(below) {
                    names.sync_until(total);
                }
                state.forget_files();
            }
        }
    }

    /// Whether the disk has all that is in the files of the directory `below`, and the directory itself.
    pub(crate) fn has_all_below(&self, below: &Path) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let has_names =
            |path: &Path| state.directories.get(path).is_some_and(|names| names.since.is_empty());
        let files = |number| state.files.get(&number);
        below.ancestors().all(has_names)
            && state.directories[below].synced.values().all(|node| match node {
                Node::File(number) => files(*number)
                    .is_none_or(|(memory, synced)| synced.bytes.as_ref() == Some(&memory.read())),
                Node::Directory(_) => false,
            })
    }

    /// What a system does that writes back when it likes: some sectors and names reach the disk.
    pub(crate) fn write_back(&self, rng: &mut Rng) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mixture = Mixture::draw(rng);
        // A hash map has no order that a seed could repeat.
        let mut numbers: Vec<u64> = state.files.keys().copied().collect();
        numbers.sort_unstable();
        // What a sync under way will say of a file would be older than this.
        let syncing: HashSet<u64> = state.syncing.keys().map(|(_, number)| *number).collect();
        numbers.retain(|number| rng.below(3) == 0 && !syncing.contains(number));
        for number in numbers {
            let Some((memory, synced)) = state.files.get_mut(&number) else { continue };
            let now = memory.read();
            let mut bytes = mixture.of(&now, synced, rng);
            // The length comes with the first sector.
            bytes.resize(now.len(), 0);
            *synced = Synced { bytes: Some(bytes), emptied: false };
        }
        for names in state.directories.values_mut() {
            names.sync_until(names.applied + rng.below(names.since.len() as u64 + 1) as usize);
        }
    }

    /// What memory and disk have now. Whoever syncs or changes names meanwhile waits, so that it is of one moment:
    /// what others store while it is read might have been stored before it and not synced. `look` is called before
    /// and after.
    pub(crate) fn moment<T>(&self, look: impl Fn() -> T) -> (Moment, T, T) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = look();
        let read = |(number, (memory, synced)): (&u64, &(Memory, Synced))| {
            (*number, (memory.read(), synced.clone()))
        };
        let files = state.files.iter().map(read).collect();
        let after = look();
        (Moment { files, directories: state.directories.clone() }, before, after)
    }
}

impl State {
    /// Lets go of files that no name leads to, and none that a power cut could bring back.
    fn forget_files(&mut self) {
        let mentioned: HashSet<u64> = self
            .directories
            .values()
            .flat_map(Names::mentions)
            .filter_map(|node| if let Node::File(number) = node { Some(*number) } else { None })
            .collect();
        self.files.retain(|number, _| mentioned.contains(number));
    }
}

/// Takes in what is in a directory, and by which number each file is known.
fn load(root: &Path, below: &Path, state: &mut State, files: &mut HashMap<PathBuf, u64>) {
    let mut names = Names::default();
    for entry in fs::read_dir(root.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        let node = if entry.file_type().unwrap().is_dir() {
            load(root, &path, state, files);
            Node::Directory(path)
        } else {
            let file = File::open(entry.path()).unwrap();
            let number = file.metadata().unwrap().ino();
            state.files.insert(number, (Memory::File(file), Synced::default()));
            files.insert(path, number);
            Node::File(number)
        };
        names.synced.insert(entry.file_name(), node);
    }
    state.directories.insert(below.to_owned(), names);
}

/// What memory and disk had at one moment.
#[derive(Debug)]
pub(crate) struct Moment {
    files: HashMap<u64, (Vec<u8>, Synced)>,
    directories: BTreeMap<PathBuf, Names>,
}

impl Moment {
    /// All files that have a name.
    fn walk(&self, below: &Path, visit: &mut dyn FnMut(&Path, u64)) {
        for (name, node) in self.directories.get(below).map(Names::now).unwrap_or_default() {
            match node {
                Node::File(number) => visit(&below.join(name), number),
                Node::Directory(path) => self.walk(&path, visit),
            }
        }
    }

    /// How many bytes the files of the directory `below` take.
    pub(crate) fn bytes_below(&self, below: &Path) -> u64 {
        let mut bytes = 0;
        self.walk(below, &mut |_, number| bytes += self.files[&number].0.len() as u64);
        bytes
    }

    /// Puts into `to` what is there after the process was killed at this moment.
    pub(crate) fn kill(&self, to: &Path) {
        let put = |number| self.files[&number].0.clone();
        self.lay_out(Path::new(""), to, &mut |names| names.now(), &mut |number| put(number));
    }

    /// Puts into `to` what may be there after a power cut at this moment.
    pub(crate) fn cut(&self, to: &Path, rng: &mut Rng) {
        let mut for_names = Rng::new(rng.next());
        let kind = for_names.below(4);
        let mut names = |names: &Names| match kind {
            0 => names.synced.clone(),
            1 => names.now(),
            2 => {
                let mut left = 1 + for_names.below(names.since.len() as u64 + 1);
                names.with(|| {
                    left = left.saturating_sub(1);
                    left > 0
                })
            }
            _ => names.with(|| for_names.below(2) == 0),
        };
        let same = (rng.below(2) == 0).then(|| Mixture::draw(rng));
        let mut put = |number| {
            let (now, synced) = &self.files[&number];
            same.unwrap_or_else(|| Mixture::draw(rng)).of(now, synced, rng)
        };
        self.lay_out(Path::new(""), to, &mut names, &mut put);
    }

    fn lay_out(
        &self,
        below: &Path,
        to: &Path,
        names: &mut dyn FnMut(&Names) -> BTreeMap<OsString, Node>,
        put: &mut dyn FnMut(u64) -> Vec<u8>,
    ) {
        fs::create_dir_all(to).unwrap();
        for (name, node) in self.directories.get(below).map(&mut *names).unwrap_or_default() {
            let to = to.join(AsRef::<OsStr>::as_ref(&name));
            match node {
                Node::File(number) => fs::write(to, put(number)).unwrap(),
                Node::Directory(path) => self.lay_out(&path, &to, names, put),
            }
        }
    }
}

/// Which sectors of a file reached the disk.
#[derive(Debug, Clone, Copy)]
struct Mixture {
    /// Of 64.
    new: u64,
    /// Sectors that go together.
    grain: usize,
    /// How often, of 64, the next sectors share the fate of those before.
    runs: u64,
}

impl Mixture {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            new: [0, 2, 8, 32, 56, 62, 64][rng.below(7) as usize],
            grain: [1, 1, PAGE][rng.below(3) as usize],
            runs: [0, 0, 48, 62][rng.below(4) as usize],
        }
    }

    fn of(self, now: &[u8], synced: &Synced, rng: &mut Rng) -> Vec<u8> {
        let old = synced.bytes.as_deref().unwrap_or_default();
        let len = match rng.below(8) {
            _ if old.len() == now.len() && !synced.emptied => now.len(),
            0 => rng.below(now.len() as u64 / SECTOR as u64 + 1) as usize * SECTOR,
            1 => old.len(),
            _ => now.len(),
        };
        let mut bytes = vec![0; len];
        let mut copy = |from: &[u8], at: usize, end: usize| {
            let end = end.min(from.len());
            if at < end {
                bytes[at..end].copy_from_slice(&from[at..end]);
            }
        };
        let mut is_new = rng.below(64) < self.new;
        for at in (0..len).step_by(self.grain * SECTOR) {
            let end = (at + self.grain * SECTOR).min(len);
            if rng.below(64) >= self.runs {
                is_new = rng.below(64) < self.new;
            }
            if is_new {
                copy(now, at, end);
            } else if !synced.emptied || rng.below(2) == 0 {
                copy(old, at, end);
            }
        }
        bytes
    }
}
