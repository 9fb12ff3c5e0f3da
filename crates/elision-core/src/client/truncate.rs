//! A file that the program opens to empty it.

use crate::client::call::Call;
use crate::client::offer::{TransferOptions, check_lease, fs};
use crate::shared::pending;
use crate::shared::requests::Op;
use elision_sys::file::Stat;
use elision_sys::task;

pub use crate::client::equal::{least as recognised_from, recognise};
pub use crate::shared::pending::allowed as may_wait;

/// `fd` was opened without O_TRUNC. True: the program sees an empty file from now on, which becomes one before anybody else could
/// tell. False: the caller truncates it.
pub fn put_off(fd: i32, stat: &Stat, options: TransferOptions) -> bool {
    let Ok(fs) = check_lease(fd, fs(fd), stat, true) else { return false };
    let Some(mut call) = Call::new(Op::Truncate, false) else { return false };
    let request = call.request();
    (request.fd, request.tid, request.key, request.fs) = (fd, task::tid(), stat.id, Some(fs));
    (request.owned, request.forks, request.len) = (options.owned, options.forks, options.least);
    let declined = call.send();
    let put_off = call.is_good() && declined.is_none();
    drop(call);
    pending::set_inside(false);
    if let Some(reason) = declined {
        crate::decline_write(reason, stat.size as usize);
    }
    put_off
}

/// Elision's own calls follow, which concern a save alone.
#[must_use]
pub struct Inside(bool);

pub fn enter() -> Inside {
    let enters = pending::any() && !pending::is_inside();
    if enters {
        pending::set_inside(true);
    }
    Inside(enters)
}

impl Drop for Inside {
    fn drop(&mut self) {
        if self.0 {
            pending::set_inside(false);
        }
    }
}
