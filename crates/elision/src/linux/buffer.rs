//! Owned memory that files can be read into and written from without moving what did not change.
#![allow(unsafe_code)] // A slice over memory that the kernel fills; why its bytes hold still is argued at `Buffer`.

use crate::part::part;
use crate::platform::file::File;
use crate::platform::segment::{Segment, whole_pages};
use crate::threshold;
use elision_core::client::offer::FileFacts;
use elision_core::client::write::Track;
use elision_core::client::{engine, read};
use elision_core::page_state::PageState;
use elision_core::transfer::PAGE;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range, RangeBounds};

/// Owned memory: a `[u8]` whose pages may stand for file bytes until they are altered. Page aligned, but what [`File::read`] read
/// from a multiple of 16 begins that far into its page, as in the file.
///
/// # Why this is safe, and a mapping of a file is not
///
/// A mapped file changes under its reader when anybody writes to the file, and raises SIGBUS when anybody truncates it. Here the
/// kernel holds back every open for writing (a file lease) until each page that depends on the file has memory of its own. So
/// the bytes of a buffer change only through `&mut`.
///
/// Not covered, all of it in the kernel (docs/LIMITS.md says more):
///
/// - `open(O_RDONLY | O_TRUNC)` breaks no lease, in whichever process. Safe Rust can say it
///   (`OpenOptions::new().read(true).custom_flags(libc::O_TRUNC)`). It takes all pages that depend on the file, altered ones
///   included: SIGBUS. `write(true).truncate(true)` and `set_len` do no harm.
/// - Changes of the block device below the file system break no lease, nor do changes of an overlay's layers by their own paths.
/// - The kernel waits for an answer for `fs.lease-break-time` (45 seconds). None comes if the cgroup is frozen, or if the helper and
///   its parent were both killed (`kill -9`) and the program makes no big call meanwhile, which would start them anew.
/// - While a debugger is attached to the program, a truncation takes even the copies.
///
/// A page that cannot be read from its device raises SIGBUS when it is touched; [`Buffer::load`] returns that as an
/// error instead.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("table");
/// # std::fs::write(&path, vec![7; 16 << 20])?;
/// let mut table = elision::edit(&path)?;
/// table.load(..4096)?; //                    the first page now, and its I/O error
/// table[8 << 20] = 1; //                     one page of memory
/// for (bytes, state) in table.ranges() {
///     println!("{bytes:?}: {state:?}"); //   deferred, loaded, altered …
/// }
/// elision::write(&path, &mut table)?; //     that page, and the first
/// # assert_eq!(std::fs::read(&path)?[8 << 20], 1);
/// # std::io::Result::Ok(())
/// ```
pub struct Buffer {
    segment: Segment,
    /// The first byte.
    addr: usize,
    len: usize,
    /// Whole pages, of which the first has the first byte. Behind the last byte they are zero.
    room: usize,
    /// The file this buffer was read from for editing, or saved to: kept open for the next save.
    pub(crate) origin: Option<File>,
}

// SAFETY: a buffer owns its memory as a Vec does; the kernel side of it is reached through calls that any thread may
// make.
unsafe impl Send for Buffer {}
// SAFETY: as above; `&Buffer` only reads.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `len` zero bytes, in a segment of its own with room to grow.
    ///
    /// # Errors
    /// `ENOMEM` if there is no address space for it.
    pub fn new(len: usize) -> io::Result<Buffer> {
        Buffer::with_phase(len, 0)
    }

    /// The same, `phase` bytes into its first page.
    fn with_phase(len: usize, phase: usize) -> io::Result<Buffer> {
        Buffer::with_room(len, phase, len.saturating_mul(2).saturating_add(64 << 20))
    }

    /// The same, in a segment of `room` bytes. Room to grow in place costs nothing, unless address space is limited: then exactly what is
    /// needed.
    fn with_room(len: usize, phase: usize, room: usize) -> io::Result<Buffer> {
        let segment = Segment::reserve(room).or_else(|_| Segment::reserve(len.saturating_add(phase)))?;
        Buffer::place(segment, len, phase)
    }

    fn place(segment: Segment, len: usize, phase: usize) -> io::Result<Buffer> {
        let room = whole_pages(len.saturating_add(phase))?;
        let addr = segment.take(room)? + phase;
        Ok(Buffer { segment, addr, len, room, origin: None })
    }

    fn phase(&self) -> usize {
        self.addr % PAGE
    }

    fn base(&self) -> usize {
        self.addr - self.phase()
    }

    /// Changes the length. New bytes are zero; the pages that stay, stay associated.
    ///
    /// # Errors
    /// `ENOMEM` if there is no address space for it; the buffer is unchanged then.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        let (base, room) = (self.base(), whole_pages(len.saturating_add(self.phase()))?);
        if room > self.room {
            if !self.segment.extend(base + self.room, room - self.room) {
                return self.move_to(Buffer::with_phase(len, self.phase())?);
            }
            self.room = room;
        } else if room < self.room {
            self.segment.give(base + room, self.room - room);
            self.room = room;
        }
        if len < self.len {
            // What is cut off must not come back when it grows again.
            let end = (base + room).min(self.addr + self.len);
            let cut = self.addr + len;
            // SAFETY: within our own pages, which are exclusively borrowed.
            unsafe { std::ptr::write_bytes(cut as *mut u8, 0, end - cut) };
        }
        self.len = len;
        Ok(())
    }

    /// [`Buffer::resize`] to more bytes, after which there may be more: with room behind them, and room for many times as much.
    pub(crate) fn grow(&mut self, len: usize) -> io::Result<()> {
        let needed = whole_pages(len.saturating_add(self.phase()))?;
        if needed > self.room {
            // (Not in a segment that others use.)
            let ahead = if self.segment.is_sole() { (needed / 8).next_multiple_of(PAGE) } else { 0 };
            let extend = |more| self.segment.extend(self.base() + self.room, more);
            self.room = match needed - self.room {
                more if extend(more + ahead) => needed + ahead,
                more if extend(more) => needed,
                _ => {
                    let room = len.saturating_mul(16).saturating_add(64 << 20);
                    return self.move_to(Buffer::with_room(len, self.phase(), room)?);
                }
            };
        }
        self.len = len;
        Ok(())
    }

    /// A copy, which stands for the same file bytes: what is not altered is neither loaded nor copied, and takes no memory.
    ///
    /// Only altered bytes are copied, and what stands for no file. So is everything where more than half was altered, and of buffers of less
    /// than 1 MiB. The copy keeps no file open: its first [`write`](crate::write()) opens one.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("image");
    /// # std::fs::write(&path, vec![7; 16 << 20])?;
    /// let before = elision::edit(&path)?;
    /// let mut after = before.try_clone()?; // nothing is loaded
    /// after[8 << 20] = 1; //                  one page
    /// assert_eq!(before[8 << 20], 7);
    /// # std::io::Result::Ok(())
    /// ```
    ///
    /// # Errors
    /// `ENOMEM` if there is no address space for it.
    pub fn try_clone(&self) -> io::Result<Buffer> {
        let mut copy = Buffer::with_phase(self.len, self.phase())?;
        if self.len < threshold::to_save() {
            copy.copy_from_slice(self);
            return Ok(copy);
        }
        let (target, room) = (copy.base(), copy.room);
        let copy_part = |at: usize, len: usize| {
            let (from, to) = ((self.base() + at) as *const u8, (target + at) as *mut u8);
            // What is behind the end, too: the copy's last page may be the file's. SAFETY: whole pages of both, of which nobody stores into
            // the one, and nobody has the other yet.
            unsafe { std::ptr::copy_nonoverlapping(from, to, len) };
        };
        // SAFETY: `&self` keeps everybody from storing into the one, and nobody has the other yet.
        unsafe { engine::duplicate(self.base(), room, target, copy_part) };
        Ok(copy)
    }

    /// Moves page by page, so that nothing is loaded, and what is deferred stays so.
    fn move_to(&mut self, mut moved: Buffer) -> io::Result<()> {
        // SAFETY: both are ours, and exclusively borrowed; neither is used below before it is what it should be.
        let done = unsafe { engine::relocate(self.base(), self.room, moved.base()) };
        let rest = done.saturating_sub(self.phase()).min(self.len)..self.len;
        moved[rest.clone()].copy_from_slice(&self[rest]);
        moved.origin = self.origin.take();
        *self = moved;
        Ok(())
    }

    /// Fills `self[at..at + len]` with the bytes of `file` from `offset`, and says how many there were (fewer only at
    /// the end of file). Whole pages are deferred where memory and file agree on where pages begin; so is a page that two
    /// adjacent reads fill together.
    ///
    /// # Errors
    /// As reading the file traditionally.
    ///
    /// # Panics
    /// If `at + len` is beyond the buffer.
    pub fn read_at(&mut self, at: usize, len: usize, file: &File, offset: u64) -> io::Result<usize> {
        self.fill(at, len, file, offset, threshold::to_refill(), file.facts().as_ref())
    }

    fn fill(
        &mut self,
        at: usize,
        len: usize,
        file: &File,
        offset: u64,
        least: usize,
        facts: Option<&FileFacts>,
    ) -> io::Result<usize> {
        // SAFETY: the pages around are this buffer's, which is exclusively borrowed.
        unsafe { file.read_into(&mut self[at..at + len], offset, least, facts) }
    }

    /// Writes `self[at..at + len]` to `file` at `offset`: only what the file does not have already.
    ///
    /// # Errors
    /// As writing the file traditionally; what was written by then is written.
    ///
    /// # Panics
    /// If `at + len` is beyond the buffer.
    pub fn write_at(&mut self, at: usize, len: usize, file: &File, offset: u64) -> io::Result<()> {
        file.write_from(&self[at..at + len], offset, Track::Now)
    }

    /// Loads a range now. An error is returned that a touch would raise as SIGBUS.
    ///
    /// # Errors
    /// `EIO` if a page cannot be read from its file; `ENOMEM` if memory is short.
    ///
    /// # Panics
    /// If the range is beyond the buffer.
    pub fn load(&self, range: impl RangeBounds<usize>) -> io::Result<()> {
        let part = part(self, &range);
        if part.is_empty() {
            return Ok(());
        }
        Ok(read::load(part.as_ptr() as usize, part.len())?)
    }

    /// Gives the memory of loaded pages back to the system; a touch loads them again. Altered pages stay. Says how many bytes
    /// were given back.
    ///
    /// # Errors
    /// None so far: what cannot be given back stays.
    ///
    /// # Panics
    /// If the range is beyond the buffer.
    pub fn unload(&mut self, range: impl RangeBounds<usize>) -> io::Result<usize> {
        let part = part(self, &range).as_ptr_range();
        let (start, end) = (part.start as usize, part.end as usize);
        let (start, end) = (start.next_multiple_of(PAGE), end / PAGE * PAGE);
        // SAFETY: `&mut self` keeps everybody from altering these pages meanwhile.
        Ok(if start < end { unsafe { engine::unload(start, end - start) } } else { 0 })
    }

    /// What each run of bytes is: in order, from 0 to the length of the buffer.
    pub fn ranges(&self) -> Vec<(Range<usize>, PageState)> {
        let mut runs: Vec<(Range<usize>, PageState)> = Vec::new();
        let mut push = |range: Range<usize>, state: PageState| match runs.last_mut() {
            Some((last, same)) if *same == state && last.end == range.start => last.end = range.end,
            _ if range.is_empty() => (),
            _ => runs.push((range, state)),
        };
        let within = |addr: usize| addr.saturating_sub(self.addr).min(self.len);
        let known = engine::query(self.base(), self.room, |addr, len, state| {
            push(within(addr)..within(addr + len), state);
        });
        push(within(self.base() + known)..self.len, PageState::Plain);
        runs
    }

    /// The bytes, and where the file stays that they are saved to.
    pub(crate) fn parts(&mut self) -> (&[u8], Option<&mut Option<File>>) {
        // SAFETY: as in `deref`, of all but `origin`.
        let bytes = unsafe { std::slice::from_raw_parts(self.addr as *const u8, self.len) };
        (bytes, Some(&mut self.origin))
    }

    /// Closes the file that this buffer was read from for editing, or saved to. The next save opens it again.
    pub fn close(&mut self) {
        self.origin = None;
    }
}

impl Segment {
    /// A buffer of `len` zero bytes in this segment.
    ///
    /// # Errors
    /// `ENOMEM` if the segment has no free range of that length.
    pub fn buffer(&self, len: usize) -> io::Result<Buffer> {
        Buffer::place(self.clone(), len, 0)
    }
}

impl File {
    /// Reads up to `len` bytes from `offset` (fewer only at the end of file) into a new buffer.
    ///
    /// # Errors
    /// As reading traditionally (`EINVAL` if there can be no such offset); `ENOMEM` if there is no address space.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Buffer> {
        if i64::try_from(offset).is_err() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // To the last byte that a file can have: some file systems refuse a read that reaches further.
        let len = len.min((i64::MAX as u64 - offset) as usize);
        self.read_new(offset, len, threshold::to_read(), self.facts())
    }

    /// Reads a whole file, whatever it is; deferred from `least` bytes on.
    pub(crate) fn read_all(&self, least: usize) -> io::Result<Buffer> {
        match self.facts() {
            Some(facts) if facts.stat.size > 0 => self.read_new(0, usize::MAX, least, Some(facts)),
            _ => {
                let bytes = self.read_to_end()?;
                let mut buffer = Buffer::new(bytes.len())?;
                buffer.copy_from_slice(&bytes);
                Ok(buffer)
            }
        }
    }

    fn read_new(
        &self,
        offset: u64,
        len: usize,
        least: usize,
        facts: Option<FileFacts>,
    ) -> io::Result<Buffer> {
        let available = facts.map_or(0, |facts| facts.stat.size.saturating_sub(offset));
        let there = usize::try_from(available).unwrap_or(usize::MAX).min(len);
        // Deferrable; as aligned as what malloc gives.
        let phase = if offset.is_multiple_of(16) { (offset % PAGE as u64) as usize } else { 0 };
        let mut buffer = Buffer::with_phase(there, phase)?;
        let got = buffer.fill(0, there, self, offset, least, facts.as_ref())?;
        if got < there {
            buffer.resize(got)?;
        } else if got < len && !self.size_is_true(facts.as_ref()) {
            // From where the file should have ended, until there are `len` bytes or it does end.
            let mut room = vec![0; 1 << 16];
            while buffer.len() < len {
                let end = buffer.len();
                let wanted = room.len().min(len - end);
                let got = self.read_traditionally(&mut room[..wanted], offset + end as u64)?;
                if got == 0 {
                    break;
                }
                buffer.resize(end + got)?;
                buffer[end..].copy_from_slice(&room[..got]);
            }
        }
        Ok(buffer)
    }

    /// Writes a whole buffer at `offset`: only what the file does not have already.
    ///
    /// # Errors
    /// As writing traditionally.
    pub fn write(&self, offset: u64, buffer: &mut Buffer) -> io::Result<()> {
        buffer.write_at(0, buffer.len(), self, offset)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.segment.is_sole() {
            // The segment ends with its only buffer: unmapped once, as a whole.
            // SAFETY: the memory is ours, and goes.
            unsafe { engine::forget(self.base(), self.room) };
        } else {
            self.segment.give(self.base(), self.room);
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `[addr, addr + len)` is mapped, readable and ours until drop, and its bytes change only through
        // `&mut self`: mapped pages are guarded by a lease, and materialising replaces them by equal ones.
        unsafe { std::slice::from_raw_parts(self.addr as *const u8, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.addr as *mut u8, self.len) }
    }
}

// SAFETY: the bytes are in a mapping of their own, whose address a move of the buffer does not change, nor does anything that `&Buffer`
// can do: loading and materialising exchange pages in their place. `resize` may move them, and takes `&mut`.
#[cfg(feature = "stable_deref_trait")]
unsafe impl stable_deref_trait::StableDeref for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the contents: printing would load them all.
        f.debug_struct("Buffer").field("len", &self.len).finish_non_exhaustive()
    }
}
