//! A limit on address space or data: what the drop-in has mapped besides counts against the program. From then on it places and keeps no
//! blocks. (Under one that was there from the start it has no helper either, so that nothing is deferred.)
#![allow(unsafe_code)] // libc's names, with the program's pointers.

use libc::{c_int, c_uint, pid_t, rlimit, rlimit64};

use crate::export::interpose;
use crate::stop::active;
use crate::{kernel, memory, process};

/// Runs a call that sets a limit of `pid` (0: of this process), if there is something to be set.
pub(crate) fn limiting<T>(pid: pid_t, resource: c_uint, sets: bool, call: impl FnOnce() -> T) -> T {
    let of_memory = resource == libc::RLIMIT_AS || resource == libc::RLIMIT_DATA;
    // Before: it may be set below what is in use.
    if sets && of_memory && (pid == 0 || pid == kernel::process()) && process::is_this() {
        memory::place_no_more();
    }
    call()
}

/// `$name::real` with the program's arguments.
macro_rules! limited {
    ($pid:expr, $resource:ident, $new:ident, $name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        limiting($pid, $resource, !$new.is_null(), || unsafe { $name::real($($arg),*) })
    };
}

interpose! {
    /// See setrlimit(2).
    fn setrlimit(resource: c_uint, new: *const rlimit) -> c_int, until kernel(libc::SYS_setrlimit);
        if active() => limited!(0, resource, new, setrlimit(resource, new));

    /// See setrlimit(2).
    fn setrlimit64(resource: c_uint, new: *const rlimit64) -> c_int, until kernel(libc::SYS_setrlimit);
        if active() => limited!(0, resource, new, setrlimit64(resource, new));

    /// See prlimit(2).
    fn prlimit(pid: pid_t, resource: c_uint, new: *const rlimit, old: *mut rlimit) -> c_int,
        until kernel(libc::SYS_prlimit64);
        if active() => limited!(pid, resource, new, prlimit(pid, resource, new, old));

    /// See prlimit(2).
    fn prlimit64(pid: pid_t, resource: c_uint, new: *const rlimit64, old: *mut rlimit64) -> c_int,
        until kernel(libc::SYS_prlimit64);
        if active() => limited!(pid, resource, new, prlimit64(pid, resource, new, old));
}
