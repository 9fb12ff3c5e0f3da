//! The end of a process's deferral, for good.
//!
//! Some calls hand memory, descriptors or rights to something unseen: the kernel (io_uring, pinned pages), a process sharing the
//! memory, code past the wrappers, a filter that kills. Others claim what the helper uses (leases, userfaultfd, ptrace), or would
//! see it (watches). All are rare, so one rule serves: before such a call everything is materialised and the helper ends; then
//! every call passes through.
#![allow(unsafe_code)] // For `client::life`.

use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use elision_core::client;
use elision_sys::task;

use crate::abi::kernel;
use crate::state::{descriptions, memory, process};

const AT_WORK: u8 = 0;
const STOPPING: u8 = 1;
const STOPPED: u8 = 2;
static STATE: AtomicU8 = AtomicU8::new(AT_WORK);

/// The reason that forbids even calls which the program did not make.
pub(crate) const FILTER: &str = "a seccomp filter";

static FILTERED: AtomicBool = AtomicBool::new(false);

pub(crate) fn filtered() -> bool {
    FILTERED.load(Ordering::Relaxed)
}

#[inline]
pub(crate) fn stopped() -> bool {
    STATE.load(Ordering::Acquire) == STOPPED
}

/// False before the constructor, with the drop-in off, and after [`stop`].
#[inline]
pub(crate) fn active() -> bool {
    descriptions::active() && !stopped()
}

/// Ends deferral. A vfork child does not: it is about to leave its parent's memory.
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
    // A handler that interrupted this would wait for its own thread.
    let mask = task::block_signals();
    if STATE.compare_exchange(AT_WORK, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        task::restore_signals(mask);
        // Memory may depend on files until the other thread is done.
        while !stopped() {
            kernel::sleep_briefly();
        }
        return;
    }
    if descriptions::active() {
        // Nothing new first: a read under way sees this at its end (`offer_read`), or is waited for.
        client::life::stop(why);
        memory::stop();
        descriptions::share_for_good();
        without_helper(|| ());
    }
    STATE.store(STOPPED, Ordering::SeqCst);
    task::restore_signals(mask);
}

/// In a forked child, a stopping thread is gone: the next begins anew.
pub(crate) fn after_fork_child() {
    let _ = STATE.compare_exchange(STOPPING, AT_WORK, Ordering::SeqCst, Ordering::Relaxed);
}

pub(crate) fn stopping<T>(why: &str, call: impl FnOnce() -> T) -> T {
    stop(why);
    call()
}

/// Runs a call that changes rights. The helper must not keep the old ones: it ends first.
pub(crate) fn without_helper<T>(call: impl FnOnce() -> T) -> T {
    let gone = client::life::before_credentials();
    let result = call();
    if gone {
        // SAFETY: `before_credentials` was true.
        unsafe { client::life::after_credentials() };
    }
    result
}
