//! What the drop-in (`elision-preload`) needs of the library beyond its public face. Not for other users.
//!
//! Every function is async-signal-safe, takes no lock, allocates nothing and leaves `errno` alone.
//!
//! Whoever interposes on libc's names sees what a program does to its memory and its descriptors, and says so here. What is said
//! wrongly would take bytes away from a [`Buffer`](crate::Buffer) that knows nothing of it; so what could is `unsafe`. What is not
//! can only have more loaded, copied or written than need be, whatever it is given.
#![allow(unsafe_code)] // What is promised at these functions is passed on.

use crate::client::fork;
use crate::client::launch;
use crate::client::read::Terms;
use crate::client::report;
use crate::client::write::Track;
use crate::helper::fault;
use crate::helper::files;
use crate::helper::guard;
use crate::helper::state;
use crate::history;
use crate::settings;
use crate::shared::channel::{self, Call, Op, Request};
use crate::shared::hot::GLANCE;
use crate::shared::unmap_queue;
use crate::shared::verbose;
use crate::stats::{self, Reason};
use core::ffi::CStr;
use core::sync::atomic::Ordering::*;
use elision_sys::raw::Errno;
use elision_sys::{file, pages, task};

/// What an offered transfer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing was done: make the traditional call.
    PassThrough,
    /// Done: this many bytes, the file position moved where the call moves it.
    Done(usize),
    /// The traditional call would have failed with this errno.
    Failed(Errno),
}

/// Transfers of this size and more are considered where nothing is said. From the benches: into memory that is warm
/// already, reading wins up to somewhere between 1 and 4 MiB even if every byte is then looked at. Programs either
/// read whole files or reuse a buffer of at most 128 KiB, so what lies between matters little.
pub const DEFAULT_MIN_BYTES: usize = 4 << 20;

fn terms(offset: Option<u64>, owned: bool) -> Terms {
    Terms { offset, owned, forks: fork::forks(), exclusive: false, least: min_bytes() }
}

/// Offers a read of `len` bytes to `addr`: at `offset` (pread), or at the file position, which is then moved.
/// `owned`: the caller vouches that every write through this open file description will be shown to
/// [`write`] or [`before_change`] first, and that no other process shares the description. `undisturbed`, asked in the end: has none of
/// these begun since before this call?
///
/// # Safety
/// What the program passed to read(2): memory that it means to be overwritten. And what is vouched for must be so.
pub unsafe fn read(
    fd: i32,
    addr: usize,
    len: usize,
    offset: Option<u64>,
    owned: bool,
    undisturbed: impl Fn() -> bool,
) -> Outcome {
    verbose::say_active();
    // SAFETY: the caller's promise.
    unsafe { crate::client::read::read(fd, addr, len, terms(offset, owned), undisturbed) }
}

/// Offers a write of `len` bytes from `addr`, as [`read`] does. Call it for big writes, and for writes of
/// every size while [`write_leases`] says true. `alone`, asked once whoever comes later is kept out: is nobody else changing the file?
///
/// # Safety
/// What the program passed to write(2). And what is vouched for must be so: deferred reads rest on it.
pub unsafe fn write(
    fd: i32,
    addr: usize,
    len: usize,
    offset: Option<u64>,
    owned: bool,
    alone: impl Fn() -> bool,
) -> Outcome {
    verbose::say_active();
    crate::client::write::write(fd, addr, len, terms(offset, owned), Track::SecondTime, alone)
}

/// Is any file of this process guarded by a write lease? One atomic load.
#[inline(always)]
pub fn write_leases() -> bool {
    GLANCE.writers.load(Acquire) != 0
}

/// May the file behind `fd` be guarded by a write lease? `false` is certain, and cheap while [`write_leases`] is.
pub fn write_lease_on(fd: i32) -> bool {
    write_leases() && file::stat(fd).is_ok_and(|stat| files::write_guarded(stat.id))
}

/// A number that tells one file from another, though not beyond all doubt, nor in its two lowest bits.
pub fn file_number(key: file::FileKey) -> u64 {
    files::number(key)
}

/// May the file of this number be guarded by a write lease? `false` is certain.
#[inline]
pub fn write_lease_on_number(number: u64) -> bool {
    files::write_guarded_number(number)
}

/// The file behind `fd` is about to be changed by a call that is not shown to [`write`] (ftruncate,
/// fallocate, sendfile, a shared mapping…): what depends on it is materialised first, and its write lease
/// is given up. Cheap while [`write_leases`] is false.
pub fn before_change(fd: i32) {
    if write_leases()
        && let Ok(stat) = file::stat(fd)
        && files::write_guarded(stat.id)
    {
        crate::client::write::release(fd, stat);
    }
}

/// A descriptor is about to be closed. Cheap while [`write_leases`] is false.
pub fn closing(fd: i32) {
    say_closing(fd, false);
}

/// The same for one that nobody else ever had: how long the file is needed is what its buffers say.
pub fn closing_own(fd: i32) {
    say_closing(fd, true);
}

fn say_closing(fd: i32, owned: bool) {
    if write_leases()
        && let Ok(stat) = file::stat(fd)
        && files::write_guarded(stat.id)
        && let Some(mut call) = Call::new(Op::Closing, false)
    {
        let request = call.request();
        (request.key, request.owned) = (stat.id, owned);
        call.send();
    }
}

/// The file behind `fd`, of which an O_PATH descriptor will do, must be without a guard: it is about to be truncated by
/// `open(O_RDONLY|O_TRUNC)`, which breaks no lease, or to be opened by one who does not wait until it is broken.
pub fn let_go(fd: i32) {
    if let Ok(stat) = file::stat(fd) {
        crate::client::write::release(fd, stat);
    }
}

/// May reads of files of this file system be deferred, by whatever process?
pub fn may_be_deferred(fd: i32) -> bool {
    file::filesystem(fd).is_ok_and(guard::file_system_allowed)
}

/// Every write lease is given up, what depends on it materialised: descriptors are about to be shared with
/// another process (fork, exec, posix_spawn, SCM_RIGHTS), or written to where nobody sees it.
pub fn surrender() {
    if write_leases()
        && let Some(mut call) = Call::new(Op::Surrender, false)
    {
        call.send();
    }
}

/// May any page of the range have an extent? `false` is certain. One atomic load while nothing is deferred.
pub fn touched(addr: usize, len: usize) -> bool {
    state::touched(addr, len)
}

/// Is there a sidecar? Without one there is no guard.
pub fn at_work() -> bool {
    launch::alive()
}

/// Has another take the place of one that was killed, if anything depends on it: before this thread opens a file for writing, and would wait
/// for an answer that nobody gives. Two loads else.
#[inline]
pub fn look_after() {
    launch::look_after();
}

/// Was there ever one, in this process or in one that it was forked from? Without, no mapping was ever made or divided by deferral.
pub fn ever_at_work() -> bool {
    launch::ever_started()
}

/// How often this program's threads were held still so far.
#[inline(always)]
pub fn pauses() -> u32 {
    GLANCE.pauses.load(Acquire)
}

/// The whole pages inside a range, or, with `around`, all pages that it touches.
fn pages_of(addr: usize, len: usize, around: bool) -> (usize, usize) {
    let page = crate::transfer::PAGE;
    let (start, end) = match around {
        true => (addr / page * page, (addr + len).next_multiple_of(page)),
        false => (addr.next_multiple_of(page), (addr + len) / page * page),
    };
    (start, end.saturating_sub(start))
}

fn ask(op: Op, (addr, len): (usize, usize)) {
    if len > 0 && touched(addr, len) {
        ask_known(op, addr, len);
    }
}

/// The same for a range that is known to be recorded, or about to be.
fn ask_known(op: Op, addr: usize, len: usize) {
    if let Some(mut call) = Call::new(op, false) {
        let request = call.request();
        (request.addr, request.len) = (addr, len);
        call.send();
    }
}

/// The range is about to be unmapped, or mapped over: every record of it is dropped. The memory is untouched.
/// Does not wait for the sidecar, but where it is to be learnt what became of what was deferred.
///
/// # Safety
/// Nobody may rely on the contents of the range any more: the file may change now.
pub unsafe fn forget(addr: usize, len: usize) {
    let (addr, len) = pages_of(addr, len, true);
    if len != 0 && touched(addr, len) {
        state::let_go_of_page(addr, len);
        if history::is_curious(len) {
            return ask_known(Op::Forget, addr, len);
        }
        forget_known(addr, len);
    }
}

/// [`forget`] for whole pages that are known to be recorded, or about to be.
pub fn forget_known(addr: usize, len: usize) {
    // Whoever asked for statistics wants to know how much of it was loaded, which only its page tables tell.
    if !stats::exact() && unmap_queue::leave(addr, len) {
        channel::ring();
    } else {
        ask_known(Op::Forget, addr, len);
    }
}

/// Makes the range plain anonymous memory with the same contents, before the program reshapes it (mremap,
/// mprotect, mlock, madvise other than DONTNEED).
pub fn dissolve(addr: usize, len: usize) {
    ask(Op::Dissolve, pages_of(addr, len, true));
}

/// Moves whole pages that nobody else uses from `addr` to `to`, over what is there; what is deferred stays so. Says how many
/// bytes, from the beginning on. Where they were, addresses stay reserved, and nothing else.
///
/// # Safety
/// Both ranges must be the caller's alone: nobody else may touch the first, or rely on the contents of the second.
pub unsafe fn relocate(addr: usize, len: usize, to: usize) -> usize {
    if !touched(addr, len) {
        return 0;
    }
    let Some(mut call) = Call::new(Op::Relocate, false) else { return 0 };
    let request = call.request();
    (request.addr, request.len, request.offset) = (addr, len, to as u64);
    let declined = call.send();
    if !call.is_good() {
        return 0;
    }
    let &mut Request { handled, tried, .. } = call.request();
    // It may have been killed on the way.
    let more = declined.is_some() && tried > 0 && pages::have_moved(addr + handled, to + handled, tried);
    handled + if more { tried } else { 0 }
}

/// A write of this range was offered and done, and another write to the same file was under way at the same time: what
/// the file has now is not known.
pub fn untrack(addr: usize, len: usize) {
    ask(Op::Untrack, pages_of(addr, len, false));
}

/// Before MADV_DONTNEED: pages of the range that are deferred become fresh zero pages.
///
/// # Safety
/// The range must be the caller's to overwrite.
pub unsafe fn zero(addr: usize, len: usize) {
    state::let_go_of_page(addr, len);
    ask(Op::Zero, pages_of(addr, len, false));
}

/// Whole pages of the range that are loaded, and have no memory of their own, are loaded again when they are touched. Says how many bytes.
///
/// # Safety
/// Nobody may store into the range meanwhile.
pub unsafe fn unload(addr: usize, len: usize) -> usize {
    if !touched(addr, len) {
        return 0;
    }
    let Some(mut call) = Call::new(Op::Unload, false) else { return 0 };
    (call.request().addr, call.request().len) = (addr, len);
    if call.send().is_none() { call.request().handled } else { 0 }
}

/// Does everything that the sidecar knows hold together? For tests. How many extents there are, or what does not hold.
pub fn validate() -> Result<usize, &'static str> {
    let Some(mut call) = Call::new(Op::Validate, false) else { return Ok(0) };
    if call.send().is_some() {
        return Ok(0);
    }
    match call.request().broken {
        Some(broken) => Err(broken),
        None => Ok(call.request().handled),
    }
}

/// Is every write to the file synchronous, however it was opened? `false` as well while nothing was deferred or elided yet.
pub fn writes_synchronously(fd: i32) -> bool {
    crate::client::write::is_synchronous(fd)
}

/// The smallest transfer that is worth offering (`ELISION_MIN_BYTES`), `usize::MAX` when off.
#[inline(always)]
pub fn min_bytes() -> usize {
    GLANCE.min_bytes.load(Relaxed)
}

/// From now on a mistake of ours that shows in the helper ends the program, with a line to its stderr. (By std's hook for panics.) For tests.
pub fn watch_faults() {
    fault::watch();
}

/// From now on nothing is worth offering, because of what the program uses.
pub fn stop(why: &str) {
    GLANCE.min_bytes.store(usize::MAX, SeqCst);
    verbose::say_stopped(why);
    report::report_stop(why);
}

/// A variable of the environment. std's function would copy it, and so call the program's malloc before the program has begun.
fn variable(name: &str) -> Option<&'static [u8]> {
    unsafe extern "C" {
        static environ: *const *const core::ffi::c_char;
    }
    // SAFETY: libc's list of C strings, ended by null. It is the constructor that asks, so nobody changes it.
    unsafe {
        let mut next = environ;
        while let Some(entry) = next.as_ref().filter(|entry| !entry.is_null()) {
            let entry = CStr::from_ptr(*entry).to_bytes();
            if let Some(value) = entry.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
            {
                return Some(value);
            }
            next = next.add(1);
        }
    }
    None
}

/// Sets up from the environment.
///
/// # Safety
/// Once, from the drop-in's constructor, in the main thread, while there is no other.
pub unsafe fn start() {
    let get = |name: &str| variable(name).filter(|value| !value.is_empty());
    // SAFETY: libc has set it to a C string before any constructor of a library that needs libc.
    if let Some(name) = unsafe { program_invocation_short_name.as_ref() } {
        // SAFETY: as above.
        verbose::set_program(unsafe { CStr::from_ptr(name) }.to_bytes());
    }
    if let Some(value) = get("ELISION") {
        let on = settings::switch(value);
        if on.is_none() {
            verbose::say_not_understood("ELISION", value, "taken for off");
        }
        if on != Some(true) {
            return;
        }
    }
    let least = get("ELISION_MIN_BYTES").and_then(|value| {
        let least = settings::bytes(value);
        if least.is_none() {
            verbose::say_not_understood("ELISION_MIN_BYTES", value, "4 MiB it is");
        }
        least
    });
    if let Some(path) = get("ELISION_STATS") {
        report::set_stats_path(path);
        stats::count_exactly(true);
    }
    verbose::set_verbose(get("ELISION_VERBOSE").is_some_and(|value| settings::switch(value) != Some(false)));
    if task::on_valgrind() {
        return stop("Valgrind");
    }
    launch::register();
    GLANCE.min_bytes.store(least.unwrap_or(DEFAULT_MIN_BYTES).max(crate::transfer::PAGE), Release);
}

unsafe extern "C" {
    /// glibc's: the last part of the name by which the program was called.
    static program_invocation_short_name: *const core::ffi::c_char;
}

/// Counts a decline under `reason` where the drop-in itself decided.
pub fn declined(reason: Reason, len: usize) {
    crate::decline(reason, len);
}

/// The process is about to end in an orderly way: statistics are written, and the sidecar goes.
///
/// # Safety
/// It must be so: nobody guards what is deferred any more.
pub unsafe fn finish() {
    launch::finish();
}

/// The process is about to change its rights: the sidecar, which shares its memory, must not keep the old ones. It goes,
/// after giving everything memory of its own, and another is started when there is need again. True: call
/// [`after_rights`] when it is done.
pub fn before_rights() -> bool {
    launch::retire()
}

/// See [`before_rights`].
///
/// # Safety
/// Only after that said true, and once.
pub unsafe fn after_rights() {
    launch::retired();
}

/// Another program is about to take the place of this one: has the statistics written, and the sidecar go, though what is deferred
/// stays so. True: call [`after_exec`] if this is still the program.
///
/// # Safety
/// It must be so: until then nobody guards what is deferred.
pub unsafe fn before_exec() -> bool {
    launch::leave()
}

/// See [`before_exec`]. `errno` stays what it is.
///
/// # Safety
/// Only after that said true, and once.
pub unsafe fn after_exec() {
    launch::retired();
}

/// Before a fork that runs no pthread_atfork handlers (`_Fork`, clone); then exactly one of the other two.
///
/// # Safety
/// A fork must be next, by this thread.
pub unsafe fn before_fork() {
    fork::before_fork();
}

/// After such a fork, in the parent.
///
/// # Safety
/// After [`before_fork`], by the same thread.
pub unsafe fn after_fork_parent() {
    fork::after_fork_parent();
}

/// After a fork, in the parent, once handlers have run: the child's number, or a negative one if there is no child. `errno` stays
/// what it is.
///
/// # Safety
/// It must be what became of the last fork of this thread: for a child that is taken not to exist no guard is kept.
pub unsafe fn forked(child: i32) {
    fork::forked(child);
}

/// After such a fork, in the child.
///
/// # Safety
/// Only there: the guards that the process has count as its parent's from then on.
pub unsafe fn after_fork_child() {
    fork::after_fork_child();
}
