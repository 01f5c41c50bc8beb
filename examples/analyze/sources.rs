//! The files to analyse: all `.rs` files below one or more roots, in a fixed order.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use walkdir::{DirEntry, WalkDir};

use crate::{Failure, Result};

/// One file to analyse.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Its name in the report: the path from its root, after the name of the package if there are
    /// several.
    pub(crate) name: String,
    /// Index of its package in [`Input::packages`].
    pub(crate) package: usize,
}

/// The unit of the report's sums: a crate with its version, or a directory directly below the given
/// one.
pub(crate) struct Package {
    /// The name in the report, such as `syn-3.0.9`.
    pub(crate) label: String,
    /// The name without the version. Versions of one crate are alike, so they are not compared.
    pub(crate) name: String,
}

/// All sources to analyse.
pub(crate) struct Input {
    /// A description for the head of the report.
    pub(crate) description: String,
    pub(crate) packages: Vec<Package>,
    /// Sorted by package, then by path.
    pub(crate) sources: Vec<Source>,
}

impl Input {
    /// The sources below `dir`, grouped by the directories directly below it.
    pub(crate) fn directory(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Failure::new(format!("{} is not a directory", dir.display())));
        }
        let mut input = Self {
            description: dir.display().to_string(),
            packages: Vec::new(),
            sources: Vec::new(),
        };
        let mut found = Vec::new();
        for path in rust_files(dir)? {
            let name = relative(&path, dir);
            // Files directly in `dir` belong to the package ".".
            let top = name.split_once('/').map_or(".", |(top, _)| top).to_owned();
            found.push((top, name, path));
        }
        found.sort();
        for (top, name, path) in found {
            if input.packages.last().is_none_or(|last| last.label != top) {
                input.packages.push(Package { name: top.clone(), label: top });
            }
            input.sources.push(Source { path, name, package: input.packages.len() - 1 });
        }
        Ok(input)
    }

    /// The sources of the package in the working directory and of all its dependencies, as cargo
    /// lists them.
    pub(crate) fn package_and_dependencies() -> Result<Self> {
        let mut packages = metadata()?.packages;
        packages.sort_by_cached_key(|package| {
            let numbers =
                package.version.split(['.', '-', '+']).map(|part| part.parse::<u64>().ok());
            (package.source.is_some(), package.name.clone(), numbers.collect::<Vec<_>>())
        });
        let own = packages.iter().filter(|p| p.source.is_none()).map(CargoPackage::label);
        let own = own.collect::<Vec<_>>().join(", ");
        let dependencies = packages.iter().filter(|p| p.source.is_some()).count();
        let mut input = Self {
            description: format!("{own} and {dependencies} dependencies"),
            packages: Vec::new(),
            sources: Vec::new(),
        };
        for package in packages {
            let root = package.manifest_path.parent().unwrap_or(Path::new("."));
            let label = package.label();
            for path in rust_files(root)? {
                let name = format!("{label}/{}", relative(&path, root));
                input.sources.push(Source { path, name, package: input.packages.len() });
            }
            input.packages.push(Package { label, name: package.name });
        }
        Ok(input)
    }
}

/// The `.rs` files below `root`, sorted. Leaves out hidden directories, and directories whose
/// `CACHEDIR.TAG` says that their contents can be rebuilt, such as cargo's `target`.
fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let wanted = |entry: &DirEntry| {
        let hidden = || entry.file_name().as_encoded_bytes().starts_with(b".");
        let can_be_rebuilt =
            || entry.file_type().is_dir() && entry.path().join("CACHEDIR.TAG").exists();
        // The root itself is never left out: the user named it.
        entry.depth() == 0 || !hidden() && !can_be_rebuilt()
    };
    let mut files = Vec::new();
    for entry in WalkDir::new(root).sort_by_file_name().into_iter().filter_entry(wanted) {
        let entry =
            entry.map_err(|e| Failure::caused(format!("cannot list {}", root.display()), e))?;
        if entry.file_type().is_file() && entry.path().extension().is_some_and(|ext| ext == "rs") {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// The part of the output of `cargo metadata` that is used.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<CargoPackage>,
}

#[derive(Deserialize)]
struct CargoPackage {
    name: String,
    version: String,
    manifest_path: PathBuf,
    /// The registry or repository of a dependency; none for a local package.
    source: Option<String>,
}

impl CargoPackage {
    fn label(&self) -> String {
        match self.source {
            Some(_) => format!("{}-{}", self.name, self.version),
            None => self.name.clone(),
        }
    }
}

/// Runs `cargo metadata`, first without the network: building this example has downloaded every
/// package except those that only other platforms use, and these are left out.
fn metadata() -> Result<Metadata> {
    let program =
        |name: &str, default: &str| env::var_os(name).unwrap_or_else(|| OsString::from(default));
    let version = output(Command::new(program("RUSTC", "rustc")).arg("-vV"))?;
    let version = String::from_utf8_lossy(&version);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();

    let mut command = Command::new(program("CARGO", "cargo"));
    command.args(["metadata", "--format-version", "1", "--filter-platform", host]);
    // Set by `cargo run`, which may be called from another directory. Otherwise cargo uses the
    // working directory.
    if let Some(dir) = env::var_os("CARGO_MANIFEST_DIR") {
        command.current_dir(dir);
    }
    let json = match output(command.arg("--offline")) {
        Ok(json) => json,
        Err(_) => {
            let online: Vec<OsString> = command.get_args().map(OsString::from).collect();
            let mut again = Command::new(command.get_program());
            again.args(&online[..online.len() - 1]);
            if let Some(dir) = command.get_current_dir() {
                again.current_dir(dir);
            }
            output(&mut again)?
        }
    };
    serde_json::from_slice(&json)
        .map_err(|e| Failure::caused("cannot read the output of cargo metadata", e))
}

/// The standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|e| Failure::caused(format!("cannot run {shown}"), e))?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(Failure::new(format!(
            "{shown} failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )))
    }
}
