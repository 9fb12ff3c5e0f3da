//! The drop-in: a library to be preloaded, which gives an unmodified program reads that are deferred and writes
//! that are elided.
//!
//! It defines names of libc's, so that the program's calls come here first. A file imports only what is below it:
//!
//! | folder | |
//! | --- | --- |
//! | `wrap` | libc's names, one file per family |
//! | `state` | open descriptions, writers in flight, the program's memory, the large-block heap, the off switch |
//! | `abi` | the shape of a wrapper, the next definition of a name, system calls past libc |
//!
//! The rule for every wrapper: one condition, and where it does not hold, libc's own function with the same arguments.
//! Otherwise the call is offered to the library, which may always decline. Nothing takes a lock, allocates or has
//! thread-local state, because signal handlers call read and write too. Nothing is printed, and `errno` changes only when a
//! call fails. A call before the constructor, or with `ELISION=off`, goes straight through.

// In unit tests no constructor runs; for other processors see `abi::arch`.
#![cfg_attr(any(test, not(target_arch = "x86_64")), allow(dead_code, unused_imports))]

mod abi;
mod state;
mod wrap;

use abi::raw;
use elision_core::client;
use state::{descriptions, stop};
use wrap::{
    async_io, changes, credentials, dlopen, exec, io, limits, malloc, memory, notify, open, pinned, position,
    preload_env, process, resuming, stdio, syscall, vector,
};

/// Runs in the main thread. The constructors of the libraries that the program needs ran before, so calls have already passed
/// through the wrappers.
extern "C" fn constructor() {
    let errno = raw::errno();
    set_up();
    // A program may expect 0 where main begins.
    raw::set_errno(errno);
}

#[allow(unsafe_code)] // The library has to be told that this is the constructor.
fn set_up() {
    io::resolve();
    open::resolve();
    changes::resolve();
    position::resolve();
    process::resolve();
    exec::resolve();
    preload_env::init();
    resuming::resolve();
    credentials::resolve();
    async_io::resolve();
    pinned::resolve();
    limits::resolve();
    dlopen::resolve();
    notify::resolve();
    syscall::resolve();
    vector::resolve();
    vector::find_flag();
    // SAFETY: called by the constructor alone.
    unsafe { client::life::start() };
    memory::resolve();
    malloc::init();
    if stop::stopped() {
        // Stopped by a library whose constructor ran before.
        client::life::stop("what a library of its used");
    }
    if client::life::min_bytes() == usize::MAX {
        return;
    }
    if cfg!(debug_assertions) {
        client::life::watch_faults();
    }
    stdio::install();
    process::watch_the_end(last_of_all);
    process::watch_forks();
    descriptions::activate();
}

/// Runs when the program ends by exit, after all that the program and its libraries do then.
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
