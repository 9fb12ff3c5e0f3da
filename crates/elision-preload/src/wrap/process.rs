//! What was owned is shared with new processes, and by descriptors sent away. pthread_atfork handlers cover fork, daemon and
//! forkpty, but do not learn the child's number: fork and forkpty are wrapped, too.
#![allow(unsafe_code)] // The program's pointers, one naked function.

use core::ffi::{c_char, c_void};

use elision_core::client;
use libc::{FILE, c_int, c_uint, mode_t, msghdr, pid_t, ssize_t};

use crate::abi::arch::vfork;
use crate::abi::interpose::interpose;
use crate::abi::{kernel, raw};
use crate::state::descriptions;
use crate::state::process;
use crate::state::stop::{self, active, stop, stopped, stopping};
use crate::wrap::preload_env::{Executed, with_environment};
use crate::wrap::{open, pinned};

extern "C" fn before_fork() {
    descriptions::begin_sharing();
}

extern "C" fn after_fork_parent() {
    descriptions::end_sharing();
}

extern "C" fn after_fork_child() {
    process::remember();
    descriptions::begin_child();
    stop::after_fork_child();
}

/// Registers after the library, since handlers run before a fork in reverse order: `before_fork` must give up leases first.
pub(crate) fn watch_forks() {
    process::remember();
    // SAFETY: they live as long as the process.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
}

unsafe extern "C" {
    fn __cxa_atexit(call: extern "C" fn(*mut c_void), argument: *mut c_void, object: *mut c_void) -> c_int;
    fn __cxa_at_quick_exit(call: extern "C" fn(*mut c_void), object: *mut c_void) -> c_int;
}

/// `call` runs after libraries' destructors, which may read deferred memory: the first registered is the last. It is of no
/// object, since an object's calls run with its destructors.
pub(crate) fn watch_the_end(call: extern "C" fn(*mut c_void)) {
    // SAFETY: it lives as long as the process.
    unsafe {
        __cxa_atexit(call, core::ptr::null_mut(), core::ptr::null_mut());
        __cxa_at_quick_exit(call, core::ptr::null_mut());
    }
}

pub(crate) fn ending() {
    if active() && process::is_this() {
        // SAFETY: the end is next.
        unsafe { client::life::finish() };
    }
}

pub(crate) fn sharing<T>(call: impl FnOnce() -> T) -> T {
    if !active() {
        return call();
    }
    descriptions::begin_sharing();
    let result = call();
    descriptions::end_sharing();
    result
}

fn spawning<T>(program: Executed, envp: Environment, call: impl FnOnce(Environment) -> T) -> T {
    with_environment(program, envp.cast(), |changed| {
        sharing(|| call(changed.map_or(envp, |changed| changed.cast())))
    })
}

type Environment = *const *mut c_char;

/// A fork that runs no handlers.
pub(crate) fn forking<T: From<i32> + Into<i64> + PartialEq + Copy>(fork: impl FnOnce() -> T) -> T {
    before_bare_fork();
    let child = fork();
    if child == T::from(0) {
        // SAFETY: this is the child.
        unsafe { client::life::after_fork_child() };
        after_fork_child();
    } else {
        after_bare_fork(child.into() as i32);
    }
    child
}

/// Calls the handlers, in order, since the fork does not.
fn before_bare_fork() {
    descriptions::begin_sharing();
    // SAFETY: the callers fork next.
    unsafe { client::life::before_fork() };
}

fn after_bare_fork(child: i32) {
    // SAFETY: after the fork that was prepared.
    unsafe {
        client::life::after_fork_parent();
        client::life::forked(child);
    }
    descriptions::end_sharing();
}

fn with_handlers(fork: impl FnOnce() -> pid_t) -> pid_t {
    let child = fork();
    if child != 0 {
        // SAFETY: the fork's result.
        unsafe { client::life::forked(child) };
    }
    child
}

pub(crate) const NAMESPACE: &str = "another namespace";
pub(crate) const SHARED: &str = "a process that shares its memory or descriptors";

pub(crate) const TRACE_ME: c_uint = 0;

/// The helper must not become a namespace's first process, other flags change rights, and shared memory cannot be unshared.
pub(crate) fn unshare_ends(flags: c_int) -> bool {
    flags & !(libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SYSVSEM) != 0
}

pub(crate) fn before_unshare(flags: c_int) {
    if unshare_ends(flags) {
        stop(NAMESPACE);
    } else if flags & libc::CLONE_FILES != 0 {
        descriptions::share_table_for_good();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    Thread,
    Nothing,
    /// The memory, until the child executes or ends and the call returns.
    Loan,
    /// Memory or descriptors, with a process that the library neither sees nor stops.
    Mixed,
}

pub(crate) fn what_is_shared(flags: u64) -> Sharing {
    const BOTH: u64 = (libc::CLONE_VM | libc::CLONE_FILES) as u64;
    match flags & BOTH {
        BOTH if flags & libc::CLONE_THREAD as u64 != 0 => Sharing::Thread,
        0 => Sharing::Nothing,
        shared if shared == libc::CLONE_VM as u64 && flags & libc::CLONE_VFORK as u64 != 0 => Sharing::Loan,
        _ => Sharing::Mixed,
    }
}

/// Any control data counts as descriptors.
fn carries(message: *const msghdr) -> bool {
    if message.is_null() || !kernel::readable(message as usize, size_of::<msghdr>()) {
        return false;
    }
    // SAFETY: just found readable, as the kernel reads it.
    let control = unsafe { (&raw const (*message).msg_controllen).read_unaligned() };
    control != 0
}

struct Start {
    function: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
}

unsafe extern "C-unwind" fn start_child(start: *mut c_void) -> c_int {
    // SAFETY: `cloning`'s own structure, copied with the memory.
    let Start { function, argument } = unsafe { start.cast::<Start>().read() };
    // SAFETY: this is the child.
    unsafe { client::life::after_fork_child() };
    after_fork_child();
    // SAFETY: as clone would call it.
    unsafe { function(argument) }
}

/// libc's clone calls a function in the child.
fn cloning(
    start: *mut c_void,
    argument: *mut c_void,
    flags: c_int,
    call: impl Fn(*mut c_void, *mut c_void) -> c_int,
) -> c_int {
    match what_is_shared(flags as c_uint as u64) {
        Sharing::Nothing if !start.is_null() => {
            // SAFETY: clone's type of function, and not null.
            let function = unsafe {
                core::mem::transmute::<*mut c_void, unsafe extern "C-unwind" fn(*mut c_void) -> c_int>(start)
            };
            let start = Start { function, argument };
            before_bare_fork();
            let child = call(start_child as *const () as *mut c_void, (&raw const start).cast_mut().cast());
            after_bare_fork(child);
            child
        }
        Sharing::Loan => sharing(|| call(start, argument)),
        Sharing::Mixed => stopping(SHARED, || call(start, argument)),
        Sharing::Thread | Sharing::Nothing => call(start, argument),
    }
}

macro_rules! call {
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        || unsafe { $name::real($($arg),*) }
    };
}

interpose! {
    fn fork() -> pid_t, until early(-1);
        if active() => with_handlers(call!(fork()));

    fn __fork() -> pid_t, until early(-1);
        if active() => with_handlers(call!(__fork()));

    fn forkpty(terminal: *mut c_int, name: *mut c_char, attributes: *const c_void, size: *const c_void) -> pid_t, until lookup(-1);
        if active() => with_handlers(call!(forkpty(terminal, name, attributes, size)));

    /// Runs no handlers.
    fn _Fork() -> pid_t, until lookup(-1);
        if active() => forking(call!(_Fork()));

    fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::At(libc::AT_FDCWD, path), envp, |envp| {
            // SAFETY: as above.
            unsafe { posix_spawn::real(pid, path, actions, attributes, argv, envp) }
        });

    fn posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::Named(file), envp, |envp| {
            // SAFETY: as above.
            unsafe { posix_spawnp::real(pid, file, actions, attributes, argv, envp) }
        });

    fn pidfd_spawn(pidfd: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::At(libc::AT_FDCWD, path), envp, |envp| {
            // SAFETY: as above.
            unsafe { pidfd_spawn::real(pidfd, path, actions, attributes, argv, envp) }
        });

    fn pidfd_spawnp(pidfd: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::Named(file), envp, |envp| {
            // SAFETY: as above.
            unsafe { pidfd_spawnp::real(pidfd, file, actions, attributes, argv, envp) }
        });

    /// A child that truncates what it opens to read breaks no lease, unseen.
    fn posix_spawn_file_actions_addopen(actions: *mut c_void, fd: c_int, path: *const c_char, flags: c_int,
        mode: mode_t) -> c_int, until lookup(libc::ENOSYS);
        if open::truncates(flags) && !stopped() => {
            stop("a truncation by its children");
            // SAFETY: as above.
            unsafe { posix_spawn_file_actions_addopen::real(actions, fd, path, flags, mode) }
        };

    fn system(command: *const c_char) -> c_int, until lookup(-1);
        if active() => sharing(call!(system(command)));

    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => sharing(call!(popen(command, mode)));

    fn _IO_popen(command: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => sharing(call!(_IO_popen(command, mode)));

    /// wordexp may run a shell.
    fn wordexp(words: *const c_char, expansion: *mut c_void, flags: c_int) -> c_int, until lookup(1);
        if active() => sharing(call!(wordexp(words, expansion, flags)));

    /// C may leave the last three out.
    fn clone(start: *mut c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void,
        parent: *mut pid_t, tls: *mut c_void, child: *mut pid_t) -> c_int, until lookup(-1);
        if active() => cloning(start, argument, flags, |start, argument| {
            // SAFETY: the program's call, with a start that leads to the program's.
            unsafe { clone::real(start, stack, flags, argument, parent, tls, child) }
        });

    fn __clone(start: *mut c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void,
        parent: *mut pid_t, tls: *mut c_void, child: *mut pid_t) -> c_int, until lookup(-1);
        if active() => cloning(start, argument, flags, |start, argument| {
            // SAFETY: as above.
            unsafe { __clone::real(start, stack, flags, argument, parent, tls, child) }
        });

    fn unshare(flags: c_int) -> c_int, until kernel(libc::SYS_unshare);
        if !stopped() => {
            before_unshare(flags);
            // SAFETY: the program's call.
            unsafe { unshare::real(flags) }
        };

    /// /proc may then show other processes, and some namespaces refuse shared memory.
    fn setns(fd: c_int, kind: c_int) -> c_int, until kernel(libc::SYS_setns);
        if !stopped() => stopping(NAMESPACE, call!(setns(fd, kind)));

    /// A process has one tracer, at times the helper.
    fn ptrace(request: c_uint, process: usize, addr: usize, data: usize) -> core::ffi::c_long, until lookup(-1);
        if request == TRACE_ME && !stopped() => stopping("a tracer", call!(ptrace(request, process, addr, data)));

    fn pidfd_getfd(pidfd: c_int, target: c_int, flags: c_uint) -> c_int, until kernel(libc::SYS_pidfd_getfd);
        if active() => sharing(call!(pidfd_getfd(pidfd, target, flags)));

    fn sendmsg(socket: c_int, message: *const msghdr, flags: c_int) -> ssize_t, until kernel(libc::SYS_sendmsg);
        if pinned::pins(flags) || descriptions::any() => {
            pinned::before_send(flags, message);
            if descriptions::any() && carries(message) {
                return sharing(call!(sendmsg(socket, message, flags)));
            }
            // SAFETY: as above.
            unsafe { sendmsg::real(socket, message, flags) }
        };

    fn sendmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int,
        until kernel(libc::SYS_sendmmsg);
        if pinned::pins(flags) || descriptions::any() => {
            pinned::before_sends(flags, messages, count);
            sharing(call!(sendmmsg(socket, messages, count, flags)))
        };

    /// Never returns: the type is the system call's.
    fn _exit(status: c_int) -> c_int, until kernel(libc::SYS_exit_group);
        if active() => {
            ending();
            // SAFETY: as above.
            unsafe { _exit::real(status) }
        };

    fn _Exit(status: c_int) -> c_int, until kernel(libc::SYS_exit_group);
        if active() => {
            ending();
            // SAFETY: as above.
            unsafe { _Exit::real(status) }
        };
}

extern "C" fn before_vfork() {
    descriptions::begin_sharing();
}

extern "C" fn after_vfork(child: pid_t) -> pid_t {
    descriptions::end_sharing();
    if child < 0 {
        raw::set_errno(-child);
        return -1;
    }
    child
}

vfork!(vfork __vfork; before_vfork, after_vfork);
