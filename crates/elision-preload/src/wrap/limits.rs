//! A limit on address space or data also counts what deferral maps, and could prevent materialisation: deferral ends.
#![allow(unsafe_code)] // The program's pointers.

use libc::{c_int, c_uint, pid_t, rlimit, rlimit64};

use crate::abi::interpose::interpose;
use crate::abi::kernel;
use crate::state::stop::{active, stopping};

pub(crate) fn limiting<T>(pid: pid_t, resource: c_uint, new: usize, call: impl FnOnce() -> T) -> T {
    let of_memory = resource == libc::RLIMIT_AS || resource == libc::RLIMIT_DATA;
    let sets = || {
        let limit: *const rlimit64 = core::ptr::with_exposed_provenance(new);
        // SAFETY: found readable; the program's argument.
        kernel::readable(new, size_of::<rlimit64>())
            && unsafe { limit.read_unaligned() }.rlim_cur != libc::RLIM64_INFINITY
    };
    // The limit may be below what is in use.
    if of_memory && (pid == 0 || pid == kernel::process()) && sets() {
        return stopping("a limit on its memory", call);
    }
    call()
}

macro_rules! limited {
    ($pid:expr, $resource:ident, $new:ident, $name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        limiting($pid, $resource, $new.expose_provenance(), || unsafe { $name::real($($arg),*) })
    };
}

interpose! {
    fn setrlimit(resource: c_uint, new: *const rlimit) -> c_int, until kernel(libc::SYS_setrlimit);
        if active() => limited!(0, resource, new, setrlimit(resource, new));

    fn setrlimit64(resource: c_uint, new: *const rlimit64) -> c_int, until kernel(libc::SYS_setrlimit);
        if active() => limited!(0, resource, new, setrlimit64(resource, new));

    fn prlimit(pid: pid_t, resource: c_uint, new: *const rlimit, old: *mut rlimit) -> c_int,
        until kernel(libc::SYS_prlimit64);
        if active() => limited!(pid, resource, new, prlimit(pid, resource, new, old));

    fn prlimit64(pid: pid_t, resource: c_uint, new: *const rlimit64, old: *mut rlimit64) -> c_int,
        until kernel(libc::SYS_prlimit64);
        if active() => limited!(pid, resource, new, prlimit64(pid, resource, new, old));
}
