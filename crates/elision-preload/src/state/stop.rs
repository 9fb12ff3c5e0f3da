//! What ends deferral in a process for good.
//!
//! Some calls hand the program's memory, its descriptors or what it may do to somebody who asks nobody first: the
//! kernel at work by itself (io_uring, a device that writes to pinned pages), a process that shares the memory and is
//! no thread of it, code that does not call the names defined here, a filter that kills for a call it does not
//! know. Others lay claim to what the sidecar uses (leases, userfaultfd, the right to trace), or would see it at work
//! (watches on files). None is common, and after each of them it would take more than one rule to stay right. So there
//! is one: before such a call everything is given memory of its own, the sidecar goes, and from then on every call
//! passes straight through.
#![allow(unsafe_code)] // What `client::life` asks to be promised.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use elision_core::client;
use elision_sys::task;

use crate::abi::kernel;
use crate::state::{descriptions, memory, process};

const AT_WORK: u8 = 0;
const STOPPING: u8 = 1;
const STOPPED: u8 = 2;
static STATE: AtomicU8 = AtomicU8::new(AT_WORK);

/// What a program uses that deferral ends with, and every call but its own.
pub(crate) const FILTER: &str = "a seccomp filter";

/// Has a seccomp filter been put on, or been about to be?
static FILTERED: AtomicBool = AtomicBool::new(false);

/// May any call besides the program's own be its last?
pub(crate) fn filtered() -> bool {
    FILTERED.load(Ordering::Relaxed)
}

/// Is it over?
#[inline]
pub(crate) fn stopped() -> bool {
    STATE.load(Ordering::Acquire) == STOPPED
}

/// Are calls looked at? False before the constructor, when the drop-in is off, and after [`stop`].
#[inline]
pub(crate) fn active() -> bool {
    descriptions::active() && !stopped()
}

/// Ends it, because of what the program uses. Not in a vfork child: its memory is its parent's, and it is about to
/// leave it.
#[cold]
pub(crate) fn stop(why: &str) {
    if !process::is_this() {
        return;
    }
    if why == FILTER {
        FILTERED.store(true, Ordering::Relaxed);
    }
    if stopped() {
        return;
    }
    // A signal handler that came here while its own thread is at it would wait for ever.
    let mask = task::block_signals();
    if STATE.compare_exchange(AT_WORK, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        task::restore_signals(mask);
        // Another thread is at it. Until it is done, what depends on a file may still do so.
        while !stopped() {
            kernel::sleep_briefly();
        }
        return;
    }
    if descriptions::active() {
        // The gates first: whoever has passed them sees this when he is done (`offer_read`), or is waited for.
        client::life::stop(why);
        memory::stop();
        descriptions::share_for_good();
        without_helper(|| ());
    }
    STATE.store(STOPPED, Ordering::SeqCst);
    task::restore_signals(mask);
}

/// In a forked child: the thread that was at it is not there to finish, so whoever comes next begins anew.
pub(crate) fn after_fork_child() {
    let _ = STATE.compare_exchange(STOPPING, AT_WORK, Ordering::SeqCst, Ordering::Relaxed);
}

/// Runs a call after which nothing is deferred.
pub(crate) fn stopping<T>(why: &str, call: impl FnOnce() -> T) -> T {
    stop(why);
    call()
}

/// Runs a call that changes what this process may do. The helper, which shares its memory, must not keep the old rights: it
/// goes before, and another is started when there is need again.
pub(crate) fn without_helper<T>(call: impl FnOnce() -> T) -> T {
    let gone = client::life::before_credentials();
    let result = call();
    if gone {
        // SAFETY: it said true.
        unsafe { client::life::after_credentials() };
    }
    result
}
