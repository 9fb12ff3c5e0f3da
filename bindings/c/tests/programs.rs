//! The library as it is installed: what it exports, and programs in C and C++ that are compiled against it and run.
#![allow(unsafe_code)] // Loads the library, and calls what it exports.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs;
use std::mem::transmute;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use elision_c::{elision_range, elision_state}; // (So cargo builds the archive, too.)

/// The archive that was built last: with this test, or by itself.
fn archive() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let places = program.ancestors().skip(1).take(2).flat_map(|directory| fs::read_dir(directory).unwrap());
    let files = places.map(|entry| entry.unwrap().path());
    let is_archive = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("libelision_c") && name.ends_with(".a")
    };
    let last = files.filter(is_archive).max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    last.expect("libelision_c.a: cargo build -p elision-c makes it")
}

/// Installs it for a test.
fn install() -> Option<tempfile::TempDir> {
    if Command::new("cc").arg("--version").output().is_err() {
        println!("skipped: there is no C compiler");
        return None;
    }
    let prefix = tempfile::tempdir().unwrap();
    run(Command::new("./install").arg("--prefix").arg(prefix.path()).arg("--built").arg(archive()));
    Some(prefix)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    output
}

/// What pkg-config says, or would.
fn flags(prefix: &Path, kind: &[&str]) -> Vec<String> {
    static NONE: OnceLock<()> = OnceLock::new();
    let mut command = Command::new("pkg-config");
    command.args(kind).arg("elision").env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"));
    let Ok(output) = command.output() else {
        NONE.get_or_init(|| println!("skipped: there is no pkg-config"));
        let prefix = prefix.display();
        return vec![format!("-I{prefix}/include"), format!("-L{prefix}/lib"), "-lelision".into()];
    };
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).split_whitespace().map(str::to_owned).collect()
}

/// The compilers that are here, and what makes them strict.
fn compilers(source: &Path) -> Vec<(&'static str, &'static str)> {
    let known = match source.extension().and_then(|extension| extension.to_str()) {
        Some("c") => [("gcc", "-std=c99"), ("clang", "-std=c99")],
        _ => [("g++", "-std=c++17"), ("clang++", "-std=c++17")],
    };
    let here = |name: &str| Command::new(name).arg("--version").output().is_ok();
    let (found, missing): (Vec<_>, Vec<_>) = known.into_iter().partition(|(name, _)| here(name));
    missing.iter().for_each(|(name, _)| println!("skipped: there is no {name}"));
    found
}

/// Compiles a program with each compiler, against the shared library and the archive, and hands it to `try_out`.
fn each_way(source: &Path, prefix: &Path, mut try_out: impl FnMut(&mut Command)) {
    let library = prefix.join("lib");
    for (compiler, standard) in compilers(source) {
        for archive in [false, true] {
            let program = prefix.join("program");
            let mut compile = Command::new(compiler);
            compile.args([
                standard,
                "-D_POSIX_C_SOURCE=200809L",
                "-O1",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
            ]);
            compile.arg("-o").arg(&program).arg(source);
            if archive {
                // The loader binds lazily: how a program is linked that says nothing.
                compile
                    .args(["-Wl,-z,lazy", "-Wl,-Bstatic"])
                    .args(flags(prefix, &["--cflags", "--libs", "--static"]));
                compile.arg("-Wl,-Bdynamic");
            } else {
                compile.args(flags(prefix, &["--cflags", "--libs"]));
            }
            run(&mut compile);
            try_out(
                Command::new(&program)
                    .env("LD_LIBRARY_PATH", if archive { Path::new("/nowhere") } else { &library }),
            );
        }
    }
}

/// A file of 16 MiB: lines of sixteen bytes.
fn file_in(dir: &Path) -> (PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..1 << 20).flat_map(|line| format!("{line:015}\n").into_bytes()).collect();
    let path = dir.join("records.dat");
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

fn directory() -> tempfile::TempDir {
    match std::env::var_os("ELISION_TEST_DIR") {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

#[test]
fn only_the_functions_of_the_header_are_exported_with_a_version() {
    let Some(prefix) = install() else { return };
    let header = fs::read_to_string("elision.h").unwrap();
    let words = header.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(');
    let declared: BTreeSet<String> = words
        .filter(|word| word.starts_with("elision_"))
        .filter_map(|word| word.split_once('(').map(|(name, _)| name.to_owned()))
        .collect();
    assert!(declared.len() > 25, "{declared:?}");
    let Ok(nm) = Command::new("nm")
        .args(["--dynamic", "--defined-only"])
        .arg(prefix.path().join("lib/libelision.so"))
        .output()
    else {
        return println!("skipped: there is no nm");
    };
    let exported: BTreeSet<String> = text(&nm.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| *name != "ELISION_0.1") // The version itself.
        .map(|name| {
            name.strip_suffix("@@ELISION_0.1").unwrap_or_else(|| panic!("exported: {name}")).to_owned()
        })
        .collect();
    assert_eq!(exported, declared);
}

#[test]
fn the_example_in_c_edits_a_file() {
    let Some(prefix) = install() else { return };
    let dir = directory();
    each_way(Path::new("examples/edit.c"), prefix.path(), |program| {
        let (path, mut bytes) = file_in(dir.path());
        let printed = text(&run(program.arg(&path).arg("5000000")).stdout);
        bytes[5_000_000] ^= 1;
        assert!(fs::read(&path).unwrap() == bytes);
        assert!(printed.ends_with(&format!(" of {}\n", bytes.len())), "{printed}");
        if defers(&path) {
            // (The kernel loads some cached pages around.)
            assert!(printed.starts_with("0 to 49"), "{printed}");
            assert!(printed.contains("\n4997120 to 5001216: altered\n"), "{printed}");
            assert!(printed.contains("deferred 16777216, elided 16769024 of"), "{printed}");
        }
        // Errors are errno.
        let output = program.arg("too many").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
    });
}

/// Does a read in this place defer? If not, the programs' cannot either.
fn defers(path: &Path) -> bool {
    let deferred = || elision::stats::snapshot().deferred_bytes;
    let before = deferred();
    drop(elision::read(path).unwrap());
    if deferred() == before {
        println!("skipped: nothing is deferred here: {:?}", elision::stats::snapshot().declined);
    }
    deferred() != before
}

#[test]
fn the_example_in_cpp_counts_lines() {
    let Some(prefix) = install() else { return };
    let dir = directory();
    let (path, _) = file_in(dir.path());
    each_way(Path::new("examples/count.cpp"), prefix.path(), |program| {
        assert_eq!(text(&run(program.arg(&path)).stdout), "1048576\n");
    });
}

#[test]
fn the_snippets_of_the_readme_do_what_they_say() {
    let Some(prefix) = install() else { return };
    let dir = directory();
    let mut count = 0;
    for readme in ["README.md", "../../README.md"] {
        let readme = fs::read_to_string(readme).unwrap();
        for rest in readme.split("```c\n").skip(1) {
            let mut program = rest.split("```").next().unwrap().to_owned();
            if !program.contains("main(") {
                let body = program.replace('\n', "\n    ");
                program = format!(
                    "#include <elision.h>\n#include <string.h>\nint main(void)\n{{\n    {body}\n}}\n"
                );
            }
            let source = dir.path().join("snippet.c");
            fs::write(&source, program).unwrap();
            each_way(&source, prefix.path(), |program| {
                let (path, mut bytes) = file_in(dir.path());
                run(program.current_dir(dir.path()));
                bytes[4096..4100].copy_from_slice(b"paid");
                assert!(fs::read(&path).unwrap() == bytes);
            });
            count += 1;
        }
    }
    assert_eq!(count, 2);
}

/// The helpers' parents, of which a program that defers has one.
fn supervisors() -> usize {
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let children = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    let name = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    children.map(|pids| pids.split_whitespace().filter(|pid| name(pid) == "elision-watch\n").count()).sum()
}

/// A big file is read by the crate in this program, and by the library.
fn both_read(crate_first: bool) {
    let Some(prefix) = install() else { return };
    let library = CString::new(prefix.path().join("lib/libelision.so").into_os_string().into_vec()).unwrap();
    // SAFETY: the library is loaded, and what it exports has the types of its header.
    let (read, ranges) = unsafe {
        let library = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        let function = |name: &CStr| {
            let found = libc::dlsym(library, name.as_ptr());
            assert!(!found.is_null(), "{name:?}");
            found
        };
        (
            transmute::<*mut c_void, extern "C" fn(*const c_char) -> *mut c_void>(function(c"elision_read")),
            transmute::<*mut c_void, extern "C" fn(*const c_void, *mut elision_range, usize) -> isize>(
                function(c"elision_buffer_ranges"),
            ),
        )
    };
    let dir = directory();
    let (path, bytes) = file_in(dir.path());
    let by_crate = || {
        let buffer = elision::read(&path).unwrap();
        assert!(*buffer == bytes);
        buffer
    };
    let by_library = || {
        let buffer = read(CString::new(path.as_os_str().as_bytes()).unwrap().as_ptr());
        assert!(!buffer.is_null());
        buffer
    };
    let (of_crate, of_library) = if crate_first {
        let first = by_crate();
        (first, by_library())
    } else {
        let first = by_library();
        (by_crate(), first)
    };
    let is_deferred = of_crate.ranges().iter().any(|(_, state)| *state != elision::PageState::Plain);
    if !is_deferred {
        println!("skipped: nothing is deferred here: {:?}", elision::stats::snapshot().declined);
    }
    let mut first = elision_range { start: 0, end: 0, state: elision_state::ELISION_PLAIN };
    assert!(ranges(of_library, &mut first, 1) > 0);
    assert_eq!(first.state != elision_state::ELISION_PLAIN, is_deferred);
    assert_eq!(supervisors(), usize::from(is_deferred));
}

#[test]
fn the_crate_serves_the_library() {
    both_read(true);
}

#[test]
fn the_library_serves_the_crate() {
    both_read(false);
}

/// Every function, once as it should be called and once as it should not.
#[test]
fn every_function_does_what_the_header_says() {
    let Some(prefix) = install() else { return };
    let dir = directory();
    let header = fs::read_to_string("elision.h").unwrap();
    let source = fs::read_to_string("tests/calls.c").unwrap();
    for name in header
        .split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(')
        .filter(|word| word.ends_with('('))
    {
        assert!(source.contains(name), "tests/calls.c does not call {name}…)");
    }
    each_way(Path::new("tests/calls.c"), prefix.path(), |program| {
        let (path, _) = file_in(dir.path());
        let printed = text(&run(program.arg(&path)).stdout);
        assert_eq!(printed, "all is well\n");
    });
}
