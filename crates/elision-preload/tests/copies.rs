//! Several copies of this library in one program: the crate in the program, the crate in a library that the program loads, the
//! drop-in (found by its name `elision_engine`). One of them serves the others: there is one helper, and all defer and elide.
//!
//! The library `copy` stands for the C library and the Python module.
#![allow(unsafe_code)] // Loads a library, forks.

#[path = "../../elision/tests/common/mod.rs"]
mod common;
#[path = "copy/lib.rs"]
mod copy;
#[allow(dead_code)] // It starts its programs itself.
#[path = "common/mod.rs"]
mod dropin;

use common::{Foreign, PAGE, Part, bytes, defers, directory, hear, helpers, say, supervisors};
use elision::Buffer;
use std::ffi::{CString, c_char, c_void};
use std::fs;
use std::path::{Path, PathBuf};

crate::roles!(play);

const LEN: usize = (9 << 20) + 77;

/// One copy of the crate.
struct Copy(*mut c_void);

impl Copy {
    /// Of the program itself, or of the library.
    fn new(which: &str) -> Copy {
        if which == "program" {
            return Copy(std::ptr::null_mut());
        }
        let path = CString::new(library().into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: a library of ours; its names stay its own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(
            !handle.is_null(),
            "no library at {}: cargo build -p elision-preload --examples",
            library().display()
        );
        Copy(handle)
    }

    fn function(&self, name: &str, own: *const ()) -> *const () {
        if self.0.is_null() {
            return own;
        }
        let name = CString::new(name).unwrap();
        // SAFETY: a handle that stays open.
        let found = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!found.is_null() && found.cast_const().cast() != own);
        found.cast_const().cast()
    }
}

/// Calls a function of the copy.
macro_rules! call {
    ($copy:expr, $name:ident: fn($($type:ty),*) $(-> $result:ty)?, $($argument:expr),*) => {{
        let own: extern "C" fn($($type),*) $(-> $result)? = copy::$name;
        let found = $copy.function(stringify!($name), own as *const ());
        // SAFETY: the same source.
        let function = unsafe { std::mem::transmute::<*const (), extern "C" fn($($type),*) $(-> $result)?>(found) };
        function($($argument),*)
    }};
}

/// The library, built with the tests.
fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    deps.parent().unwrap().join("examples/libcopy.so")
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).unwrap()
}

fn contents(buffer: *mut Buffer, copy: &Copy) -> &'static mut [u8] {
    let mut len = 0;
    // SAFETY: the buffer lives until it is dropped at the end, and is used by one caller at a time.
    let buffer = unsafe { &mut *buffer };
    let start = call!(copy, copy_bytes: fn(&mut Buffer, &mut usize) -> *mut u8, buffer, &mut len);
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(start, len) }
}

fn expect(got: &[u8], expected: &[u8]) {
    if let Some(how) = common::difference(got, expected) {
        panic!("{how}");
    }
}

/// In a forked child: is it so?
fn in_a_child(holds: impl FnOnce()) {
    // SAFETY: the child only looks at memory, and ends.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(holds)).is_ok();
        // SAFETY: ends the child.
        unsafe { libc::_exit(if good { 0 } else { 1 }) };
    }
    let mut status = 0;
    // SAFETY: a status of ours.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "in the child");
}

fn play(role: &str, arguments: &[String]) {
    match role {
        "other" => common::play_other(),
        "later" => later(Path::new(&arguments[0])),
        "program" => program(&arguments[0], &arguments[1], arguments[2] == "defers"),
        _ => panic!("{role}"),
    }
}

/// The copies in this order: all read one file, and each edits one of its own.
fn program(order: &str, dir: &str, deferring: bool) {
    let dir = Path::new(dir);
    let pid = std::process::id() as i32;
    let all = c(&dir.join("all"));
    let shared = bytes(1, LEN);
    let copies: Vec<Copy> = order.split(',').map(Copy::new).collect();
    let mut held = Vec::new();
    for (number, copy) in copies.iter().enumerate() {
        let own = dir.join(number.to_string());
        fs::write(&own, bytes(number as u64 + 2, LEN)).unwrap();
        let read = call!(copy, copy_read: fn(*const c_char) -> *mut Buffer, all.as_ptr());
        let edited = call!(copy, copy_edit: fn(*const c_char) -> *mut Buffer, c(&own).as_ptr());
        held.push((read, edited, own, bytes(number as u64 + 2, LEN)));
    }
    let expected = usize::from(deferring);
    assert_eq!((supervisors(pid).len(), helpers(pid).len()), (expected, expected));
    for (copy, (read, edited, own, expected)) in copies.iter().zip(&mut held) {
        // SAFETY: of the copy, and not dropped yet.
        let known = |buffer: *mut Buffer| call!(copy, copy_known: fn(&Buffer) -> usize, unsafe { &*buffer });
        let whole = LEN / PAGE * PAGE;
        assert_eq!(known(*read) >= whole && known(*edited) >= whole, deferring);
        let deferred = call!(copy, copy_deferred: fn() -> u64,);
        assert_eq!(deferred >= (2 * copies.len() * whole) as u64, deferring, "{deferred}");
        expect(contents(*edited, copy), expected);
        for at in [5, LEN / 2, LEN - 1] {
            contents(*edited, copy)[at] ^= 0xff;
            expected[at] ^= 0xff;
        }
        let before = call!(copy, copy_elided: fn() -> u64,);
        // SAFETY: as above.
        call!(copy, copy_save: fn(&mut Buffer, *const c_char), unsafe { &mut **edited }, c(own).as_ptr());
        let elided = call!(copy, copy_elided: fn() -> u64,) - before;
        assert_eq!(elided >= (LEN - 8 * PAGE) as u64, deferring, "{elided}");
        assert_eq!(fs::read(&*own).unwrap(), *expected);
        // SAFETY: as above.
        let unloaded = call!(copy, copy_unload: fn(&mut Buffer) -> usize, unsafe { &mut **read });
        assert!(deferring || unloaded == 0);
        // SAFETY: as above.
        let twin = call!(copy, copy_clone: fn(&Buffer) -> *mut Buffer, unsafe { &**read });
        assert_eq!(known(twin) >= whole, deferring);
        expect(contents(twin, copy), &shared);
        // SAFETY: of this copy, and dropped once.
        call!(copy, copy_drop: fn(Box<Buffer>), unsafe { Box::from_raw(twin) });
        // SAFETY: as above.
        call!(copy, copy_grow: fn(&mut Buffer, usize), unsafe { &mut **edited }, 200 << 20);
        expected.resize(LEN + (200 << 20), 0);
        let new = own.with_extension("new");
        // SAFETY: as above.
        call!(copy, copy_replace: fn(&mut Buffer, *const c_char), unsafe { &mut **edited }, c(&new).as_ptr());
        expect(&fs::read(&new).unwrap(), expected);
        fs::remove_file(new).unwrap();
    }
    in_a_child(|| {
        for (copy, (read, ..)) in copies.iter().zip(&held) {
            expect(contents(*read, copy), &shared);
        }
    });
    say("ready");
    assert_eq!(hear(), "changed");
    for (copy, (read, edited, _, expected)) in copies.iter().zip(&held) {
        expect(contents(*read, copy), &shared);
        expect(contents(*edited, copy), expected);
    }
    // Who comes first may go first.
    for (copy, (read, edited, ..)) in copies.iter().zip(held) {
        for buffer in [read, edited] {
            // SAFETY: of this copy's `copy_read` or `copy_edit`, and dropped once.
            call!(copy, copy_drop: fn(Box<Buffer>), unsafe { Box::from_raw(buffer) });
        }
    }
    assert_eq!(helpers(pid).len(), expected);
    say("done");
}

/// As an older version leaves it: its sign, and a table that begins with another number.
fn older_version() {
    const PLACE: usize = 0x1e11_5100_0000;
    const SIGN: usize = 0x5e61_1a3d_0c97_e2b4;
    static TABLE: [u64; 2] = [1, 0];
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing is there.
    unsafe {
        let place = std::ptr::with_exposed_provenance_mut(PLACE);
        let page = libc::mmap(place, PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_eq!(page, place);
        page.cast::<[usize; 2]>().write([SIGN, TABLE.as_ptr().expose_provenance()]);
    }
}

/// After a copy of another version: all as ever, and nothing deferred.
fn later(path: &Path) {
    older_version();
    let mut buffer = elision::edit(path).unwrap();
    expect(&buffer, &bytes(1, LEN));
    buffer[LEN / 2] ^= 1;
    elision::write(path, &mut buffer).unwrap();
    assert_eq!(fs::read(path).unwrap(), *buffer);
    let stats = elision::stats::snapshot();
    assert_eq!(stats.declined, [(elision::stats::Reason::AnotherCopy, 1)]);
    assert_eq!((stats.deferred_bytes, stats.elided_bytes), (0, 0));
    assert_eq!(helpers(std::process::id() as i32), [0; 0]);
}

#[test]
fn a_copy_of_another_version_is_left_alone() {
    let dir = directory();
    let path = dir.path().join("data");
    fs::write(&path, bytes(1, LEN)).unwrap();
    Part::start("later", &[path.to_str().unwrap()]).finish();
}

fn together(order: &str, with: impl FnOnce(&mut std::process::Command), defers: impl Fn(&Path) -> bool) {
    let dir = directory();
    let all = dir.path().join("all");
    fs::write(&all, bytes(1, LEN)).unwrap();
    let deferring = if defers(dir.path()) { "defers" } else { "plain" };
    let mut program = Part::start_with("program", &[order, dir.path().to_str().unwrap(), deferring], with);
    program.expect("ready");
    let mut other = Part::start("other", &[]);
    other.ask(&Foreign::Write { path: all.clone(), offset: 5_000, len: 3 << 20, seed: 99 }).unwrap();
    other.ask(&Foreign::Truncate { path: all, len: 12_345 }).unwrap();
    program.say("changed");
    program.expect("done");
    program.finish();
    other.finish();
}

#[test]
fn the_copy_in_the_program_serves_the_one_in_a_library() {
    together("program,library", |_| (), defers);
}

#[test]
fn the_copy_in_a_library_serves_the_one_in_the_program() {
    together("library,program", |_| (), defers);
}

#[test]
fn the_drop_in_serves_both() {
    let with = |command: &mut std::process::Command| {
        command.env("LD_PRELOAD", dropin::library());
    };
    together("program,library", with, defers);
}

#[test]
fn a_drop_in_that_is_off_switches_both_off() {
    let with = |command: &mut std::process::Command| {
        command.env("LD_PRELOAD", dropin::library()).env("ELISION", "off");
    };
    together("library,program", with, |_| false);
}
