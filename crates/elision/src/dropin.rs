//! What the drop-in (`elision-preload`) needs of the library beyond its public face. Not for other users.
//!
//! Every function is async-signal-safe, takes no lock, allocates nothing and leaves `errno` alone.

use crate::sys::raw::Errno;

/// What an offered transfer came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing was done: make the traditional call.
    PassThrough,
    /// Done: this many bytes, the file position moved where the call moves it.
    Done(usize),
    /// The traditional call would have failed with this errno.
    Failed(Errno),
}

/// Offers a read of `len` bytes to `addr`: at `offset` (pread), or at the file position, which is then moved.
/// `owned`: the caller vouches that every write through this open file description will be shown to
/// [`write`] or [`before_change`] first, and that no other process shares the description.
pub fn read(_fd: i32, _addr: usize, _len: usize, _offset: Option<u64>, _owned: bool) -> Outcome {
    Outcome::PassThrough
}

/// Offers a write of `len` bytes from `addr`, as [`read`] does. Call it for big writes, and for writes of
/// every size while [`write_leases`] says true.
pub fn write(_fd: i32, _addr: usize, _len: usize, _offset: Option<u64>, _owned: bool) -> Outcome {
    Outcome::PassThrough
}

/// Is any file of this process guarded by a write lease? One atomic load.
pub fn write_leases() -> bool {
    false
}

/// The file behind `fd` is about to be changed by a call that is not shown to [`write`] (ftruncate,
/// fallocate, sendfile, a shared mapping…): what depends on it is materialised first, and its write lease
/// is given up. Cheap while [`write_leases`] is false.
pub fn before_change(_fd: i32) {}

/// A path is about to be truncated by `open(O_RDONLY|O_TRUNC)`, which breaks no lease.
/// `fd` is an O_PATH descriptor of it.
pub fn before_truncate(_fd: i32) {}

/// Every write lease is given up, what depends on it materialised: descriptors are about to be shared with
/// another process (fork, exec, posix_spawn, SCM_RIGHTS), or written to where nobody sees it.
pub fn surrender() {}

/// May any page of the range have an extent? `false` is certain. One atomic load while nothing is deferred.
pub fn touched(_addr: usize, _len: usize) -> bool {
    false
}

/// The range is about to be unmapped, or mapped over: every record of it is dropped. The memory is untouched.
pub fn forget(_addr: usize, _len: usize) {}

/// Makes the range plain anonymous memory with the same contents, before the program reshapes it (mremap,
/// mprotect, mlock, madvise other than DONTNEED).
pub fn dissolve(_addr: usize, _len: usize) {}

/// Before MADV_DONTNEED: pages of the range that are deferred become fresh zero pages.
pub fn zero(_addr: usize, _len: usize) {}

/// The smallest transfer that is worth offering (`ELISION_MIN_BYTES`), `usize::MAX` when off.
pub fn min_bytes() -> usize {
    usize::MAX
}

/// Sets up from the environment; once, from the drop-in's constructor, in the main thread.
pub fn start() {}

/// Counts a decline under `reason` where the drop-in itself decided (a short fixed name).
pub fn declined(_reason: crate::stats::Reason) {}

/// The process is about to end in an orderly way: the sidecar writes its statistics and goes.
pub fn finish() {}
