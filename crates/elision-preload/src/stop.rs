//! What ends deferral in a process for good.
//!
//! Some calls hand the program's memory, its descriptors or what it may do to somebody who asks nobody first: the
//! kernel at work by itself (io_uring, a device that writes to pinned pages), a process that shares the memory and is
//! no thread of it, code that does not call the names defined here, a filter that kills for a call it does not
//! know. Others lay claim to what the sidecar uses (leases, userfaultfd, the right to trace) or would see it at work (watches on files). None is common, and after
//! each of them it would take more than one rule to stay right. So there is one: before such a call everything is
//! given memory of its own, the sidecar goes, and from then on every call passes straight through.

use core::sync::atomic::{AtomicBool, Ordering};

use elision::dropin;

use crate::{memory, ownership, process};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Is it over?
#[inline]
pub(crate) fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Are calls looked at? False before the constructor, when the drop-in is off, and after [`stop`].
#[inline]
pub(crate) fn active() -> bool {
    ownership::active() && !stopped()
}

/// Ends it, because of what the program uses. Not in a vfork child: its memory is its parent's, and it is about to leave
/// it.
#[cold]
pub(crate) fn stop(why: &str) {
    if !process::is_this() || STOPPED.swap(true, Ordering::SeqCst) || !ownership::active() {
        return;
    }
    // The gates first: whoever has passed them sees this when he is done (`offer_read`), or is waited for.
    dropin::stop(why);
    memory::stop();
    ownership::share_for_good();
    if dropin::before_rights() {
        dropin::after_rights();
    }
}

/// Runs a call after which nothing is deferred.
pub(crate) fn stopping<T>(why: &str, call: impl FnOnce() -> T) -> T {
    stop(why);
    call()
}
