//! Address space: mapping, moving, protecting.
#![allow(unsafe_code)] // Mapping changes what addresses mean; who may do so is said at each function.

use crate::raw::{Result, borrow, syscall};
use core::ffi::c_void;
use core::ptr::with_exposed_provenance_mut;
use rustix::fd::IntoRawFd;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};

fn pointer(addr: usize) -> *mut c_void {
    with_exposed_provenance_mut(addr)
}

/// Memory without a file.
///
/// # Safety
/// With `MapFlags::FIXED`, as [`allocate_at`].
unsafe fn map(addr: usize, len: usize, prot: ProtFlags, flags: MapFlags) -> Result<usize> {
    let flags = flags | MapFlags::NORESERVE;
    // SAFETY: the caller's promise; without FIXED the kernel picks addresses that nobody uses.
    Ok(unsafe { rustix::mm::mmap_anonymous(pointer(addr), len, prot, flags) }?.expose_provenance())
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const IN_PLACE: MapFlags = MapFlags::PRIVATE.union(MapFlags::FIXED);

/// Reserves `len` bytes of address space that cannot be touched and cost nothing.
pub fn reserve(len: usize) -> Result<usize> {
    // SAFETY: not FIXED.
    unsafe { map(0, len, ProtFlags::empty(), MapFlags::PRIVATE) }
}

/// Fresh zeroed memory, allocated as it is touched. `shared`: stays one memory across fork.
pub fn allocate(len: usize, shared: bool) -> Result<usize> {
    // SAFETY: not FIXED.
    unsafe { map(0, len, READ_WRITE, if shared { MapFlags::SHARED } else { MapFlags::PRIVATE }) }
}

/// Puts fresh zeroed memory at `addr`, in place of whatever is there.
///
/// # Safety
/// The range must be the caller's to replace: nobody may rely on its contents.
pub unsafe fn allocate_at(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { map(addr, len, READ_WRITE, IN_PLACE).map(drop) }
}

/// Turns a range back into reserved address space, dropping its contents.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn unreserve(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { map(addr, len, ProtFlags::empty(), IN_PLACE).map(drop) }
}

/// Maps `len` bytes of `fd` from `offset` at `addr`, privately, in place of whatever is there.
///
/// # Safety
/// As [`allocate_at`]; and the file must be guarded, or the bytes would change under whoever reads them.
pub unsafe fn map_file_at(addr: usize, len: usize, fd: i32, offset: u64) -> Result<()> {
    let (fd, flags) = (borrow(fd)?, IN_PLACE | MapFlags::NORESERVE);
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mmap(pointer(addr), len, READ_WRITE, flags, fd, offset) }?;
    Ok(())
}

/// Mappings of [`untouchable_at`] show positions in their file from here on. No file is so long.
pub const UNTOUCHABLE: u64 = 1 << 62;

/// Puts memory at `addr` that raises SIGBUS when it is touched (EFAULT in a system call), in place of whatever is there: the
/// mapping of a file beyond its end.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn untouchable_at(addr: usize, len: usize) -> Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let fd = rustix::fs::memfd_create(c"unreadable", flags)?.into_raw_fd();
    // SAFETY: the caller's promise. What has no bytes needs no guard.
    let mapped = unsafe { map_file_at(addr, len, fd, UNTOUCHABLE) };
    crate::file::close(fd);
    mapped
}

/// munmap(2).
///
/// # Safety
/// Nobody may touch the range afterwards.
pub unsafe fn unmap(addr: usize, len: usize) {
    // SAFETY: the caller's promise. It can only fail for a range that was never mapped, or for want of map entries.
    let _ = unsafe { rustix::mm::munmap(pointer(addr), len) };
}

/// Moves the pages of `[from, from + len)` over `[to, to + len)`, whose own are dropped: one atomic step for
/// every other thread.
///
/// # Safety
/// Nobody may use `from` afterwards; what was at `to` must be equal, or dispensable.
pub unsafe fn move_over(from: usize, to: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { remap(from, to, len, MremapFlags::MAYMOVE) }
}

/// Moves the pages of `[from, from + len)`, of one mapping, over `[to, to + len)`. The mapping stays where it was, empty.
///
/// # Safety
/// Nobody may rely on the contents of either range.
pub unsafe fn move_from(from: usize, to: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { remap(from, to, len, MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP) }
}

unsafe fn remap(from: usize, to: usize, len: usize, flags: MremapFlags) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mremap_fixed(pointer(from), len, len, flags, pointer(to)) }?;
    Ok(())
}

/// madvise(2).
///
/// # Safety
/// The advice must be one that leaves contents alone, or the range the caller's to discard.
pub unsafe fn advise(addr: usize, len: usize, advice: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_madvise, [addr, len, advice as usize, 0, 0, 0]).map(drop) }
}

/// mprotect(2).
///
/// # Safety
/// Whoever uses the range must expect the new protection.
pub unsafe fn protect(addr: usize, len: usize, prot: i32) -> Result<()> {
    let prot = MprotectFlags::from_bits_retain(prot as u32);
    // SAFETY: the caller's promise.
    Ok(unsafe { rustix::mm::mprotect(pointer(addr), len, prot) }?)
}
