//! A program that gives up rights must not leave them with the helper, which shares its memory: the helper materialises
//! everything and ends before. Another starts when needed.
#![allow(unsafe_code)] // The program's pointers.

use libc::{c_char, c_int, c_uint, c_ulong, gid_t, size_t, uid_t};

use crate::abi::interpose::interpose;
use crate::state::memory::settle;
use crate::state::stop::{FILTER, active, stop, stopped, without_helper};

/// Does the option change rights, or who may look at the process?
pub(crate) fn option_matters(option: c_int) -> bool {
    matches!(
        option,
        libc::PR_SET_NO_NEW_PRIVS
            | libc::PR_SET_DUMPABLE
            | libc::PR_CAPBSET_DROP
            | libc::PR_CAP_AMBIENT
            | libc::PR_SET_SECUREBITS
    )
}

/// Why deferral ends, if it does: a filter may kill for the helper's calls, and only one tracer can be allowed.
pub(crate) fn ends(option: c_int, a: c_ulong, b: c_ulong) -> Option<&'static str> {
    match option {
        // Modes are seccomp's operations, counted from 1.
        libc::PR_SET_SECCOMP => filters((a as c_uint).wrapping_sub(1), b).then_some(FILTER),
        libc::PR_SET_PTRACER => Some("a tracer of its own choice"),
        _ => None,
    }
}

/// Only anonymous memory can be named.
pub(crate) fn before_naming(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong) {
    if option == libc::PR_SET_VMA && a == libc::PR_SET_VMA_ANON_NAME as c_ulong {
        settle(b as usize, c as usize);
    }
}

/// Libraries probe with no filter, and the call fails.
pub(crate) fn filters(operation: c_uint, filter: c_ulong) -> bool {
    match operation {
        libc::SECCOMP_SET_MODE_STRICT => true,
        libc::SECCOMP_SET_MODE_FILTER => filter != 0,
        _ => false,
    }
}

macro_rules! told {
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        without_helper(|| unsafe { $name::real($($arg),*) })
    };
}

interpose! {
    fn setuid(uid: uid_t) -> c_int, until lookup(-1);
        if active() => told!(setuid(uid));

    fn setgid(gid: gid_t) -> c_int, until lookup(-1);
        if active() => told!(setgid(gid));

    fn seteuid(uid: uid_t) -> c_int, until lookup(-1);
        if active() => told!(seteuid(uid));

    fn setegid(gid: gid_t) -> c_int, until lookup(-1);
        if active() => told!(setegid(gid));

    fn setreuid(real: uid_t, effective: uid_t) -> c_int, until lookup(-1);
        if active() => told!(setreuid(real, effective));

    fn setregid(real: gid_t, effective: gid_t) -> c_int, until lookup(-1);
        if active() => told!(setregid(real, effective));

    fn setresuid(real: uid_t, effective: uid_t, saved: uid_t) -> c_int, until lookup(-1);
        if active() => told!(setresuid(real, effective, saved));

    fn setresgid(real: gid_t, effective: gid_t, saved: gid_t) -> c_int, until lookup(-1);
        if active() => told!(setresgid(real, effective, saved));

    fn setgroups(count: size_t, groups: *const gid_t) -> c_int, until lookup(-1);
        if active() => told!(setgroups(count, groups));

    fn initgroups(user: *const c_char, group: gid_t) -> c_int, until lookup(-1);
        if active() => told!(initgroups(user, group));

    /// −1 only asks.
    fn setfsuid(uid: uid_t) -> c_int, until kernel(libc::SYS_setfsuid);
        if uid != uid_t::MAX && active() => told!(setfsuid(uid));

    fn setfsgid(gid: gid_t) -> c_int, until kernel(libc::SYS_setfsgid);
        if gid != gid_t::MAX && active() => told!(setfsgid(gid));

    fn capset(header: usize, data: usize) -> c_int, until lookup(-1);
        if active() => told!(capset(header, data));

    fn chroot(path: *const c_char) -> c_int, until lookup(-1);
        if active() => told!(chroot(path));

    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int,
        until kernel(libc::SYS_prctl);
        if !stopped() => {
            if let Some(why) = ends(option, a, b) {
                stop(why);
            }
            before_naming(option, a, b, c);
            if option_matters(option) && active() {
                return told!(prctl(option, a, b, c, d));
            }
            // SAFETY: as above.
            unsafe { prctl::real(option, a, b, c, d) }
        };
}
