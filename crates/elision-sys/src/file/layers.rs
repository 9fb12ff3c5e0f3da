//! The layers of an overlay.
#![allow(unsafe_code)] // A pointer to a local.

use crate::raw::{Result, syscall};
use linux_raw_sys::ioctl::FIDEDUPERANGE;

/// Is the file in a lower layer alone, never copied up? `false` if unknown.
///
/// The kernel refuses (EPERM) to share the blocks of a file that is not in the upper layer. To share one byte with itself does nothing
/// anywhere. A request for no bytes is answered before that, so it tells whether the caller may ask. (The upper layer's own file
/// system says EPERM only of a file that nobody can open for writing.)
pub fn only_in_lower_layer(fd: i32) -> bool {
    share_with_itself(fd, 0) == Ok(0) && share_with_itself(fd, 1) == Ok(-libc::EPERM)
}

/// `file_dedupe_range`, with one `file_dedupe_range_info`.
#[repr(C)]
struct Request {
    offset: u64,
    len: u64,
    count: u16,
    reserved: [u16; 3],
    fd: i64,
    to: u64,
    shared: u64,
    status: i32,
    reserved_too: u32,
}

fn share_with_itself(fd: i32, len: u64) -> Result<i32> {
    let mut request = Request {
        offset: 0,
        len,
        count: 1,
        reserved: [0; 3],
        fd: fd.into(),
        to: 0,
        shared: 0,
        status: 0,
        reserved_too: 0,
    };
    let arguments = [fd as usize, FIDEDUPERANGE as usize, (&raw mut request) as usize, 0, 0, 0];
    // SAFETY: the request as the kernel declares it.
    unsafe { syscall(libc::SYS_ioctl, arguments) }?;
    Ok(request.status)
}
