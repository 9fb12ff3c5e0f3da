//! The order of the layers, and the rules for code that runs in the helper, checked in the sources of all crates.
//!
//! What is only compiled for tests is not looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// Crates, from the bottom up: one may only name those before it.
const CRATES: [&[&str]; 5] = [
    &["elision-sys"],
    &["elision-core"],
    &["elision", "elision-preload"],
    &["elision-cli"],
    &["elision-bench"],
];

/// Folders of a crate, from the bottom up: a file may only import what is in its own or in one before it. Files that are in none of them are
/// below all of them; `lib.rs` may import all.
const FOLDERS: [(&str, &[&str]); 2] = [
    ("elision-core", &["shared", "helper", "supervisor", "client"]),
    ("elision-preload", &["abi", "state", "wrap"]),
];

/// Code that the helper runs: folders and files of `elision-core`.
const HELPERS: [&str; 3] = ["helper/", "shared/", "supervisor/"];

/// Methods that panic when they are told what is not so.
const PANICS: [&str; 9] = [
    "unwrap",
    "expect",
    "unwrap_err",
    "expect_err",
    "split_at",
    "split_at_mut",
    "copy_from_slice",
    "clone_from_slice",
    "copy_within",
];

/// Macros that panic, allocate, or have thread-local storage.
const MACROS: [&str; 15] = [
    "panic",
    "assert",
    "assert_eq",
    "assert_ne",
    "debug_assert",
    "debug_assert_eq",
    "debug_assert_ne",
    "unreachable",
    "todo",
    "unimplemented",
    "format",
    "vec",
    "println",
    "eprintln",
    "thread_local",
];

/// What a file names, and what in it is against the rules of the helper.
#[derive(Default)]
struct Look {
    /// Paths, as they are written.
    paths: BTreeSet<Vec<String>>,
    /// Modules that it declares.
    modules: BTreeSet<String>,
    /// Names that it exports of others, with their paths.
    exports: BTreeMap<String, Vec<String>>,
    faults: Vec<String>,
    /// In how many modules within the file it is looked.
    depth: usize,
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    use quote::ToTokens;
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        let is_cfg = attribute.path().is_ident("cfg") && text.contains("test") && !text.contains("not");
        is_cfg || attribute.path().is_ident("test")
    })
}

impl Look {
    fn at(text: &str) -> Look {
        let mut look = Look::default();
        look.visit_file(&syn::parse_file(text).expect("Rust"));
        look
    }

    /// A path, as it would be written at the top of the file.
    fn name(&mut self, path: Vec<String>) {
        let within = path.iter().take(self.depth).take_while(|first| *first == "super").count();
        self.paths.insert(path[within..].to_vec());
    }

    fn use_tree(&mut self, before: &[String], tree: &syn::UseTree, public: bool) {
        let with = |name: &syn::Ident| before.iter().cloned().chain([name.to_string()]).collect::<Vec<_>>();
        let (path, name) = match tree {
            syn::UseTree::Path(path) => return self.use_tree(&with(&path.ident), &path.tree, public),
            syn::UseTree::Group(group) => {
                return group.items.iter().for_each(|tree| self.use_tree(before, tree, public));
            }
            syn::UseTree::Name(name) if name.ident == "self" => (before.to_vec(), None),
            syn::UseTree::Name(name) => (with(&name.ident), Some(name.ident.to_string())),
            syn::UseTree::Rename(name) => (with(&name.ident), Some(name.rename.to_string())),
            syn::UseTree::Glob(_) => (before.to_vec(), None),
        };
        if let Some(name) = name.filter(|_| public) {
            self.exports.insert(name, path.clone());
        }
        self.name(path);
    }

    /// Paths from the root of the crate in what a macro is given.
    fn tokens(&mut self, tokens: proc_macro2::TokenStream) {
        use proc_macro2::TokenTree::*;
        let mut path: Vec<String> = Vec::new();
        let mut joined = false;
        for token in tokens {
            match token {
                Group(group) => self.tokens(group.stream()),
                Ident(name) if joined && !path.is_empty() => path.push(name.to_string()),
                Ident(name) => {
                    self.name(std::mem::replace(&mut path, vec![name.to_string()]));
                }
                Punct(punct) if punct.as_char() == ':' => {
                    joined = true;
                    continue;
                }
                _ => {
                    self.name(std::mem::take(&mut path));
                }
            }
            joined = false;
        }
        self.name(path);
    }
}

impl<'a> Visit<'a> for Look {
    fn visit_item(&mut self, item: &'a syn::Item) {
        use syn::Item::*;
        let attributes = match item {
            Const(item) => &item.attrs,
            Enum(item) => &item.attrs,
            Fn(item) => &item.attrs,
            ForeignMod(item) => &item.attrs,
            Impl(item) => &item.attrs,
            Macro(item) => &item.attrs,
            Mod(item) => &item.attrs,
            Static(item) => &item.attrs,
            Struct(item) => &item.attrs,
            Trait(item) => &item.attrs,
            Type(item) => &item.attrs,
            Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if is_test(attributes) {
            return;
        }
        match item {
            Mod(module) if module.content.is_none() => {
                self.modules.insert(module.ident.to_string());
            }
            Use(item) => {
                let public = !matches!(item.vis, syn::Visibility::Inherited);
                self.use_tree(&[], &item.tree, public);
            }
            Mod(_) => {
                self.depth += 1;
                visit::visit_item(self, item);
                self.depth -= 1;
            }
            _ => visit::visit_item(self, item),
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        if !is_test(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_attribute(&mut self, _: &'a syn::Attribute) {}

    fn visit_visibility(&mut self, _: &'a syn::Visibility) {}

    fn visit_item_const(&mut self, item: &'a syn::ItemConst) {
        // (What has no name is evaluated by the compiler: it may panic.)
        if item.ident != "_" {
            visit::visit_item_const(self, item);
        }
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        self.name(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_expr(&mut self, expression: &'a syn::Expr) {
        match expression {
            syn::Expr::Index(_) => self.faults.push("indexes".into()),
            syn::Expr::MethodCall(call) if PANICS.iter().any(|name| call.method == name) => {
                self.faults.push(format!("calls {}", call.method));
            }
            // (A type or a constant of libc's is no function: the one is no expression, the other in capitals.)
            syn::Expr::Path(path)
                if path.path.segments.first().is_some_and(|first| first.ident == "libc") =>
            {
                let name = path.path.segments.last().map(|last| last.ident.to_string()).unwrap_or_default();
                if name.starts_with(|first: char| first.is_ascii_lowercase()) {
                    self.faults.push(format!("uses libc's {name}"));
                }
            }
            _ => (),
        }
        visit::visit_expr(self, expression);
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        if let Some(name) = MACROS.iter().find(|name| call.path.is_ident(name)) {
            self.faults.push(format!("calls {name}!"));
        }
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}

impl Look {
    /// What is against the rules of the helper.
    fn faults_of_helper(&self) -> Vec<String> {
        let outside = |path: &&Vec<String>| {
            matches!(
                path.first().map(String::as_str),
                Some("std" | "alloc" | "Box" | "Vec" | "String" | "ToString")
            )
        };
        let outside = self.paths.iter().filter(outside).map(|path| format!("names {}", path.join("::")));
        self.faults.iter().cloned().chain(outside).collect()
    }
}

/// The files of a crate, by path below `src/`.
struct Crate {
    name: String,
    files: BTreeMap<String, Look>,
}

impl Crate {
    fn read(name: &str) -> Crate {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path: PathBuf = entry.expect("an entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).expect("text");
                    let below = path.strip_prefix(&root).expect("below").to_str().expect("UTF-8").to_owned();
                    files.insert(below, Look::at(&text));
                }
            }
        }
        Crate { name: name.into(), files }
    }

    fn of(name: &str, files: &[(&str, &str)]) -> Crate {
        let files = files.iter().map(|&(file, text)| (file.to_owned(), Look::at(text))).collect();
        Crate { name: name.into(), files }
    }

    /// The file that is a module.
    fn file_of(&self, module: &[String]) -> Option<String> {
        let path = module.join("/");
        let names = if path.is_empty() {
            vec!["lib.rs".to_owned(), "main.rs".to_owned()]
        } else {
            vec![format!("{path}.rs"), format!("{path}/mod.rs")]
        };
        names.into_iter().find(|name| self.files.contains_key(name))
    }

    /// The file of what is at a path from the root of the crate, wherever it is exported.
    fn resolve(&self, path: &[String], depth: usize) -> Option<String> {
        let known = (0..=path.len()).rev().find(|&len| self.file_of(&path[..len]).is_some())?;
        let file = self.file_of(&path[..known])?;
        let exported = path.get(known).and_then(|name| self.files[&file].exports.get(name));
        match exported.filter(|_| depth < 5) {
            Some(further) => {
                let further = self.rooted(&path[..known], &file, further)?;
                self.resolve(&further, depth + 1)
            }
            None => Some(file),
        }
    }

    /// A path that stands in the file of a module, from the root of the crate. `None`: of another crate, or of the file itself.
    fn rooted(&self, module: &[String], file: &str, path: &[String]) -> Option<Vec<String>> {
        let mut at = module.to_vec();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" if path.len() == 1 => return None,
            "crate" => (at, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|first| first == "super") {
                    at.pop();
                    rest = &rest[1..];
                }
            }
            first if self.files[file].modules.contains(first) => (),
            _ => return None,
        }
        at.extend_from_slice(rest);
        // (The one module of all crates whose file has another name.)
        at.iter_mut().take(1).filter(|first| *first == "platform").for_each(|first| *first = "linux".into());
        Some(at)
    }

    /// The files that a file imports.
    fn imports(&self, file: &str) -> BTreeSet<String> {
        let stem = file.trim_end_matches(".rs").trim_end_matches("/mod");
        let module: Vec<String> = if matches!(stem, "lib" | "main") {
            Vec::new()
        } else {
            stem.split('/').map(str::to_owned).collect()
        };
        let paths = self.files[file].paths.iter();
        let all = paths.filter_map(|path| self.resolve(&self.rooted(&module, file, path)?, 0));
        all.filter(|other| other != file).collect()
    }

    /// Imports against the order of layers.
    fn against_the_order(&self) -> Vec<String> {
        let folders =
            FOLDERS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, folders)| *folders);
        let rank = |file: &str| match file.split_once('/') {
            Some((folder, _)) => folders.iter().position(|known| *known == folder).map_or(0, |at| at + 1),
            None => 0,
        };
        let level = |name: &str| CRATES.iter().position(|level| level.contains(&name));
        let mut found = Vec::new();
        for (file, look) in &self.files {
            for other in
                self.imports(file).into_iter().filter(|other| file != "lib.rs" && rank(other) > rank(file))
            {
                found.push(format!("{}/{file} imports {other}, which is above it", self.name));
            }
            let crates =
                look.paths.iter().filter_map(|path| path.first()).map(|first| first.replace('_', "-"));
            for other in crates.collect::<BTreeSet<_>>() {
                if other != self.name && level(&other).is_some_and(|at| Some(at) >= level(&self.name)) {
                    found.push(format!("{}/{file} names {other}, which is not below it", self.name));
                }
            }
        }
        found
    }

    /// Files that import each other, directly or round about.
    fn circles(&self) -> Vec<String> {
        let imports: BTreeMap<_, _> =
            self.files.keys().map(|file| (file.as_str(), self.imports(file))).collect();
        let reaches = |from: &str, to: &str| {
            let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(file) = next.pop() {
                next.extend(imports[file].iter().map(String::as_str).filter(|other| seen.insert(*other)));
            }
            seen.contains(to)
        };
        let mut found = Vec::new();
        for (file, others) in &imports {
            let tied: Vec<_> =
                others.iter().filter(|other| reaches(other, file)).map(String::as_str).collect();
            if !tied.is_empty() {
                found.push(format!("{}/{file} imports {}", self.name, tied.join(", ")));
            }
        }
        found
    }

    /// Violations of the rules for code that runs in the helper.
    fn faults_of_helper(&self) -> Vec<String> {
        let files =
            self.files.iter().filter(|(file, _)| HELPERS.iter().any(|folder| file.starts_with(folder)));
        files
            .flat_map(|(file, look)| {
                look.faults_of_helper().into_iter().map(move |fault| format!("{file} {fault}"))
            })
            .collect()
    }
}

fn all() -> impl Iterator<Item = Crate> {
    CRATES.iter().flat_map(|level| level.iter()).map(|name| Crate::read(name))
}

#[test]
fn no_file_imports_what_is_above_it() {
    let found: Vec<_> = all().flat_map(|files| files.against_the_order()).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn no_file_imports_a_file_that_imports_it() {
    let found: Vec<_> = all().flat_map(|files| files.circles()).collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_helper_keeps_its_rules() {
    let found = Crate::read("elision-core").faults_of_helper();
    assert!(found.is_empty(), "{found:#?}");
}

/// Each check finds what it is for, and nothing in what only tests compile.
#[test]
fn what_breaks_a_rule_is_found() {
    let one = |file: &str, text: &str| {
        Crate::of("elision-core", &[(file, text), ("client/a.rs", ""), ("shared/b.rs", "")])
    };
    for text in [
        "use crate::client::a;",
        "use super::super::client::a::{self};",
        "fn f() { crate::client::a::g() }",
        "fn f() { m!(x, crate::client::a::g()) }",
        "use elision::read;",
    ] {
        assert_eq!(one("helper/x.rs", text).against_the_order().len(), 1, "{text}");
    }
    for text in [
        "use crate::shared::b::*;",
        "#[cfg(test)] mod tests { use crate::client::a; }",
        "use elision_sys::file;",
    ] {
        assert_eq!(one("helper/x.rs", text).against_the_order(), [""; 0], "{text}");
    }
    let circle = |root: &str, a: &str, b: &str| {
        Crate::of("elision-core", &[("lib.rs", root), ("a/mod.rs", a), ("a/b.rs", b)]).circles().len()
    };
    assert_eq!(circle("", "mod b; fn f() { b::g() }", "use crate::a::h;"), 2);
    assert_eq!(circle("", "mod b; fn f() { b::g() }", ""), 0);
    assert_eq!(circle("", "pub mod b;", "use crate::a;"), 0);
    assert_eq!(circle("", "mod b; fn f() { b::g() }", "mod c { use super::x; } fn x() { c::y() }"), 0);
    assert_eq!(circle("mod a; pub use a::b::g;", "mod b; use crate::g;", "use super::*;"), 2);
    for text in [
        "use std::sync::Mutex;",
        "fn f() { unsafe { libc::getpid() }; }",
        "fn f(a: &[u8]) -> u8 { a[0] }",
        "fn f(a: Option<u8>) -> u8 { a.unwrap() }",
        "fn f() { unreachable!() }",
        "fn f() { let _ = Box::new(1); }",
    ] {
        assert_eq!(one("helper/x.rs", text).faults_of_helper().len(), 1, "{text}");
    }
    for text in [
        "fn f() -> i32 { libc::F_RDLCK }",
        "fn f(time: libc::timespec) -> libc::timespec { libc::timespec { ..time } }",
        "#[cfg(test)] mod tests { fn f() { std::process::exit([1][0]) } }",
        "fn f(a: u8) { match a { #[cfg(test)] 0 => panic!(), _ => () } }",
    ] {
        assert_eq!(one("helper/x.rs", text).faults_of_helper(), [""; 0], "{text}");
    }
}
