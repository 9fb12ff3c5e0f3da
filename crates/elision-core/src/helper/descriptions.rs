//! The program's descriptions, as descriptors of the helper's own.

use crate::helper::state::State;
use crate::shared::control;
use crate::shared::requests::{Op, Request};
use elision_sys::file;
use elision_sys::hand_over::Listener;
use elision_sys::raw::{Errno, Result};
use elision_sys::task;

const IN_VAIN_MS: u64 = 1_000;

/// The description of a request's descriptor. Containers' filters refuse `pidfd_getfd`: then the client is asked to hand it over, and to
/// repeat the request.
pub(crate) fn of(state: &mut State, request: &mut Request) -> Result<i32> {
    if request.sender != 0 {
        let listener = state.listener.take().ok_or(Errno(libc::EBADF))?;
        return listener.take(request.sender);
    }
    file::take_descriptor(request.pid, request.fd).inspect_err(|&errno| {
        // What was put off could not be made up for by another helper.
        let (in_vain, since) = state.in_vain;
        let again = in_vain != request.key || task::ms_since(since) >= IN_VAIN_MS;
        if is_refused(errno) && again && request.op != Op::Truncate {
            if state.listener.is_none() {
                state.listener = Listener::new().ok();
            }
            request.meet = state.listener.as_ref().map(|listener| listener.address);
        }
    })
}

/// A hand-over takes as long as to copy 256 KiB, so the next requests for a file that is open elsewhere are declined without one.
pub(crate) fn note_in_vain(state: &mut State, request: &Request) {
    if request.sender != 0 {
        state.in_vain = (request.key, task::now_ms());
    }
}

/// Any description of the program, for a helper that takes over, or the program itself.
pub(crate) fn of_orphan(program: i32, number: i32) -> Result<i32> {
    if program == task::pid() {
        return file::fcntl(number, libc::F_DUPFD_CLOEXEC, 0);
    }
    file::take_descriptor(program, number).inspect_err(|&errno| {
        if is_refused(errno) {
            control::leave_orphans();
        }
    })
}

fn is_refused(errno: Errno) -> bool {
    matches!(errno, Errno(libc::EPERM | libc::ENOSYS | libc::EACCES))
}
