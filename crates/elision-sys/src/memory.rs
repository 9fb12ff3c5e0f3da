//! Address space: mapping, moving, protecting.
#![allow(unsafe_code)] // Mapping changes what addresses mean; who may do so is said at each function.

use crate::raw::{Result, syscall};

/// Reserves `len` bytes of address space that cannot be touched and cost nothing.
pub fn reserve(len: usize) -> Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: without MAP_FIXED the kernel picks addresses that nobody uses.
    unsafe { syscall(libc::SYS_mmap, [0, len, libc::PROT_NONE as usize, flags as usize, usize::MAX, 0]) }
}

/// Fresh zeroed memory, allocated as it is touched. `shared`: stays one memory across fork.
pub fn allocate(len: usize, shared: bool) -> Result<usize> {
    let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let flags = kind | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: as in `reserve`.
    unsafe { syscall(libc::SYS_mmap, [0, len, prot as usize, flags as usize, usize::MAX, 0]) }
}

/// Puts fresh zeroed memory at `addr`, in place of whatever is there.
///
/// # Safety
/// The range must be the caller's to replace: nobody may rely on its contents.
pub unsafe fn allocate_at(addr: usize, len: usize) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mmap, [addr, len, prot as usize, flags as usize, usize::MAX, 0])? };
    Ok(())
}

/// Turns a range back into reserved address space, dropping its contents.
///
/// # Safety
/// As [`allocate_at`].
pub unsafe fn unreserve(addr: usize, len: usize) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mmap, [addr, len, libc::PROT_NONE as usize, flags as usize, usize::MAX, 0])? };
    Ok(())
}

/// Maps `len` bytes of `fd` from `offset` at `addr`, privately, in place of whatever is there.
///
/// # Safety
/// As [`allocate_at`]; and the file must be guarded, or the bytes would change under whoever reads them.
pub unsafe fn map_file_at(addr: usize, len: usize, fd: i32, offset: u64) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the caller's promise.
    unsafe {
        syscall(libc::SYS_mmap, [addr, len, prot as usize, flags as usize, fd as usize, offset as usize])?
    };
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
    const MFD_NOEXEC_SEAL: u32 = 8;
    let flags = libc::MFD_CLOEXEC | MFD_NOEXEC_SEAL;
    // SAFETY: the name is a C string.
    let fd = unsafe {
        syscall(libc::SYS_memfd_create, [c"unreadable".as_ptr() as usize, flags as usize, 0, 0, 0, 0])? as i32
    };
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
    let _ = unsafe { syscall(libc::SYS_munmap, [addr, len, 0, 0, 0, 0]) };
}

/// Moves the pages of `[from, from + len)` over `[to, to + len)`, whose own are dropped: one atomic step for
/// every other thread.
///
/// # Safety
/// Nobody may use `from` afterwards; what was at `to` must be equal, or dispensable.
pub unsafe fn move_over(from: usize, to: usize, len: usize) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mremap, [from, len, len, flags as usize, to, 0])? };
    Ok(())
}

/// Moves the pages of `[from, from + len)`, of one mapping, over `[to, to + len)`. The mapping stays where it was, empty.
///
/// # Safety
/// Nobody may rely on the contents of either range.
pub unsafe fn move_from(from: usize, to: usize, len: usize) -> Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mremap, [from, len, len, flags as usize, to, 0])? };
    Ok(())
}

/// madvise(2).
///
/// # Safety
/// The advice must be one that leaves contents alone, or the range the caller's to discard.
pub unsafe fn advise(addr: usize, len: usize, advice: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_madvise, [addr, len, advice as usize, 0, 0, 0])? };
    Ok(())
}

/// mprotect(2).
///
/// # Safety
/// Whoever uses the range must expect the new protection.
pub unsafe fn protect(addr: usize, len: usize, prot: i32) -> Result<()> {
    // SAFETY: the caller's promise.
    unsafe { syscall(libc::SYS_mprotect, [addr, len, prot as usize, 0, 0, 0])? };
    Ok(())
}
