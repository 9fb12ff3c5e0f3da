//! Every way in: a C program that takes each of them, with the drop-in and without; and docs/ENTRANCES.md, which lists
//! them, compared with what the drop-in exports, with what glibc exports, and with the tests that it names.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use object::elf::{FileHeader64, SHT_DYNSYM, STT_FUNC, STT_OBJECT};
use object::read::elf::{FileHeader, Sym};
use object::{Endianness, SymbolIndex};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

/// For tests that have nothing to do with the file system, and need not be run on each.
fn elsewhere() -> bool {
    let named = std::env::var_os("ELISION_TEST_DIR").is_some();
    if named {
        println!("skipped: the same everywhere, and done where ELISION_TEST_DIR is not set");
    }
    named
}

/// What a program says, and how it ends. With `stats`, under the drop-in.
fn said(program: &Path, arguments: &[&str], stats: Option<&Path>) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    if let Some(stats) = stats {
        common::offer_everything(&mut command, stats);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}{}\n", text(&output.stdout), text(&output.stderr), output.status)
}

fn deferred_bytes(stats: &Path) -> u64 {
    common::counter(&std::fs::read_to_string(stats).unwrap_or_default(), "deferred_bytes")
}

/// Runs a case without the drop-in and with it; `Err` says what differs.
fn case(program: &Path, name: &str, defers: bool) -> Result<(), String> {
    let made = directory();
    let (file, stats) = (made.path().join("file"), made.path().join("stats"));
    let arguments = [name, file.to_str().unwrap()];
    let plain = said(program, &arguments, None);
    if plain.contains("CHANGED") || !plain.ends_with("exit status: 0\n") {
        return Err(format!("{name}: not even the program by itself does this right:\n{plain}"));
    }
    let ours = said(program, &arguments, Some(&stats));
    if plain != ours {
        return Err(format!("{name}: without the drop-in\n{plain}{name}: with it\n{ours}"));
    }
    match deferred_bytes(&stats) == 0 && defers {
        true => Err(format!("{name}: nothing was deferred")),
        false => Ok(()),
    }
}

#[test]
fn every_entrance_leaves_what_was_read_as_it_was() {
    let made = directory();
    let program = common::compile(made.path(), "entrances", &["-O1", "-Wextra", "-Werror"]);
    let list = said(&program, &["list"], None);
    let cases: Vec<_> = list
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, defers)| *defers != "status: 0")
        .collect();
    assert!(cases.len() > 40, "{list}");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut wrong = Vec::new();
        while let Some((name, defers)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            wrong.extend(case(&program, name, *defers == "1").err());
        }
        wrong
    };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The constructor of a library that the program is linked with comes before the drop-in's.
#[test]
fn a_library_can_end_it_before_it_begins() {
    if elsewhere() {
        return;
    }
    let made = directory();
    let library = common::compile(made.path(), "entrances", &["-shared", "-fPIC", "-DLIBRARY"]);
    std::fs::rename(library, made.path().join("libearly.so")).unwrap();
    let path = made.path().to_str().unwrap();
    let (search, run) = (format!("-L{path}"), format!("-Wl,-rpath,{path}"));
    let program =
        common::compile(made.path(), "entrances", &[&search, &run, "-Wl,--no-as-needed", "-learly"]);
    let (file, stats) = (made.path().join("file"), made.path().join("stats"));
    let arguments = ["nothing", file.to_str().unwrap()];
    let plain = said(&program, &arguments, None);
    assert!(plain.contains("after nothing: mapped 0, then 0\n"), "{plain}");
    assert_eq!(said(&program, &arguments, Some(&stats)), plain);

    // While we are at it: dlopen looks where its caller says (`run`), and that is still the program.
    let program = common::compile(made.path(), "entrances", &[&run]);
    for stats in [None, Some(stats.as_path())] {
        assert_eq!(said(&program, &["loads", "-"], stats), "found: 1\nexit status: 0\n");
    }
}

#[test]
fn cpp_streams() {
    if elsewhere() {
        return;
    }
    let made = directory();
    let (program, stats) = (made.path().join("streams"), made.path().join("stats"));
    let compiler = Command::new("c++").args(["-O1", "-o"]).arg(&program).arg("tests/c/streams.cpp").output();
    match compiler {
        Err(_) => return println!("skipped: c++ not found"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let file = made.path().join("file");
    let arguments = [file.to_str().unwrap()];
    let plain = said(&program, &arguments, None);
    assert!(plain.ends_with("short\nexit status: 0\n"), "{plain}");
    assert_eq!(said(&program, &arguments, Some(&stats)), plain);
    assert!(deferred_bytes(&stats) > 0, "nothing was deferred");
}

const TABLE: &str = "../../docs/ENTRANCES.md";

/// A row of a table in docs/ENTRANCES.md.
struct Row {
    names: Vec<String>,
    tests: Vec<String>,
    harmless: bool,
}

/// What stands in backticks.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn rows() -> Vec<Row> {
    let text = std::fs::read_to_string(TABLE).expect(TABLE);
    let row = |line: &str| {
        let cells: Vec<_> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
        let [entrance, .., shown] = cells.as_slice() else { panic!("not a row of three cells: {line}") };
        // "(but `name`)" is no entry, and neither is the empty middle cell.
        let entrance = format!("`{}", entrance.split(" (").next().unwrap().trim_end_matches(" |"));
        let row =
            Row { names: quoted(&entrance), tests: quoted(shown), harmless: shown.contains("harmless:") };
        assert!(row.harmless || !row.tests.is_empty(), "neither a test nor a reason: {line}");
        Some(row)
    };
    let rows: Vec<Row> = text.lines().filter_map(row).collect();
    assert!(rows.len() > 80, "only {} rows in {TABLE}", rows.len());
    rows
}

/// Is a system call meant, which is looked at by its number?
fn by_number(name: &str) -> bool {
    name.starts_with("SYS_")
}

/// Functions and variables that a library defines for others, but not those that only its own kin may use.
fn exports(library: &Path) -> BTreeSet<String> {
    let data = std::fs::read(library).unwrap();
    let data = data.as_slice();
    let header = FileHeader64::<Endianness>::parse(data).unwrap();
    let endian = header.endian().unwrap();
    let sections = header.sections(endian, data).unwrap();
    let versions = sections.versions(endian, data).unwrap();
    let symbols = sections.symbols(endian, data, SHT_DYNSYM).unwrap();
    let mut names = BTreeSet::new();
    for (index, symbol) in symbols.iter().enumerate() {
        let kind = symbol.st_type();
        let name = symbol.name(endian, symbols.strings()).unwrap();
        if symbol.is_undefined(endian) || (kind != STT_FUNC && kind != STT_OBJECT) || name.is_empty() {
            continue;
        }
        let private = versions.as_ref().is_some_and(|versions| {
            let version = versions.version(versions.version_index(endian, SymbolIndex(index))).unwrap();
            version.is_some_and(|version| version.name() == b"GLIBC_PRIVATE")
        });
        if !private {
            names.insert(String::from_utf8_lossy(name).into_owned());
        }
    }
    names
}

/// The glibc that this test runs with.
fn glibc() -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .find(|path| path.contains("/libc.so") || path.contains("/libc-2"));
    path.expect("a program that uses glibc").into()
}

/// Names of the families of entrances have one of these in them.
const FAMILIES: &str = "read write open close dup splice tee trunc alloc temp tmpfile free mmap munmap mremap remap \
    protect madvise mlock munlock lockf flock brk fork clone spawn exec system daemon pty send recv fcntl ioctl sync \
    aio lio_ chroot pivot unshare setns prctl ptrace pidfd process_ shm mallinfo mallopt malloc_ fadvise handle_at \
    setuid setgid seteuid setegid setreuid setregid setresuid setresgid initgroups setgroups fsuid fsgid capset \
    dlmopen notify mincore pkey login wordexp backtrace_symbols setsockopt dprintf fputs swapo acct exit memfd lseek fstat \
    fxstat mseal userfault putc getc puts gets putw getw getdelim getline printf scanf setbuf setvbuf setlinebuf \
    perror psig flush seek ftell rewind setpos getpos putpw putgr putsp putsg";

/// No names that have one of these.
const OTHERS: &str = "pthread _nss gnu_get";

fn of_the_families(name: &str) -> bool {
    let has = |list: &str| list.split_whitespace().any(|part| name.contains(part));
    has(FAMILIES) && !has(OTHERS)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| match after.contains('*') {
            true => (0..=rest.len()).any(|skip| matches(after, &rest[skip..])),
            false => rest.ends_with(after),
        }),
    }
}

#[test]
fn what_the_table_calls_handled_is_exported_and_nothing_else() {
    if elsewhere() {
        return;
    }
    let rows = rows();
    let mut handled = BTreeMap::new();
    for row in rows.iter().filter(|row| !row.harmless) {
        for name in &row.names {
            assert!(!name.contains('*'), "{name}: what is handled is named in full");
            assert!(handled.insert(name.as_str(), row).is_none(), "{name} has two rows in {TABLE}");
        }
    }
    let exported = exports(&common::library());
    for name in &exported {
        assert!(
            handled.contains_key(name.as_str()),
            "the drop-in exports {name}, which {TABLE} does not say is handled"
        );
    }
    // Numbers that not every libc has are constants of that file, in capitals.
    let dispatch = std::fs::read_to_string("src/wrap/syscall.rs").unwrap().to_lowercase();
    let lower = |name: &str| name.to_lowercase();
    for name in handled.keys() {
        match by_number(name) {
            true => {
                assert!(
                    says(&dispatch, &lower(name)),
                    "{TABLE} says {name} is handled, but src/wrap/syscall.rs does not"
                )
            }
            false => assert!(
                exported.contains(*name),
                "{TABLE} says {name} is handled, but the drop-in has no such name"
            ),
        }
    }
    // And the other way round.
    for name in dispatch
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("sys_"))
    {
        let known = rows.iter().any(|row| row.names.iter().any(|known| lower(known) == name));
        assert!(known, "src/wrap/syscall.rs looks at {name}, of which {TABLE} says nothing");
    }
}

#[test]
fn glibc_has_no_entrance_that_the_table_does_not_mention() {
    if elsewhere() {
        return;
    }
    let rows = rows();
    let library = glibc();
    let missing: Vec<_> = exports(&library)
        .into_iter()
        .filter(|name| of_the_families(name))
        .filter(|name| !rows.iter().flat_map(|row| &row.names).any(|pattern| matches(pattern, name)))
        .collect();
    assert!(
        missing.is_empty(),
        "{} exports what may change files, descriptors or memory, and {TABLE} says nothing of it: {}",
        library.display(),
        missing.join(", ")
    );
}

/// Does the name stand in the text as a word?
fn says(text: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(part)
            && !text[at + name.len()..].chars().next().is_some_and(part)
    })
}

fn source(name: &str) -> String {
    ["tests", "tests/c", "../elision/tests"]
        .into_iter()
        .find_map(|place| std::fs::read_to_string(Path::new(place).join(name)).ok())
        .unwrap_or_else(|| panic!("{TABLE} names the test {name}, which there is not"))
}

#[test]
fn the_tests_that_the_table_names_exist_and_take_the_entrances() {
    if elsewhere() {
        return;
    }
    let mut untried = Vec::new();
    for row in rows() {
        let mut texts = Vec::new();
        for test in row.tests.iter().filter(|test| test.contains(".c") || test.contains(".rs")) {
            let (file, item) =
                test.split_once("::").map_or((test.as_str(), None), |(file, item)| (file, Some(item)));
            let text = source(file);
            if let Some(item) = item {
                let sign = if file.ends_with(".rs") { format!("fn {item}(") } else { format!("\"{item}\"") };
                assert!(text.contains(&sign), "{TABLE} names {test}, but {file} has no {sign}");
            }
            texts.push(text);
        }
        let tried = |name: &&String| row.harmless || texts.iter().any(|text| says(text, name));
        untried.extend(
            row.names.iter().filter(|name| !tried(name)).map(|name| format!("{name} by {:?}", row.tests)),
        );
    }
    assert!(untried.is_empty(), "said in {TABLE} to be tested, and not called:\n{}", untried.join("\n"));
}
