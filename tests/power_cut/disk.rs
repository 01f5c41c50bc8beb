//! A model of a disk. It tracks what a program can rely on at any moment: the content of each file
//! that its last sync covered, and the synced names of each directory. From this it derives a state
//! that a power cut may leave: each sector has its synced content or its content in memory, and any
//! subset of the unsynced changes of names has happened.

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
    /// A file, by a unique number: its inode number while it exists.
    File(u64),
    /// A directory, by its path below the root.
    Directory(PathBuf),
}

/// A change of a name that no sync has covered yet.
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
    /// The number of changes before those in `since`.
    applied: usize,
}

impl Names {
    /// The synced names, with those of the later changes for which `happened` returns true.
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

/// The state of a file on the disk.
#[derive(Debug, Clone, Default)]
struct Synced {
    /// `None` if it was never synced: then not even its length is known.
    bytes: Option<Vec<u8>>,
    /// Whether the file was emptied since the sync.
    emptied: bool,
}

#[derive(Debug)]
enum Memory {
    File(File),
    /// The content of a file that a killed process had removed.
    Removed(Vec<u8>),
}

impl Memory {
    fn read(&self) -> Vec<u8> {
        match self {
            Self::Removed(bytes) => bytes.clone(),
            Self::File(file) => {
                let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
                let mut read = 0;
                // The file may be emptied meanwhile.
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
    /// The content that the running syncs cover.
    syncing: HashMap<(ThreadId, u64), Vec<u8>>,
    syncing_names: HashMap<(ThreadId, PathBuf), usize>,
}

/// The disk state of the directory `root`.
pub(crate) struct Disk {
    root: PathBuf,
    state: Mutex<State>,
}

impl Disk {
    /// A disk on which the current content is synced.
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        let mut state = State::default();
        let mut files = HashMap::new();
        load(root, Path::new(""), &mut state, &mut files);
        for (memory, synced) in state.files.values_mut() {
            synced.bytes = Some(memory.read());
        }
        Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) })
    }

    /// The disk after the process was killed: `root` has the content of `image`, and the synced
    /// state is that of `image`.
    pub(crate) fn after_kill(root: &Path, image: &Image) -> Arc<Self> {
        let mut state = State::default();
        let mut paths = HashMap::new();
        load(root, Path::new(""), &mut state, &mut paths);
        // Maps the old numbers of the files to their new ones.
        let mut numbers = HashMap::new();
        image.walk(Path::new(""), &mut |path, number| {
            numbers.insert(number, paths[path]);
        });
        for (number, (bytes, synced)) in &image.files {
            // Above all inode numbers.
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
        state.directories = image.directories.clone();
        for names in state.directories.values_mut() {
            names.synced.values_mut().for_each(renumber);
            names.since.iter_mut().for_each(|change| match change {
                Change::Make(_, node) | Change::Rename(_, _, node) => renumber(node),
                Change::Remove(_) => {}
            });
        }
        Arc::new(Self { root: root.to_owned(), state: Mutex::new(state) })
    }

    /// Installs this disk as the observer of the library, in place of an earlier one. Each sync
    /// yields the processor `yields` times, so that other threads work while it runs.
    pub(crate) fn watch(self: &Arc<Self>, yields: u32) {
        let disk = self.clone();
        observe::observe(Some(Arc::new(move |step| {
            disk.record(step);
            if matches!(step, Step::Syncing(_) | Step::SyncingNames(_)) {
                (0..yields).for_each(|_| std::thread::yield_now());
            }
        })));
    }

    /// The directory below the root, and the name; `None` if the path is not below the root.
    fn name_below_root(&self, path: &Path) -> Option<(PathBuf, OsString)> {
        let below = path.strip_prefix(&self.root).ok()?;
        Some((below.parent()?.to_owned(), below.file_name()?.to_owned()))
    }

    fn record(&self, step: Step<'_>) {
        let thread = std::thread::current().id();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let names =
            |state: &mut State, path: &Path, change: &dyn Fn(OsString, &Names) -> Change| {
                let Some((directory, name)) = self.name_below_root(path) else { return };
                let Some(names) = state.directories.get_mut(&directory) else { return };
                let change = change(name, names);
                names.since.push(change);
            };
        match step {
            Step::Created(path) => {
                if self.name_below_root(path).is_none() {
                    return;
                }
                // Another thread may remove a new file at once, if its creator seems to be dead.
                let Ok(file) = File::open(path) else { return };
                let number = file.metadata().unwrap().ino();
                state.files.insert(number, (Memory::File(file), Synced::default()));
                names(state, path, &|name, _| Change::Make(name, Node::File(number)));
            }
            Step::DirectoryCreated(path) => {
                let Some((directory, name)) = self.name_below_root(path) else { return };
                let below = directory.join(name);
                state.directories.entry(below.clone()).or_default();
                names(state, path, &|name, _| Change::Make(name, Node::Directory(below.clone())));
            }
            Step::Removing(path) => names(state, path, &|name, _| Change::Remove(name)),
            Step::Renaming(from, to) => {
                let Some((_, from)) = self.name_below_root(from) else { return };
                names(state, to, &|to, names| {
                    let node = names.now().remove(&from).expect("a renamed file exists");
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

    /// Whether the directory `below`, its names and the contents of its files are synced.
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

    /// Simulates write-back by the system at any time: some sectors and names reach the disk.
    pub(crate) fn write_back(&self, rng: &mut Rng) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mixture = Mixture::draw(rng);
        // Sorted, because the order of a hash map is not reproducible from a seed.
        let mut numbers: Vec<u64> = state.files.keys().copied().collect();
        numbers.sort_unstable();
        // The content that a running sync will record would be older than this.
        let syncing: HashSet<u64> = state.syncing.keys().map(|(_, number)| *number).collect();
        numbers.retain(|number| rng.below(3) == 0 && !syncing.contains(number));
        for number in numbers {
            let Some((memory, synced)) = state.files.get_mut(&number) else { continue };
            let now = memory.read();
            let mut bytes = mixture.of(&now, synced, rng);
            // The length reaches the disk with the first sector.
            bytes.resize(now.len(), 0);
            *synced = Synced { bytes: Some(bytes), emptied: false };
        }
        for names in state.directories.values_mut() {
            names.sync_until(names.applied + rng.below(names.since.len() as u64 + 1) as usize);
        }
    }

    /// The current content of memory and disk. Syncs and changes of names wait meanwhile, so the
    /// image is a state of one moment: bytes that other threads store during the read could also
    /// have been stored before it, unsynced. `inspect` is called before and after.
    pub(crate) fn image<T>(&self, inspect: impl Fn() -> T) -> (Image, T, T) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inspect();
        let read = |(number, (memory, synced)): (&u64, &(Memory, Synced))| {
            (*number, (memory.read(), synced.clone()))
        };
        let files = state.files.iter().map(read).collect();
        let after = inspect();
        (Image { files, directories: state.directories.clone() }, before, after)
    }
}

impl State {
    /// Drops the files that have no name now, and can have none after a power cut.
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

/// Adds the content of a directory to `state`, and the number of each file to `files`.
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

/// The content of memory and disk at one moment.
#[derive(Debug)]
pub(crate) struct Image {
    files: HashMap<u64, (Vec<u8>, Synced)>,
    directories: BTreeMap<PathBuf, Names>,
}

impl Image {
    /// Visits all files that have a name.
    fn walk(&self, below: &Path, visit: &mut dyn FnMut(&Path, u64)) {
        for (name, node) in self.directories.get(below).map(Names::now).unwrap_or_default() {
            match node {
                Node::File(number) => visit(&below.join(name), number),
                Node::Directory(path) => self.walk(&path, visit),
            }
        }
    }

    /// The size of the files in the directory `below`, in bytes.
    pub(crate) fn bytes_below(&self, below: &Path) -> u64 {
        let mut bytes = 0;
        self.walk(below, &mut |_, number| bytes += self.files[&number].0.len() as u64);
        bytes
    }

    /// Writes to `to` the content after a kill of the process at this moment.
    pub(crate) fn kill(&self, to: &Path) {
        let put = |number| self.files[&number].0.clone();
        self.write_image(Path::new(""), to, &mut |names| names.now(), &mut |number| put(number));
    }

    /// Writes to `to` a content that a power cut at this moment may leave.
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
        self.write_image(Path::new(""), to, &mut names, &mut put);
    }

    fn write_image(
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
                Node::Directory(path) => self.write_image(&path, &to, names, put),
            }
        }
    }
}

/// Which sectors of a file reached the disk.
#[derive(Debug, Clone, Copy)]
struct Mixture {
    /// The share of sectors that reached the disk, of 64.
    new: u64,
    /// The number of sectors that are written together.
    grain: usize,
    /// How often, of 64, the next sectors get the same result as those before.
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
