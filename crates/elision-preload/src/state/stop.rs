//! The off switch: what ends deferral in a process for good.
//!
//! Some calls hand the program's memory, descriptors or rights to something that asks first no more: the kernel at work by
//! itself (io_uring, a device with pinned pages), a process that shares the memory, code that bypasses the wrapped names, a
//! filter that kills for an unknown call. Others claim what the helper uses (leases, userfaultfd, ptrace), or would see it
//! at work (watches on files). All are rare, and staying right after one would take many rules. So there is one rule: before
//! such a call everything is materialised, the helper ends, and from then on every call passes straight through.
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

/// The reason for which even calls that the program did not make must end.
pub(crate) const FILTER: &str = "a seccomp filter";

/// Is a seccomp filter in force, or about to be?
static FILTERED: AtomicBool = AtomicBool::new(false);

/// May any call besides the program's own kill it?
pub(crate) fn filtered() -> bool {
    FILTERED.load(Ordering::Relaxed)
}

/// Has deferral ended?
#[inline]
pub(crate) fn stopped() -> bool {
    STATE.load(Ordering::Acquire) == STOPPED
}

/// Are calls looked at? False before the constructor, when the drop-in is off, and after [`stop`].
#[inline]
pub(crate) fn active() -> bool {
    descriptions::active() && !stopped()
}

/// Ends deferral, because of what the program uses. Not in a child of vfork, which is about to leave its parent's memory.
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
    // A signal handler that interrupted its own thread here would wait for ever.
    let mask = task::block_signals();
    if STATE.compare_exchange(AT_WORK, STOPPING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        task::restore_signals(mask);
        // Another thread is stopping. Until it is done, memory may still depend on files.
        while !stopped() {
            kernel::sleep_briefly();
        }
        return;
    }
    if descriptions::active() {
        // First nothing new: a read already under way sees this at its end (`offer_read`), or is waited for.
        client::life::stop(why);
        memory::stop();
        descriptions::share_for_good();
        without_helper(|| ());
    }
    STATE.store(STOPPED, Ordering::SeqCst);
    task::restore_signals(mask);
}

/// In a forked child: a thread that was stopping does not exist here, so the next one begins anew.
pub(crate) fn after_fork_child() {
    let _ = STATE.compare_exchange(STOPPING, AT_WORK, Ordering::SeqCst, Ordering::Relaxed);
}

/// Runs a call after which nothing is deferred.
pub(crate) fn stopping<T>(why: &str, call: impl FnOnce() -> T) -> T {
    stop(why);
    call()
}

/// Runs a call that changes what this process may do. The helper, which shares its memory, must not keep the old rights: it
/// ends before the call, and another is started when needed.
pub(crate) fn without_helper<T>(call: impl FnOnce() -> T) -> T {
    let gone = client::life::before_credentials();
    let result = call();
    if gone {
        // SAFETY: it said true.
        unsafe { client::life::after_credentials() };
    }
    result
}
