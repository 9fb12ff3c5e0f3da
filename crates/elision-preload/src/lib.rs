//! The drop-in: a library to be preloaded, which gives an unmodified program reads that are deferred and writes
//! that are elided.
//!
//! It defines names of libc's, so that the program's calls come here first. One family, one file:
//!
//! | file | calls |
//! | --- | --- |
//! | [`io`], [`vector`] | read, write, their positioned, vector and fortified forms |
//! | [`stdio`] | what libc reads, writes and closes on behalf of a FILE |
//! | [`files`] | open, dup, close and their kin: which descriptors are ours alone |
//! | [`notes`] | who is changing a file at this moment |
//! | [`changes`] | what else changes a file: ftruncate, fallocate, copy_file_range… |
//! | [`resuming`] | what a pause cuts short: sendfile, getrandom… |
//! | [`hints`] | lseek and fstat, which tell where the next large block should start |
//! | [`process`] | fork, spawn, exit, and descriptors sent away |
//! | [`replacing`] | exec |
//! | [`inheriting`] | whether the next program gets this library, too |
//! | [`rights`] | setuid, capset, prctl: what the sidecar must not keep |
//! | [`foreign`] | io_uring and asynchronous I/O |
//! | [`lending`] | memory that the kernel keeps hold of after a call |
//! | [`limits`] | setrlimit |
//! | [`loading`] | dlopen, where it leads past these names |
//! | [`watching`] | inotify and fanotify, which would tell of the sidecar |
//! | `objects` | what each name is passed on to |
//! | [`stop`] | what ends deferral for good |
//! | [`mod@syscall`] | `syscall()`, by number |
//! | [`memory`] | malloc, mmap and their kin: where extents may lie |
//!
//! The rule for every wrapper: one condition, and if it does not hold, libc's own function with the arguments as
//! they came. What holds is offered to the library, which may always decline. Nothing takes a lock,
//! allocates or has thread-local state, because read and write belong to signal handlers too; nothing
//! is printed; `errno` changes only when a call fails; and a call that comes before the constructor, or with
//! `ELISION=off`, goes straight through.

#![cfg_attr(test, allow(dead_code))] // Unit tests are not preloaded into themselves: no constructor runs.

pub mod changes;
pub mod export;
pub mod files;
pub mod foreign;
pub mod hints;
pub mod inheriting;
pub mod io;
pub mod kernel;
pub mod lending;
pub mod limits;
pub mod loading;
pub mod memory;
pub mod notes;
pub(crate) mod objects;
pub mod ownership;
pub mod process;
pub mod real;
pub mod replacing;
pub mod resuming;
pub mod rights;
pub mod stdio;
pub mod stop;
pub mod syscall;
pub mod vector;
pub mod watching;

use elision_core::client::dropin;

/// Runs in the main thread when the program's libraries have been loaded. Those that the program needs run
/// theirs before, so calls have already passed through here.
extern "C" fn constructor() {
    let errno = real::errno();
    set_up();
    // Where main begins it is zero.
    real::set_errno(errno);
}

#[allow(unsafe_code)] // The library has to be told that this is the constructor.
fn set_up() {
    io::resolve();
    files::resolve();
    changes::resolve();
    hints::resolve();
    process::resolve();
    replacing::resolve();
    inheriting::init();
    resuming::resolve();
    rights::resolve();
    foreign::resolve();
    lending::resolve();
    limits::resolve();
    loading::resolve();
    watching::resolve();
    syscall::resolve();
    vector::resolve();
    // SAFETY: called by the constructor alone.
    unsafe { dropin::start() };
    real::init();
    if stop::stopped() {
        // By a library whose constructor came before.
        dropin::stop("what a library of its used");
    }
    if dropin::min_bytes() == usize::MAX {
        return;
    }
    if cfg!(debug_assertions) {
        dropin::watch_faults();
    }
    stdio::install();
    process::watch_the_end(last_of_all);
    process::watch_forks();
    ownership::activate();
}

/// Runs when the program ends by itself, after all that it and its libraries do then.
extern "C" fn last_of_all(_: *mut core::ffi::c_void) {
    process::ending();
}

#[cfg(not(test))]
#[allow(unsafe_code)] // The loader calls what it finds in these sections, as functions of this type.
mod sections {
    #[used]
    #[unsafe(link_section = ".init_array")]
    static CONSTRUCTOR: extern "C" fn() = super::constructor;
}
