//! The crate `elision` for C: see `README.md` and `elision.h`.
//!
//! Each function checks its arguments, calls the crate, and turns errors and panics into `errno`.
#![allow(unsafe_code)] // Pointers of C's, under the promises that README.md asks for.
#![allow(non_camel_case_types)] // The names are C's.
#![allow(clippy::missing_safety_doc)] // README.md has it, once for all.

use elision::PageState;
use elision::stats::Reason;
use libc::{c_char, c_int, c_void, mode_t, size_t, ssize_t};
use std::ffi::{CStr, CString, OsStr};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

/// Owned memory whose pages may stand for file bytes until they are altered.
pub struct elision_buffer(elision::Buffer);

/// An open file of which no other descriptor exists in this program.
pub struct elision_file(elision::File);

/// What a run of bytes of a buffer is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum elision_state {
    /// Memory like any other.
    ELISION_PLAIN = 0,
    /// Stands for file bytes, and is not loaded.
    ELISION_DEFERRED = 1,
    /// Stands for file bytes, and was loaded by a touch.
    ELISION_LOADED = 2,
    /// Has memory of its own, which the file has, too.
    ELISION_TRACKED = 3,
    /// Was altered since it was read or saved.
    ELISION_ALTERED = 4,
}

/// A run of bytes of a buffer.
#[repr(C)]
pub struct elision_range {
    /// Of its first byte.
    pub start: size_t,
    /// Behind its last byte.
    pub end: size_t,
    /// What all of it is.
    pub state: elision_state,
}

/// Counters of this process, in bytes. A forked child starts from zero.
#[repr(C)]
#[derive(Default)]
pub struct elision_stats {
    /// Bytes that reads did not load.
    pub deferred_bytes: u64,
    /// Of these, loaded since by a touch; counted when the buffer ends.
    pub loaded_bytes: u64,
    /// Of these, copied because the file was about to change.
    pub materialised_bytes: u64,
    /// Bytes that were brought into the page cache unasked, because the program had waited for many.
    pub prefetched_bytes: u64,
    /// Bytes that writes left out.
    pub elided_bytes: u64,
    /// Bytes that writes left to be shared with the file that they were read from.
    pub shared_bytes: u64,
    /// Bytes that the same writes wrote.
    pub written_bytes: u64,
}

/// How many transfers were done the plain way for one reason.
#[repr(C)]
pub struct elision_declined {
    /// The reason's name ("file_system", "small", ...), which stays.
    pub reason: *const c_char,
    /// Transfers.
    pub count: u64,
    /// Bytes of the reads among them.
    pub read_bytes: u64,
}

/// Does the work. After an error or a panic: `errno`, and what the function returns for it.
fn attempt<T>(failed: T, work: impl FnOnce() -> io::Result<T>) -> T {
    let errno = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return done,
        Ok(Err(error)) => errno_of(&error),
        Err(payload) => {
            // (To drop it might panic.)
            std::mem::forget(payload);
            libc::ENOTRECOVERABLE
        }
    };
    // SAFETY: this thread's.
    unsafe { *libc::__errno_location() = errno };
    failed
}

fn errno_of(error: &io::Error) -> c_int {
    error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::InvalidInput => libc::EINVAL,
        io::ErrorKind::OutOfMemory => libc::ENOMEM,
        _ => libc::EIO,
    })
}

fn error<T>(errno: c_int) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

/// # Safety
/// `path` is null, or a C string that stays.
unsafe fn path<'a>(path: *const c_char) -> io::Result<&'a OsStr> {
    if path.is_null() {
        return error(libc::EFAULT);
    }
    // SAFETY: as the caller promises.
    Ok(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// # Safety
/// `object` is null, or valid and not used by anybody else meanwhile.
unsafe fn exclusive<'a, T>(object: *mut T) -> io::Result<&'a mut T> {
    // SAFETY: as the caller promises.
    unsafe { object.as_mut() }.map_or_else(|| error(libc::EINVAL), Ok)
}

/// # Safety
/// `object` is null, or valid and not changed by anybody meanwhile.
unsafe fn shared<'a, T>(object: *const T) -> io::Result<&'a T> {
    // SAFETY: as the caller promises.
    unsafe { object.as_ref() }.map_or_else(|| error(libc::EINVAL), Ok)
}

/// # Safety
/// `data` has `len` bytes that stay as they are.
unsafe fn bytes<'a>(data: *const c_void, len: size_t) -> io::Result<&'a [u8]> {
    match (data.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => error(libc::EFAULT),
        (_, len) if isize::try_from(len).is_err() => error(libc::EINVAL),
        // SAFETY: as the caller promises.
        _ => Ok(unsafe { std::slice::from_raw_parts(data.cast(), len) }),
    }
}

/// The end of a range within a buffer of `size` bytes.
fn end_within(size: usize, at: usize, len: usize) -> io::Result<usize> {
    at.checked_add(len).filter(|&end| end <= size).map_or_else(|| error(libc::EINVAL), Ok)
}

/// An offset that a file can have.
fn valid(offset: u64, len: usize) -> io::Result<u64> {
    let end = offset.checked_add(len as u64).filter(|&end| i64::try_from(end).is_ok());
    end.map_or_else(|| error(libc::EINVAL), |_| Ok(offset))
}

fn owned<T>(object: T) -> *mut T {
    Box::into_raw(Box::new(object))
}

/// # Safety
/// `object` is null, or from [`owned`] and not used any more.
unsafe fn free<T>(object: *mut T) {
    if !object.is_null() {
        // SAFETY: as the caller promises.
        let object = unsafe { Box::from_raw(object) };
        attempt((), || {
            drop(object);
            Ok(())
        });
    }
}

/// Reads a whole file, in time that does not depend on its size. The bytes are those that the file has now, whatever happens to it
/// later. NULL and errno as of open and read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_read(path: *const c_char) -> *mut elision_buffer {
    // SAFETY: as README.md asks for.
    attempt(std::ptr::null_mut(), || Ok(owned(elision_buffer(elision::read(unsafe { self::path(path) }?)?))))
}

/// The same for a file that will be saved again: it is opened for writing, too, and stays open with the buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_edit(path: *const c_char) -> *mut elision_buffer {
    // SAFETY: as README.md asks for.
    attempt(std::ptr::null_mut(), || Ok(owned(elision_buffer(elision::edit(unsafe { self::path(path) }?)?))))
}

/// Saves the buffer: afterwards the file has its bytes alone. Only what was altered is written. The file is not emptied first, and stays open with
/// the buffer for the next save. 0, or -1 and errno as of open, write and ftruncate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_write(path: *const c_char, buffer: *mut elision_buffer) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (path, buffer) = unsafe { (self::path(path)?, exclusive(buffer)?) };
        elision::write(path, &mut buffer.0).map(|()| 0)
    })
}

/// The same for any bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_write_bytes(path: *const c_char, data: *const c_void, len: size_t) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (path, bytes) = unsafe { (self::path(path)?, bytes(data, len)?) };
        elision::write(path, bytes).map(|()| 0)
    })
}

/// Replaces the file by a new one of the buffer's bytes: at every moment there is the old file or the new one, whole. Where files share
/// blocks (XFS, btrfs) only what was altered is written. 0, or -1 and errno as of creating a file there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_write_atomic(path: *const c_char, buffer: *mut elision_buffer) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (path, buffer) = unsafe { (self::path(path)?, exclusive(buffer)?) };
        elision::write_atomic(path, &mut buffer.0).map(|()| 0)
    })
}

/// The same, and durable: also after a power failure there is one of them, and the new one once this has returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_write_atomic_sync(
    path: *const c_char,
    buffer: *mut elision_buffer,
) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (path, buffer) = unsafe { (self::path(path)?, exclusive(buffer)?) };
        elision::write_atomic_sync(path, &mut buffer.0).map(|()| 0)
    })
}

/// A buffer of `len` zero bytes, which take no memory before they are touched. NULL and ENOMEM without address space.
#[unsafe(no_mangle)]
pub extern "C" fn elision_buffer_new(len: size_t) -> *mut elision_buffer {
    attempt(std::ptr::null_mut(), || Ok(owned(elision_buffer(elision::Buffer::new(len)?))))
}

/// Frees the memory, and closes the file that is open with it. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_free(buffer: *mut elision_buffer) {
    // SAFETY: as README.md asks for: made by this library, and not used any more.
    unsafe { free(buffer) }
}

/// The first byte: at a multiple of 16, mostly of a page. Valid until the buffer is resized or freed. Of an empty buffer it must not be
/// touched.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_data(buffer: *mut elision_buffer) -> *mut u8 {
    // SAFETY: as README.md asks for.
    attempt(std::ptr::null_mut(), || Ok(unsafe { exclusive(buffer) }?.0.as_mut_ptr()))
}

/// The length in bytes. Of NULL: 0, and errno EINVAL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_len(buffer: *const elision_buffer) -> size_t {
    // SAFETY: as README.md asks for.
    attempt(0, || Ok(unsafe { shared(buffer) }?.0.len()))
}

/// Changes the length. New bytes are zero; what stays is not loaded. The first byte may be elsewhere afterwards. 0, or -1 and ENOMEM:
/// the buffer is as it was.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_resize(buffer: *mut elision_buffer, len: size_t) -> c_int {
    // SAFETY: as README.md asks for.
    attempt(-1, || unsafe { exclusive(buffer) }?.0.resize(len).map(|()| 0))
}

/// Loads the `len` bytes from `at` on now. 0, or -1 and errno: EIO where a touch would raise SIGBUS, ENOMEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_load(
    buffer: *const elision_buffer,
    at: size_t,
    len: size_t,
) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let buffer = unsafe { shared(buffer) }?;
        let end = end_within(buffer.0.len(), at, len)?;
        buffer.0.load(at..end).map(|()| 0)
    })
}

/// Gives the memory of loaded whole pages back; a touch loads them again. Altered pages stay. Nobody may store into the range meanwhile.
/// The number of bytes given back, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_unload(
    buffer: *mut elision_buffer,
    at: size_t,
    len: size_t,
) -> ssize_t {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let buffer = unsafe { exclusive(buffer) }?;
        let end = end_within(buffer.0.len(), at, len)?;
        // (No more than a buffer has, which fits.)
        buffer.0.unload(at..end).map(|bytes| bytes as ssize_t)
    })
}

/// What each run of bytes is: in order, from 0 to the length. Fills at most `room` elements of `ranges`, and returns how many there are;
/// or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_ranges(
    buffer: *const elision_buffer,
    ranges: *mut elision_range,
    room: size_t,
) -> ssize_t {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let found = unsafe { shared(buffer) }?.0.ranges();
        let each = found.iter().map(|(range, state)| elision_range {
            start: range.start,
            end: range.end,
            state: match state {
                PageState::Deferred => elision_state::ELISION_DEFERRED,
                PageState::Loaded => elision_state::ELISION_LOADED,
                PageState::Tracked => elision_state::ELISION_TRACKED,
                PageState::Altered => elision_state::ELISION_ALTERED,
                _ => elision_state::ELISION_PLAIN,
            },
        });
        // SAFETY: as README.md asks for.
        unsafe { fill(ranges, room, each) }?;
        Ok(found.len() as ssize_t)
    })
}

/// # Safety
/// `target` has room for `room` elements.
unsafe fn fill<T>(target: *mut T, room: usize, values: impl Iterator<Item = T>) -> io::Result<()> {
    if target.is_null() && room > 0 {
        return error(libc::EFAULT);
    }
    for (index, value) in values.take(room).enumerate() {
        // SAFETY: `index` is less than `room`.
        unsafe { target.add(index).write(value) };
    }
    Ok(())
}

/// Closes the file that is open with the buffer since elision_edit or elision_write. The next save opens it again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_buffer_close_file(buffer: *mut elision_buffer) {
    attempt((), || {
        // SAFETY: as README.md asks for.
        unsafe { exclusive(buffer) }?.0.close();
        Ok(())
    });
}

/// Opens a file as open(2) does. EINVAL for O_APPEND (every write has an offset) and for O_TRUNC without writing (no lease keeps buffers
/// from it). NULL and errno as of open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_open(
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> *mut elision_file {
    attempt(std::ptr::null_mut(), || {
        let access = flags & libc::O_ACCMODE;
        if flags & libc::O_APPEND != 0 || (access == libc::O_RDONLY && flags & libc::O_TRUNC != 0) {
            return error(libc::EINVAL);
        }
        let mut options = OpenOptions::new();
        match access {
            libc::O_RDONLY => options.read(true),
            libc::O_WRONLY => options.write(true),
            libc::O_RDWR => options.read(true).write(true),
            _ => return error(libc::EINVAL),
        };
        options.custom_flags(flags & !libc::O_ACCMODE).mode(mode);
        // SAFETY: as README.md asks for.
        let path = unsafe { self::path(path) }?;
        Ok(owned(elision_file(elision::File::open_with(&options, path)?)))
    })
}

/// Closes a file. Buffers that were read from it stay what they are. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_close(file: *mut elision_file) {
    // SAFETY: as README.md asks for: made by this library, and not used any more.
    unsafe { free(file) }
}

/// Reads up to `len` bytes from `offset` on into a new buffer: fewer only at the end of the file. NULL and errno as of pread, or ENOMEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_read(
    file: *const elision_file,
    offset: u64,
    len: size_t,
) -> *mut elision_buffer {
    attempt(std::ptr::null_mut(), || {
        // SAFETY: as README.md asks for.
        Ok(owned(elision_buffer(unsafe { shared(file) }?.0.read(offset, len)?)))
    })
}

/// Reads up to `len` bytes from `offset` on into a buffer, from `at` on. How many there were (fewer only at the end of the file), or -1
/// and errno as of pread; EINVAL if `at + len` is beyond the buffer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_read_at(
    file: *const elision_file,
    offset: u64,
    buffer: *mut elision_buffer,
    at: size_t,
    len: size_t,
) -> ssize_t {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (file, buffer) = unsafe { (shared(file)?, exclusive(buffer)?) };
        end_within(buffer.0.len(), at, len)?;
        buffer.0.read_at(at, len, &file.0, valid(offset, len)?).map(|bytes| bytes as ssize_t)
    })
}

/// Writes a whole buffer at `offset`: only what the file does not have already. 0, or -1 and errno as of pwrite: what was written by then
/// is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_write(
    file: *const elision_file,
    offset: u64,
    buffer: *mut elision_buffer,
) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (file, buffer) = unsafe { (shared(file)?, exclusive(buffer)?) };
        file.0.write(valid(offset, buffer.0.len())?, &mut buffer.0).map(|()| 0)
    })
}

/// The same for the `len` bytes of the buffer from `at` on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_write_at(
    file: *const elision_file,
    offset: u64,
    buffer: *mut elision_buffer,
    at: size_t,
    len: size_t,
) -> c_int {
    attempt(-1, || {
        // SAFETY: as README.md asks for.
        let (file, buffer) = unsafe { (shared(file)?, exclusive(buffer)?) };
        end_within(buffer.0.len(), at, len)?;
        buffer.0.write_at(at, len, &file.0, valid(offset, len)?).map(|()| 0)
    })
}

/// The file's size in bytes, or -1 and errno as of fstat.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_size(file: *const elision_file) -> i64 {
    // SAFETY: as README.md asks for. (No file is longer.)
    attempt(-1, || unsafe { shared(file) }?.0.metadata().map(|metadata| metadata.len() as i64))
}

/// Cuts or extends the file. Buffers that depend on it get memory of their own first. 0, or -1 and errno as of ftruncate.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_set_size(file: *const elision_file, size: u64) -> c_int {
    // SAFETY: as README.md asks for.
    attempt(-1, || unsafe { shared(file) }?.0.set_len(valid(size, 0)?).map(|()| 0))
}

/// Waits until the file is on the device. 0, or -1 and errno as of fsync.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_sync(file: *const elision_file) -> c_int {
    // SAFETY: as README.md asks for.
    attempt(-1, || unsafe { shared(file) }?.0.sync_all().map(|()| 0))
}

/// The same without the metadata that reading does not need, as fdatasync.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_file_sync_data(file: *const elision_file) -> c_int {
    // SAFETY: as README.md asks for.
    attempt(-1, || unsafe { shared(file) }?.0.sync_data().map(|()| 0))
}

/// Sets the size from which on transfers of this library are deferred and elided, in bytes; at least one page. Unless set, it is 8 MiB for
/// a read into a new buffer, 4 MiB into one that is there, and 1 MiB for elision_edit and writes.
#[unsafe(no_mangle)]
pub extern "C" fn elision_set_min_bytes(bytes: size_t) {
    elision::set_min_bytes(bytes);
}

/// Reads the counters of this process. `size` is sizeof(elision_stats): a later library fills what the program knows. 0, or -1 and EFAULT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_stats_snapshot(stats: *mut elision_stats, size: size_t) -> c_int {
    attempt(-1, || {
        if stats.is_null() {
            return error(libc::EFAULT);
        }
        let now = elision::stats::snapshot();
        let known = elision_stats {
            deferred_bytes: now.deferred_bytes,
            loaded_bytes: now.loaded_bytes,
            materialised_bytes: now.materialised_bytes,
            prefetched_bytes: now.prefetched_bytes,
            elided_bytes: now.elided_bytes,
            shared_bytes: now.shared_bytes,
            written_bytes: now.written_bytes,
        };
        let target = stats.cast::<u8>();
        // SAFETY: `stats` has `size` bytes, as README.md asks for; of `known` no more than it has is read.
        unsafe {
            target.write_bytes(0, size);
            target.copy_from_nonoverlapping((&raw const known).cast(), size.min(size_of_val(&known)));
        }
        Ok(0)
    })
}

/// Which transfers were done the plain way, and why. Fills at most `room` elements of `declined`, and returns how many reasons there were;
/// or -1 and EFAULT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn elision_stats_declined(declined: *mut elision_declined, room: size_t) -> ssize_t {
    static NAMES: OnceLock<Vec<CString>> = OnceLock::new();
    attempt(-1, || {
        let names = NAMES.get_or_init(|| {
            Reason::ALL.iter().map(|reason| CString::new(reason.name()).unwrap_or_default()).collect()
        });
        let now = elision::stats::snapshot();
        let bytes =
            |reason: Reason| now.declined_read_bytes.iter().find(|of| of.0 == reason).map_or(0, |of| of.1);
        let each = now.declined.iter().map(|&(reason, count)| elision_declined {
            reason: names[reason as usize].as_ptr(),
            count,
            read_bytes: bytes(reason),
        });
        // SAFETY: as README.md asks for.
        unsafe { fill(declined, room, each) }?;
        Ok(now.declined.len() as ssize_t)
    })
}

/// The library's version, as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn elision_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_panics_become_errno() {
        let errno = || io::Error::last_os_error().raw_os_error();
        assert_eq!(attempt(-1, || Ok(7)), 7);
        assert_eq!(attempt(-1, || error(libc::ENOSPC)), -1);
        assert_eq!(errno(), Some(libc::ENOSPC));
        assert_eq!(attempt(-1, || Err(io::ErrorKind::InvalidInput.into())), -1);
        assert_eq!(errno(), Some(libc::EINVAL));
        assert_eq!(attempt(-1, || panic!("a defect")), -1);
        assert_eq!(errno(), Some(libc::ENOTRECOVERABLE));
    }
}
