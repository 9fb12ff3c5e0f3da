//! The program's descriptions, as descriptors of the helper's own.

use crate::helper::state::State;
use crate::shared::control;
use crate::shared::processes;
use crate::shared::requests::Request;
use elision_sys::file::{self, FileKey};
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
        let (in_vain, since) = state.in_vain;
        let again = in_vain != request.key || task::ms_since(since) >= IN_VAIN_MS;
        if is_refused(errno) && again {
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

/// In a helper that begins: what is in its table was its predecessor's. (Everything else is closed on exec.)
pub(crate) fn begin() {
    processes::each_descriptor(task::pid(), |fd| {
        let _ = file::fcntl(fd, libc::F_SETFD, 0);
        true
    });
}

fn each_inherited(mut visit: impl FnMut(i32)) {
    processes::each_descriptor(task::pid(), |fd| {
        if file::fcntl(fd, libc::F_GETFD, 0) == Ok(0) {
            visit(fd);
        }
        true
    });
}

/// In a helper: gives up its predecessor's leases, and closes its descriptors.
pub(crate) fn close_inherited() {
    each_inherited(|fd| {
        give_up_orphan(fd);
        file::close(fd);
    });
}

/// Gives up a killed helper's lease. (One that is being broken shows only what must become of it, so the owner tells.)
pub(crate) fn give_up_orphan(fd: i32) {
    if file::fcntl(fd, libc::F_GETOWN, 0).is_ok_and(control::was_helper) {
        give_back(fd);
    }
}

/// A description of the program's is without a lease again.
pub(crate) fn give_back(fd: i32) {
    let _ = file::set_lease(fd, libc::F_UNLCK);
    let _ = file::fcntl(fd, libc::F_SETOWN, 0);
}

/// The program's description of a file under a write lease, for the successor of a killed helper.
pub(crate) fn of_orphan(program: i32, number: i32, key: FileKey) -> Result<i32> {
    let mut found = None;
    if program != task::pid() {
        each_inherited(|fd| {
            let writable = file::flags(fd).is_ok_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY);
            if writable && file::stat(fd).is_ok_and(|stat| stat.id == key) {
                found = Some(fd);
            }
        });
    }
    match found {
        Some(fd) => file::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0),
        None => of_program(program, number),
    }
}

/// Any description of the program.
pub(crate) fn of_program(program: i32, number: i32) -> Result<i32> {
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
