//! The source files of the library, parsed, without their tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::spanned::Spanned;

/// A source file of the library.
pub(crate) struct Source {
    /// Relative to `src`.
    pub(crate) path: PathBuf,
    /// Where its items are: `["engine", "index", "slot"]`. Empty for `lib.rs`.
    pub(crate) module: Vec<String>,
    pub(crate) imports: Vec<Import>,
    /// The paths in its code, as written, with their lines; those of two segments and more.
    pub(crate) paths: Vec<(usize, Vec<String>)>,
    /// The first segments of all its paths, also of those of one segment.
    names: BTreeSet<String>,
    /// Its inline modules, relative to it.
    inline_modules: BTreeSet<Vec<String>>,
    /// Lines that are not part of a test.
    pub(crate) lines: Vec<(usize, String)>,
}

/// One name that a `use` brings into a file.
pub(crate) struct Import {
    pub(crate) line: usize,
    /// The path as written, without the name it gets.
    path: Vec<String>,
    name: String,
    /// A name that other files may use by the path of this file.
    is_reexport: bool,
}

impl Source {
    fn parse(root: &Path, path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let file = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let path = path.strip_prefix(root).unwrap().to_owned();
        let mut module: Vec<String> =
            path.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        let mut source = Self {
            path,
            module,
            imports: Vec::new(),
            paths: Vec::new(),
            names: BTreeSet::new(),
            inline_modules: BTreeSet::new(),
            lines: Vec::new(),
        };
        let mut test_lines = BTreeSet::new();
        source.items(&file.items, &[], &mut test_lines);
        let lines = text.lines().enumerate().map(|(i, line)| (i + 1, line.to_owned()));
        source.lines = lines.filter(|(number, _)| !test_lines.contains(number)).collect();
        source
    }

    /// Reads items, which are in the inline module `within` of the file. Items of tests are passed
    /// over.
    fn items(&mut self, items: &[syn::Item], within: &[String], test_lines: &mut BTreeSet<usize>) {
        for item in items {
            if attributes(item).iter().any(is_for_tests) {
                test_lines.extend(item.span().start().line..=item.span().end().line);
                continue;
            }
            match item {
                syn::Item::Use(item) => {
                    assert!(
                        within.is_empty(),
                        "{}: a `use` in an inline module",
                        self.path.display()
                    );
                    let is_reexport = !matches!(item.vis, syn::Visibility::Inherited);
                    self.imports(&item.tree, &mut Vec::new(), is_reexport);
                }
                syn::Item::Mod(module) => {
                    if let Some((_, content)) = &module.content {
                        let inner = [within, &[module.ident.to_string()]].concat();
                        self.inline_modules.insert(inner.clone());
                        self.items(content, &inner, test_lines);
                    }
                }
                item => {
                    self.remove_test_methods(item, test_lines);
                    self.tokens(item.to_token_stream());
                }
            }
        }
    }

    /// Methods that only tests have.
    fn remove_test_methods(&self, item: &syn::Item, test_lines: &mut BTreeSet<usize>) {
        let syn::Item::Impl(block) = item else { return };
        for method in &block.items {
            if let syn::ImplItem::Fn(method) = method
                && method.attrs.iter().any(is_for_tests)
            {
                test_lines.extend(method.span().start().line..=method.span().end().line);
            }
        }
    }

    fn imports(&mut self, tree: &syn::UseTree, path: &mut Vec<String>, is_reexport: bool) {
        let line = tree.span().start().line;
        let mut import = |path: &[String], name: String| {
            self.imports.push(Import { line, path: path.to_vec(), name, is_reexport });
        };
        match tree {
            syn::UseTree::Path(part) => {
                path.push(part.ident.to_string());
                self.imports(&part.tree, path, is_reexport);
                path.pop();
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.imports(tree, path, is_reexport));
            }
            syn::UseTree::Name(name) if name.ident == "self" => {
                import(path, path.last().unwrap().clone());
            }
            syn::UseTree::Name(name) => {
                import(&[path, &[name.ident.to_string()][..]].concat(), name.ident.to_string());
            }
            syn::UseTree::Rename(name) => {
                let own = [name.ident.to_string()];
                let last = if name.ident == "self" { &[][..] } else { &own };
                import(&[path, last].concat(), name.rename.to_string());
            }
            syn::UseTree::Glob(_) => {
                panic!("{}:{line}: a glob hides what is imported", self.path.display())
            }
        }
    }

    /// Collects the paths in code, those in the arguments of macros included.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let (mut line, mut colons, mut after_dot) = (0, 0, false);
        for token in tokens {
            if let TokenTree::Ident(ident) = &token {
                if colons == 2 && !path.is_empty() {
                    path.push(ident.to_string());
                } else {
                    self.end_path(line, std::mem::take(&mut path));
                    // A field or a method is no path.
                    if !after_dot {
                        path.push(ident.to_string());
                        line = ident.span().start().line;
                    }
                }
                (colons, after_dot) = (0, false);
                continue;
            }
            match &token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                token => {
                    self.end_path(line, std::mem::take(&mut path));
                    colons = 0;
                    after_dot = matches!(token, TokenTree::Punct(p) if p.as_char() == '.');
                    if let TokenTree::Group(group) = token {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        self.end_path(line, path);
    }

    fn end_path(&mut self, line: usize, path: Vec<String>) {
        if let Some(first) = path.first() {
            self.names.insert(first.clone());
        }
        if path.len() > 1 {
            self.paths.push((line, path));
        }
    }

    /// The lines of the file, outside of tests, that use something below one of the paths of
    /// another crate.
    pub(crate) fn uses_of(&self, forbidden: &[&str]) -> Vec<usize> {
        let imports = self.imports.iter().map(|import| (import.line, &import.path));
        let paths = self.paths.iter().map(|(line, path)| (*line, path));
        let is_below = |path: &[String]| {
            let path = path.join("::");
            forbidden.iter().any(|f| {
                path.strip_prefix(f).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            })
        };
        imports.chain(paths).filter(|(_, path)| is_below(path)).map(|(line, _)| line).collect()
    }

    pub(crate) fn name(&self) -> String {
        format!("src/{}", self.path.display())
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether the attribute leaves its item out of everything but tests.
fn is_for_tests(attribute: &syn::Attribute) -> bool {
    let text = attribute.meta.to_token_stream().to_string().replace(' ', "");
    text == "cfg(test)" || text.starts_with("cfg(all(test,") || text == "cfg(doctest)"
}

/// All source files of the library.
pub(crate) struct Sources {
    pub(crate) files: Vec<Source>,
    /// The number of the file that a module is in.
    modules: BTreeMap<Vec<String>, usize>,
    /// What a module exports of others: the name, and the path it stands for.
    reexports: BTreeMap<(Vec<String>, String), Vec<String>>,
}

impl Sources {
    pub(crate) fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut paths: Vec<PathBuf> = walkdir::WalkDir::new(&root)
            .into_iter()
            .map(|entry| entry.unwrap().into_path())
            .filter(|path| path.extension().is_some_and(|e| e == "rs"))
            // Files of tests: `tests.rs` beside the code, or a folder `tests`.
            .filter(|path| {
                let below = path.strip_prefix(&root).unwrap().with_extension("");
                !below.iter().any(|part| part == "tests")
            })
            .collect();
        paths.sort();
        let files: Vec<Source> = paths.iter().map(|path| Source::parse(&root, path)).collect();
        assert!(files.len() > 80, "the sources were found");
        let mut modules = BTreeMap::new();
        for (number, file) in files.iter().enumerate().filter(|(_, f)| f.name() != "src/main.rs") {
            modules.insert(file.module.clone(), number);
            for inline in &file.inline_modules {
                modules.insert([&file.module[..], inline].concat(), number);
            }
        }
        let mut sources = Self { files, modules, reexports: BTreeMap::new() };
        for file in &sources.files {
            for import in file.imports.iter().filter(|import| import.is_reexport) {
                if let Some(path) = sources.absolute(&file.module, &import.path) {
                    sources.reexports.insert((file.module.clone(), import.name.clone()), path);
                }
            }
        }
        sources
    }

    /// A path of the library as seen from its root; `None` for one of another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let (mut base, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (module.to_vec(), &path[1..]),
            "super" => (module[..module.len() - 1].to_vec(), &path[1..]),
            first => {
                let child = [module, &[first.to_owned()]].concat();
                if !self.modules.contains_key(&child) {
                    return None;
                }
                (module.to_vec(), path)
            }
        };
        while rest.first().is_some_and(|part| part == "super") {
            base.pop();
            rest = &rest[1..];
        }
        Some([&base, rest].concat())
    }

    /// The file that defines what a path of the library, seen from its root, names.
    fn definer(&self, path: &[String]) -> Option<usize> {
        let mut module = Vec::new();
        for (at, part) in path.iter().enumerate() {
            if let Some(target) = self.reexports.get(&(module.clone(), part.clone())) {
                return self.definer(&[target, &path[at + 1..]].concat());
            }
            let child = [&module[..], std::slice::from_ref(part)].concat();
            if !self.modules.contains_key(&child) {
                break;
            }
            module = child;
        }
        self.modules.get(&module).copied()
    }

    /// The files that file `number` uses, each with a line where it does.
    ///
    /// A name that a file only passes on (`pub use`) is not a use of it: who imports it uses the
    /// file that defines it. It is one if the code of the file has the name too.
    pub(crate) fn uses(&self, number: usize) -> BTreeMap<usize, usize> {
        let file = &self.files[number];
        let mut uses = BTreeMap::new();
        let imports = file.imports.iter();
        let imports = imports
            .filter(|import| !import.is_reexport || file.names.contains(&import.name))
            .map(|import| (import.line, &import.path));
        // `use crate::engine; engine::lifecycle::f()` uses what the whole path leads to.
        let whole = |path: &Vec<String>| {
            let import = file.imports.iter().find(|import| import.name == path[0]);
            import.map_or_else(|| path.clone(), |import| [&import.path[..], &path[1..]].concat())
        };
        let paths: Vec<_> = file.paths.iter().map(|(line, path)| (*line, whole(path))).collect();
        for (line, path) in imports.chain(paths.iter().map(|(line, path)| (*line, path))) {
            if let Some(path) = self.absolute(&file.module, path)
                && let Some(used) = self.definer(&path)
                && used != number
            {
                uses.entry(used).or_insert(line);
            }
        }
        uses
    }
}
