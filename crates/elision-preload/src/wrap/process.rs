//! New processes, and descriptors sent to other ones: what was owned is shared from then on.
//!
//! fork, daemon and forkpty run the pthread_atfork handlers registered here. (fork and forkpty are wrapped, too: the handlers do
//! not learn the child's number. daemon's parent ends.) The rest are wrapped by name.
#![allow(unsafe_code)] // libc's names, with the program's pointers, and one naked function.

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

/// Registers for forks, after the library has: handlers run before a fork in reverse order, and `before_fork` gives up
/// leases, for which the library must not have prepared yet.
pub(crate) fn watch_forks() {
    process::remember();
    // SAFETY: functions that live as long as the process.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
}

unsafe extern "C" {
    fn __cxa_atexit(call: extern "C" fn(*mut c_void), argument: *mut c_void, object: *mut c_void) -> c_int;
    fn __cxa_at_quick_exit(call: extern "C" fn(*mut c_void), object: *mut c_void) -> c_int;
}

/// Has `call` made when the program ends by exit or quick_exit, after the destructors of libraries, which may read what was
/// deferred: what is registered first is called last, and the constructor of a preloaded library registers before libc
/// does. (Of no object: an object's own calls are made with its destructors.)
pub(crate) fn watch_the_end(call: extern "C" fn(*mut c_void)) {
    // SAFETY: a function that lives as long as the process.
    unsafe {
        __cxa_atexit(call, core::ptr::null_mut(), core::ptr::null_mut());
        __cxa_at_quick_exit(call, core::ptr::null_mut());
    }
}

/// The process is about to end.
pub(crate) fn ending() {
    if active() && process::is_this() {
        // SAFETY: the end is next.
        unsafe { client::life::finish() };
    }
}

/// Runs a call that shares the descriptors with a new process.
pub(crate) fn sharing<T>(call: impl FnOnce() -> T) -> T {
    if !active() {
        return call();
    }
    descriptions::begin_sharing();
    let result = call();
    descriptions::end_sharing();
    result
}

/// Runs a call that starts a program, with the environment that is for it.
fn spawning<T>(program: Executed, envp: Environment, call: impl FnOnce(Environment) -> T) -> T {
    with_environment(program, envp.cast(), |changed| {
        sharing(|| call(changed.map_or(envp, |changed| changed.cast())))
    })
}

/// envp, as C declares it for these.
type Environment = *const *mut c_char;

/// Runs a call that forks and returns twice.
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

/// Before a fork that runs no handlers: they are called here, in the same order.
fn before_bare_fork() {
    descriptions::begin_sharing();
    // SAFETY: the callers fork next.
    unsafe { client::life::before_fork() };
}

fn after_bare_fork(child: i32) {
    // SAFETY: the fork that was prepared above has been.
    unsafe {
        client::life::after_fork_parent();
        client::life::forked(child);
    }
    descriptions::end_sharing();
}

/// Runs a fork that runs handlers, which do not learn the child's number.
fn with_handlers(fork: impl FnOnce() -> pid_t) -> pid_t {
    let child = fork();
    if child != 0 {
        // SAFETY: what the fork has said.
        unsafe { client::life::forked(child) };
    }
    child
}

/// Reasons to stop.
pub(crate) const NAMESPACE: &str = "another namespace";
pub(crate) const SHARED: &str = "a process that shares its memory or descriptors";

/// The request by which a process asks its parent to trace it.
pub(crate) const TRACE_ME: c_uint = 0;

/// Does deferral end when these are unshared? The next child may be the first process of a namespace, and must not be the
/// helper; other flags change rights; and memory that a helper shares cannot be unshared at all.
pub(crate) fn unshare_ends(flags: c_int) -> bool {
    flags & !(libc::CLONE_FILES | libc::CLONE_FS | libc::CLONE_SYSVSEM) != 0
}

/// unshare is about to do what it does.
pub(crate) fn before_unshare(flags: c_int) {
    if unshare_ends(flags) {
        stop(NAMESPACE);
    } else if flags & libc::CLONE_FILES != 0 {
        descriptions::share_table_for_good();
    }
}

/// What a clone with these flags shares.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// A thread: everything. It is stopped and waited for as the others are.
    Thread,
    /// Nothing: a process of its own, as fork makes.
    Nothing,
    /// The memory, until the child executes or ends, as vfork does. The call returns only then.
    Loan,
    /// Memory or descriptors, with a process that is no thread of this one: what it does to either is not seen, and it runs
    /// on while the threads are stopped.
    Mixed,
}

/// Which of them?
pub(crate) fn what_is_shared(flags: u64) -> Sharing {
    const BOTH: u64 = (libc::CLONE_VM | libc::CLONE_FILES) as u64;
    match flags & BOTH {
        BOTH if flags & libc::CLONE_THREAD as u64 != 0 => Sharing::Thread,
        0 => Sharing::Nothing,
        shared if shared == libc::CLONE_VM as u64 && flags & libc::CLONE_VFORK as u64 != 0 => Sharing::Loan,
        _ => Sharing::Mixed,
    }
}

/// Does a message pass descriptors? Any control data is taken for one.
fn carries(message: *const msghdr) -> bool {
    if message.is_null() || !kernel::readable(message as usize, size_of::<msghdr>()) {
        return false;
    }
    // SAFETY: just found to be readable; the kernel would read it in the same way.
    let control = unsafe { (&raw const (*message).msg_controllen).read_unaligned() };
    control != 0
}

/// Where a clone starts, and with what.
struct Start {
    function: unsafe extern "C-unwind" fn(*mut c_void) -> c_int,
    argument: *mut c_void,
}

/// In a child with a copy of all memory, the frame of `cloning` included.
unsafe extern "C-unwind" fn start_child(start: *mut c_void) -> c_int {
    // SAFETY: `cloning` passes its own structure, which was copied with the rest of the memory.
    let Start { function, argument } = unsafe { start.cast::<Start>().read() };
    // SAFETY: this is the child.
    unsafe { client::life::after_fork_child() };
    after_fork_child();
    // SAFETY: the program's function with its argument, as clone would have called it.
    unsafe { function(argument) }
}

/// libc's clone starts the child in a function, on a stack of its own. `call` makes the child, given function and argument.
fn cloning(
    start: *mut c_void,
    argument: *mut c_void,
    flags: c_int,
    call: impl Fn(*mut c_void, *mut c_void) -> c_int,
) -> c_int {
    match what_is_shared(flags as c_uint as u64) {
        Sharing::Nothing if !start.is_null() => {
            // SAFETY: clone takes a function of this type, and null is excluded.
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

/// `$name::real` with the program's arguments, as a closure.
macro_rules! call {
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        || unsafe { $name::real($($arg),*) }
    };
}

interpose! {
    /// See fork(2).
    fn fork() -> pid_t, until early(-1);
        if active() => with_handlers(call!(fork()));

    /// An old name of fork.
    fn __fork() -> pid_t, until early(-1);
        if active() => with_handlers(call!(__fork()));

    /// See forkpty(3).
    fn forkpty(terminal: *mut c_int, name: *mut c_char, attributes: *const c_void, size: *const c_void) -> pid_t, until lookup(-1);
        if active() => with_handlers(call!(forkpty(terminal, name, attributes, size)));

    /// fork without its handlers.
    fn _Fork() -> pid_t, until lookup(-1);
        if active() => forking(call!(_Fork()));

    /// See posix_spawn(3).
    fn posix_spawn(pid: *mut pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::At(libc::AT_FDCWD, path), envp, |envp| {
            // SAFETY: the program's call.
            unsafe { posix_spawn::real(pid, path, actions, attributes, argv, envp) }
        });

    /// See posix_spawn(3).
    fn posix_spawnp(pid: *mut pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::Named(file), envp, |envp| {
            // SAFETY: the program's call.
            unsafe { posix_spawnp::real(pid, file, actions, attributes, argv, envp) }
        });

    /// posix_spawn that gives a descriptor of the child.
    fn pidfd_spawn(pidfd: *mut c_int, path: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::At(libc::AT_FDCWD, path), envp, |envp| {
            // SAFETY: the program's call.
            unsafe { pidfd_spawn::real(pidfd, path, actions, attributes, argv, envp) }
        });

    /// posix_spawnp that gives a descriptor of the child.
    fn pidfd_spawnp(pidfd: *mut c_int, file: *const c_char, actions: *const c_void, attributes: *const c_void,
        argv: *const *mut c_char, envp: *const *mut c_char) -> c_int, until lookup(libc::ENOSYS);
        => spawning(Executed::Named(file), envp, |envp| {
            // SAFETY: the program's call.
            unsafe { pidfd_spawnp::real(pidfd, file, actions, attributes, argv, envp) }
        });

    /// See posix_spawn_file_actions_addopen(3). A child that truncates a file it opens to read breaks no lease, at a time
    /// that is not seen here.
    fn posix_spawn_file_actions_addopen(actions: *mut c_void, fd: c_int, path: *const c_char, flags: c_int,
        mode: mode_t) -> c_int, until lookup(libc::ENOSYS);
        if open::truncates(flags) && !stopped() => {
            stop("a truncation by its children");
            // SAFETY: the program's call.
            unsafe { posix_spawn_file_actions_addopen::real(actions, fd, path, flags, mode) }
        };

    /// See system(3).
    fn system(command: *const c_char) -> c_int, until lookup(-1);
        if active() => sharing(call!(system(command)));

    /// See popen(3).
    fn popen(command: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => sharing(call!(popen(command, mode)));

    /// An old name of popen.
    fn _IO_popen(command: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => sharing(call!(_IO_popen(command, mode)));

    /// See wordexp(3): it may run a shell.
    fn wordexp(words: *const c_char, expansion: *mut c_void, flags: c_int) -> c_int, until lookup(1);
        if active() => sharing(call!(wordexp(words, expansion, flags)));

    /// See clone(2). The last three are declared though C may leave them out.
    fn clone(start: *mut c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void,
        parent: *mut pid_t, tls: *mut c_void, child: *mut pid_t) -> c_int, until lookup(-1);
        if active() => cloning(start, argument, flags, |start, argument| {
            // SAFETY: the program's call, with a start that leads to the program's.
            unsafe { clone::real(start, stack, flags, argument, parent, tls, child) }
        });

    /// An old name of clone.
    fn __clone(start: *mut c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void,
        parent: *mut pid_t, tls: *mut c_void, child: *mut pid_t) -> c_int, until lookup(-1);
        if active() => cloning(start, argument, flags, |start, argument| {
            // SAFETY: the program's call, with a start that leads to the program's.
            unsafe { __clone::real(start, stack, flags, argument, parent, tls, child) }
        });

    /// See unshare(2).
    fn unshare(flags: c_int) -> c_int, until kernel(libc::SYS_unshare);
        if !stopped() => {
            before_unshare(flags);
            // SAFETY: the program's call.
            unsafe { unshare::real(flags) }
        };

    /// See setns(2). From there on /proc may show other processes, and some namespaces refuse a process that shares its
    /// memory.
    fn setns(fd: c_int, kind: c_int) -> c_int, until kernel(libc::SYS_setns);
        if !stopped() => stopping(NAMESPACE, call!(setns(fd, kind)));

    /// See ptrace(2). A process can have one tracer, which the helper would be at times.
    fn ptrace(request: c_uint, process: usize, addr: usize, data: usize) -> core::ffi::c_long, until lookup(-1);
        if request == TRACE_ME && !stopped() => stopping("a tracer", call!(ptrace(request, process, addr, data)));

    /// See pidfd_getfd(2).
    fn pidfd_getfd(pidfd: c_int, target: c_int, flags: c_uint) -> c_int, until kernel(libc::SYS_pidfd_getfd);
        if active() => sharing(call!(pidfd_getfd(pidfd, target, flags)));

    /// See sendmsg(2).
    fn sendmsg(socket: c_int, message: *const msghdr, flags: c_int) -> ssize_t, until kernel(libc::SYS_sendmsg);
        if pinned::pins(flags) || descriptions::any() => {
            pinned::before_send(flags, message);
            if descriptions::any() && carries(message) {
                return sharing(call!(sendmsg(socket, message, flags)));
            }
            // SAFETY: the program's call.
            unsafe { sendmsg::real(socket, message, flags) }
        };

    /// See sendmmsg(2).
    fn sendmmsg(socket: c_int, messages: *mut libc::mmsghdr, count: c_uint, flags: c_int) -> c_int,
        until kernel(libc::SYS_sendmmsg);
        if pinned::pins(flags) || descriptions::any() => {
            pinned::before_sends(flags, messages, count);
            sharing(call!(sendmmsg(socket, messages, count, flags)))
        };

    /// See _exit(2). It does not return; the type is that of the system call which stands in.
    fn _exit(status: c_int) -> c_int, until kernel(libc::SYS_exit_group);
        if active() => {
            ending();
            // SAFETY: the program's call.
            unsafe { _exit::real(status) }
        };

    /// See _exit(2).
    fn _Exit(status: c_int) -> c_int, until kernel(libc::SYS_exit_group);
        if active() => {
            ending();
            // SAFETY: the program's call.
            unsafe { _Exit::real(status) }
        };
}

extern "C" fn before_vfork() {
    descriptions::begin_sharing();
}

/// In the parent, once the child has its own memory or is gone.
extern "C" fn after_vfork(child: pid_t) -> pid_t {
    descriptions::end_sharing();
    if child < 0 {
        raw::set_errno(-child);
        return -1;
    }
    child
}

vfork!(vfork __vfork; before_vfork, after_vfork);
