//! Address space: mapping, moving, protecting.
#![allow(unsafe_code)] // Each function says who may change mappings.

use crate::raw::{Errno, Result, borrow, syscall};
use core::ffi::c_void;
use core::ptr::with_exposed_provenance_mut;
use rustix::fd::IntoRawFd;
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};

fn pointer(addr: usize) -> *mut c_void {
    with_exposed_provenance_mut(addr)
}

/// # Safety: with `MapFlags::FIXED`, as [`allocate_at`].
unsafe fn map(addr: usize, len: usize, prot: ProtFlags, flags: MapFlags) -> Result<usize> {
    let flags = flags | MapFlags::NORESERVE;
    // SAFETY: the caller's promise; without FIXED, the kernel picks free addresses.
    Ok(unsafe { rustix::mm::mmap_anonymous(pointer(addr), len, prot, flags) }?.expose_provenance())
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);
const IN_PLACE: MapFlags = MapFlags::PRIVATE.union(MapFlags::FIXED);

/// Address space that nobody can touch, at no cost.
pub fn reserve(len: usize) -> Result<usize> {
    // SAFETY: not FIXED.
    unsafe { map(0, len, ProtFlags::empty(), MapFlags::PRIVATE) }
}

/// Zeroed memory; `shared`: across fork.
pub fn allocate(len: usize, shared: bool) -> Result<usize> {
    // SAFETY: not FIXED.
    unsafe { map(0, len, READ_WRITE, if shared { MapFlags::SHARED } else { MapFlags::PRIVATE }) }
}

/// Zeroed memory at an address where nothing is.
///
/// # Errors
/// `EEXIST` if something is there.
pub fn allocate_free(addr: usize, len: usize) -> Result<()> {
    // SAFETY: what is there stays.
    let got = unsafe { map(addr, len, READ_WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE) }?;
    if got == addr {
        return Ok(());
    }
    // Before Linux 4.17 the address is a hint. SAFETY: just mapped, and nobody else's.
    unsafe { unmap(got, len) };
    Err(Errno(libc::EEXIST))
}

/// Zeroed memory in place of whatever is there.
///
/// # Safety
/// Nobody may rely on the contents.
pub unsafe fn allocate_at(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { map(addr, len, READ_WRITE, IN_PLACE).map(drop) }
}

/// Turns a range back into reserved address space.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn unreserve(addr: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { map(addr, len, ProtFlags::empty(), IN_PLACE).map(drop) }
}

/// A private mapping in place of whatever is there.
///
/// # Safety
/// As [`allocate_at`], of a file guarded against changes.
pub unsafe fn map_file_at(addr: usize, len: usize, fd: i32, offset: u64) -> Result<()> {
    let (fd, flags) = (borrow(fd)?, IN_PLACE | MapFlags::NORESERVE);
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mmap(pointer(addr), len, READ_WRITE, flags, fd, offset) }?;
    Ok(())
}

/// The same, shared: stores go to the file.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn share_file_at(addr: usize, len: usize, fd: i32, offset: u64) -> Result<()> {
    let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mmap(pointer(addr), len, READ_WRITE, flags, borrow(fd)?, offset) }?;
    Ok(())
}

/// The file position of [`untouchable_at`]; no file is so long.
pub const UNTOUCHABLE: u64 = 1 << 62;

/// Memory that raises SIGBUS (EFAULT in system calls), beyond a file's end, in place of whatever is there.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn untouchable_at(addr: usize, len: usize) -> Result<()> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let fd = rustix::fs::memfd_create(c"unreadable", flags)?.into_raw_fd();
    // SAFETY: the caller's promise; an empty file needs no guard.
    let mapped = unsafe { map_file_at(addr, len, fd, UNTOUCHABLE) };
    crate::file::close(fd);
    mapped
}

/// # Safety
/// Nobody may use the range afterwards.
pub unsafe fn unmap(addr: usize, len: usize) {
    // SAFETY: the caller's promise. (Fails only for want of map entries.)
    let _ = unsafe { rustix::mm::munmap(pointer(addr), len) };
}

/// Moves pages over others, in one atomic step for other threads.
///
/// # Safety
/// Nobody may use `from` afterwards; `to` must be equal or dispensable.
pub unsafe fn move_over(from: usize, to: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { remap(from, to, len, MremapFlags::MAYMOVE) }
}

/// The same, but the mapping at `from` stays, empty.
///
/// # Safety
/// Nobody may rely on the contents of either.
pub unsafe fn move_from(from: usize, to: usize, len: usize) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { remap(from, to, len, MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP) }
}

unsafe fn remap(from: usize, to: usize, len: usize, flags: MremapFlags) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mremap_fixed(pointer(from), len, len, flags, pointer(to)) }?;
    Ok(())
}

/// # Safety
/// The advice keeps contents, or they are the caller's to discard.
pub unsafe fn advise(addr: usize, len: usize, advice: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_madvise, [addr, len, advice as usize, 0, 0, 0]).map(drop) }
}

/// Could each page be touched without a device? There is a byte for each; `None` if unknown.
pub fn all_cached(addr: usize, there: &mut [u8]) -> Option<bool> {
    let len = there.len() * crate::PAGE;
    // SAFETY: a byte for each page.
    let asked = unsafe { syscall(libc::SYS_mincore, [addr, len, there.as_mut_ptr() as usize, 0, 0, 0]) };
    asked.ok().map(|_| there.iter().all(|page| page & 1 != 0))
}

/// # Safety
/// Users must expect the protection.
pub unsafe fn protect(addr: usize, len: usize, prot: i32) -> Result<()> {
    let prot = MprotectFlags::from_bits_retain(prot as u32);
    // SAFETY: the caller's promise.
    Ok(unsafe { rustix::mm::mprotect(pointer(addr), len, prot) }?)
}
