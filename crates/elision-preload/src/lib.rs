//! The drop-in: a preloaded library gives an unmodified program deferred reads and elided writes. `wrap` defines libc's names,
//! over `state` (descriptions, memory, the large-block heap, the off switch), which is over `abi`. A file imports only what is
//! below it.
//!
//! A wrapper tests one condition and calls libc's function, or offers the call to the library, which may decline. Signal handlers
//! call wrappers: no lock, allocation, thread-local state or output; `errno` changes only with a failure.

// Unit tests run no constructor; for other processors see `abi::arch`.
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

/// Libraries' constructors ran before: calls have already passed through the wrappers.
extern "C" fn constructor() {
    let errno = raw::errno();
    set_up();
    // A program may expect 0 where main begins.
    raw::set_errno(errno);
}

#[allow(unsafe_code)] // `start` is for the constructor alone.
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
        // A constructor that ran before has stopped deferral.
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

/// Runs at exit, after all other handlers.
extern "C" fn last_of_all(_: *mut core::ffi::c_void) {
    process::ending();
}

/// By this name other copies of the library in the program find the drop-in, which serves them.
#[cfg(not(test))]
#[allow(unsafe_code)] // A name that no other library has.
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals)] // As C writes it.
pub static elision_engine: client::engine::Engine = client::engine::Engine::of_the_drop_in();

#[cfg(not(test))]
#[allow(unsafe_code)] // The loader calls this section's functions by this type.
mod sections {
    #[used]
    #[unsafe(link_section = ".init_array")]
    static CONSTRUCTOR: extern "C" fn() = super::constructor;
}
