//! Whose open file descriptions are whose.
//!
//! A write lease on a description that the program has open for writing is sound only while every change
//! made through that description is shown to the library first. So a description is *owned* on positive
//! knowledge alone: a function that we saw opened it, in this process, for writing, and nothing since could
//! have handed it to another process or to code that we do not see. Not knowing is always safe; it costs a
//! deferral.
//!
//! The knowledge is a table indexed by descriptor number. Three races decide its shape:
//!
//! - *A change under way while a read is deferred.* A thread that found no lease may be inside write(2) when
//!   another thread's read of the same file is deferred. Writers on recorded descriptors are therefore
//!   noted (see [`crate::state::in_flight`]); the reader looks for them after its lease is visible, and materialises if there is
//!   one. Either the writer sees the lease or the reader sees the writer.
//! - *A descriptor opened while another thread forks.* Whoever opens notes the generation first, and records
//!   only if no sharing has begun or ended since.
//! - *A read under way while another thread forks.* The fork waits for it, though not for ever: it may be the
//!   very thread that a signal handler interrupted to fork. Such a read finds the generation changed when it
//!   is done, and materialises.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use elision_core::client;
use elision_sys::file::Stat;
use elision_sys::task::{block_signals, restore_signals};

use crate::abi::kernel;
use crate::state::in_flight;
use crate::state::in_flight::Place;

/// Descriptors beyond are never recorded.
const DESCRIPTORS: usize = 64 * 1024;

/// The standard descriptors are never recorded: libc itself writes to them and duplicates over them.
const FIRST: usize = 3;

/// Opened here, for reading only.
const READ_ONLY: u64 = 1;

/// Set in the entry of a description open for writing; the other bits tell its file from others.
const WRITABLE: u64 = 2;

struct Entry {
    /// Zero: unknown.
    file: AtomicU64,
    /// Calls under way that change the file through this descriptor and are not noted with their threads.
    counted: AtomicU32,
    /// Moves with every call that changes the file through this descriptor. Not always by one: threads store what they loaded
    /// and one more. But it never comes back to what it was when nobody was changing the file: who stores it is noted from
    /// before he loads it until after.
    begun: AtomicU32,
}

impl Entry {
    /// A call begins that is noted.
    #[inline(always)]
    fn begin(&self) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.begun.store(begun.wrapping_add(1), Ordering::Release);
    }
}

static TABLE: [Entry; DESCRIPTORS] =
    [const { Entry { file: AtomicU64::new(0), counted: AtomicU32::new(0), begun: AtomicU32::new(0) } };
        DESCRIPTORS];

/// The sum of all that are counted with descriptors: never less.
static COUNTED: AtomicU32 = AtomicU32::new(0);

/// One more than the highest descriptor ever recorded.
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// Is anything recorded at all? Set by the constructor.
static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Calls under way during which descriptors may come to be shared.
static SHARING: AtomicU32 = AtomicU32::new(0);

/// Moves whenever a sharing begins or ends.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Set once descriptors can be written through unseen at any time; never cleared.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Reads under way that may take a write lease.
static READING: AtomicU32 = AtomicU32::new(0);

/// When a call that makes a descriptor began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(u32);

/// A call that changes a file, until [`end_change`].
#[derive(Clone, Copy)]
#[must_use]
pub(crate) enum Change {
    /// Through a descriptor that is not recorded as open for writing.
    Unknown,
    /// Noted with its thread.
    Noted(in_flight::Noted),
    /// Counted with its descriptor.
    Counted,
}

/// Begins recording.
pub(crate) fn activate() {
    in_flight::prepare();
    ACTIVE.store(true, Ordering::Relaxed);
}

/// Are descriptors recorded? False before the constructor, and when the drop-in is off.
#[inline]
pub(crate) fn active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// Is a fork or its like under way? Then nothing is offered: a child that borrows our memory has a descriptor
/// table of its own, and its numbers mean other files than ours.
#[inline]
pub(crate) fn paused() -> bool {
    SHARING.load(Ordering::Relaxed) != 0
}

/// Now, for [`opened`] and its kin.
#[inline]
pub(crate) fn moment() -> Moment {
    Moment(GENERATION.load(Ordering::SeqCst))
}

#[inline]
fn entry(fd: i32) -> Option<&'static Entry> {
    TABLE.get(fd as usize)
}

#[inline]
fn file(fd: i32) -> u64 {
    entry(fd).map_or(0, |entry| entry.file.load(Ordering::SeqCst))
}

/// The entries that were ever in use.
fn used() -> &'static [Entry] {
    TABLE.get(..HIGH.load(Ordering::SeqCst)).unwrap_or(&TABLE)
}

/// `fd` was opened with `flags` by a call that began at `since`.
pub(crate) fn opened(fd: i32, flags: i32, since: Moment) {
    if !active() || fd < FIRST as i32 {
        return;
    }
    let known = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => 0,
        libc::O_RDONLY => READ_ONLY,
        // Not by fstat: whoever asks for times makes the next write cost more.
        _ => elision_sys::file::stat(fd).map_or(0, |stat| known_as(&stat)),
    };
    record(fd, known, since);
}

/// What the entry of a descriptor that is open for writing has to say.
fn known_as(stat: &Stat) -> u64 {
    if stat.is_regular() { client::changes::file_number(stat.id) | WRITABLE } else { 0 }
}

/// `fd` was opened by a call that began at `since`, and only its description knows how.
pub(crate) fn found(fd: i32, since: Moment) {
    if let Some(flags) = kernel::status_flags(fd) {
        opened(fd, flags, since);
    }
}

/// `to` was made a duplicate of `from` by a call that began at `since`.
pub(crate) fn copied(from: i32, to: i32, since: Moment) {
    if from == to || to < 0 {
        return;
    }
    let known = file(from);
    if (FIRST..DESCRIPTORS).contains(&(to as usize)) {
        record(to, known, since);
    } else if known != 0 {
        disown(from);
    }
}

fn record(fd: i32, known: u64, since: Moment) {
    let Some(entry) = entry(fd) else { return };
    if known != 0 {
        HIGH.fetch_max(fd as usize + 1, Ordering::SeqCst);
    }
    entry.file.store(known, Ordering::SeqCst);
    // Stored first, then checked: a sharing that begins now either clears the entry or is seen here.
    if moment() != since || paused() {
        entry.file.store(0, Ordering::SeqCst);
    }
}

/// `fd` is about to be closed, or duplicated over.
#[inline]
pub(crate) fn closing(fd: i32) {
    if file(fd) != 0 {
        forget(fd);
    }
}

#[cold]
fn forget(fd: i32) {
    let Some(entry) = entry(fd) else { return };
    let known = entry.file.swap(0, Ordering::SeqCst);
    // (Who is noted with his thread is known by the file, and found without the entry.)
    if known & WRITABLE != 0 && entry.counted.load(Ordering::SeqCst) != 0 {
        // Somebody writes through it at this moment: its duplicates must not be trusted to know of that.
        disown_file(known);
        client::changes::before_change(fd);
    } else if known & WRITABLE != 0 {
        client::changes::closing(fd, false);
    }
}

/// Descriptors `first` to `last` are about to be closed.
pub(crate) fn closing_range(first: u32, last: u32) {
    let last = (last as usize).min(HIGH.load(Ordering::SeqCst));
    for fd in first as usize..=last {
        closing(fd as i32);
    }
}

/// Is no other process, and no code that we do not see, using the position of `fd`?
pub(crate) fn sole(fd: i32) -> bool {
    recorded(fd) && !paused() && !NEVER.load(Ordering::Relaxed)
}

/// Was any descriptor ever recorded?
pub(crate) fn any() -> bool {
    HIGH.load(Ordering::Relaxed) != 0
}

/// Was `fd` opened here, and not shared since?
#[inline]
pub(crate) fn recorded(fd: i32) -> bool {
    file(fd) != 0
}

/// Is `fd` recorded as open for writing?
#[inline]
pub(crate) fn writable(fd: i32) -> bool {
    file(fd) & WRITABLE != 0
}

/// Is every change through `fd`, of which `stat` was asked just now, certain to be shown to us first?
pub(crate) fn owned(fd: i32, stat: &Stat) -> bool {
    let known = file(fd);
    known & WRITABLE != 0 && !paused() && !NEVER.load(Ordering::Relaxed) && known_as(stat) == known
}

/// May the file behind `fd` be guarded by a write lease? The kernel is asked only where what is recorded does not do. `false` is
/// certain.
#[inline]
pub(crate) fn write_lease_on(fd: i32) -> bool {
    client::changes::write_leases() && {
        let known = file(fd);
        (known & WRITABLE == 0 || client::changes::write_lease_on_number(known))
            && client::changes::write_lease_on(fd)
    }
}

/// From here on changes are made through the description of `fd` that we do not see.
pub(crate) fn disown(fd: i32) {
    let known = file(fd);
    if known & WRITABLE != 0 {
        disown_file(known);
    } else {
        closing(fd);
    }
    if known & WRITABLE != 0 || client::changes::write_leases() {
        wait_for_readers();
        client::changes::before_change(fd);
    }
}

fn disown_file(known: u64) {
    // The generation moves so that a read under way, which asked before, materialises.
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for entry in used() {
        let _ = entry.file.compare_exchange(known, 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// The entry of a descriptor that is recorded as open for writing, and what it says.
#[inline(always)]
fn open_for_writing(fd: i32) -> Option<(&'static Entry, u64)> {
    let entry = entry(fd)?;
    let known = entry.file.load(Ordering::SeqCst);
    (known & WRITABLE != 0).then_some((entry, known))
}

/// A call that changes the file behind `fd` begins.
#[inline(always)]
pub(crate) fn begin_change(fd: i32) -> Change {
    let Some((entry, known)) = open_for_writing(fd) else { return Change::Unknown };
    match in_flight::begin(known, Place::Any) {
        Some(noted) => {
            entry.begin();
            Change::Noted(noted)
        }
        None => count_change(entry),
    }
}

/// Why a change was not noted by [`note_unguarded`].
pub(crate) enum Unnoted {
    /// The descriptor is not recorded as open for writing.
    NotForWriting,
    /// The file may be under a write lease, or the thread has no slot in its first place: see [`begin_change`].
    ToBeLookedAt,
}

/// The same for a file that no write lease guards, as far as can be told without asking the kernel; its end is the note's.
/// An error: nothing has begun.
#[inline(always)]
pub(crate) fn note_unguarded(fd: i32) -> Result<in_flight::Noted, Unnoted> {
    let (entry, known) = open_for_writing(fd).ok_or(Unnoted::NotForWriting)?;
    let noted = in_flight::begin(known, Place::First).ok_or(Unnoted::ToBeLookedAt)?;
    // Asked when the note can be seen: whoever takes a write lease looks for notes when the lease is published.
    if client::changes::write_lease_on_number(known) {
        in_flight::end(noted);
        return Err(Unnoted::ToBeLookedAt);
    }
    entry.begin();
    Ok(noted)
}

#[cold]
#[inline(never)]
fn count_change(entry: &Entry) -> Change {
    COUNTED.fetch_add(1, Ordering::SeqCst);
    entry.counted.fetch_add(1, Ordering::SeqCst);
    entry.begun.fetch_add(1, Ordering::SeqCst);
    Change::Counted
}

/// It is over.
#[inline(always)]
pub(crate) fn end_change(fd: i32, change: Change) {
    match change {
        Change::Unknown => (),
        Change::Noted(noted) => in_flight::end(noted),
        Change::Counted => {
            if let Some(entry) = entry(fd) {
                entry.counted.fetch_sub(1, Ordering::SeqCst);
            }
            COUNTED.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Calls under way that change a file, whichever descriptor they use. `None`: that cannot be told.
fn under_way(known: u64) -> Option<u64> {
    if !in_flight::barrier() {
        NEVER.store(true, Ordering::SeqCst);
        return None;
    }
    let counted = |entry: &Entry| match entry.file.load(Ordering::SeqCst) == known {
        true => u64::from(entry.counted.load(Ordering::SeqCst)),
        false => 0,
    };
    let elsewhere = match COUNTED.load(Ordering::SeqCst) {
        0 => 0,
        _ => used().iter().map(counted).sum(),
    };
    Some(in_flight::under_way(known) + elsewhere)
}

/// Runs `change`, which changes the file behind `fd`, with the library told before.
#[inline]
pub(crate) fn changing<T>(fd: i32, change: impl FnOnce() -> T) -> T {
    let counted = begin_change(fd);
    let result = change();
    end_change(fd, counted);
    result
}

/// Runs `read`, an offer of an owned descriptor, and takes the deferral back if the ground has shifted
/// meanwhile. `None`: a change is under way, and nothing was offered.
pub(crate) fn reading<T>(fd: i32, since: Moment, read: impl FnOnce() -> T) -> Option<T> {
    let changing = || {
        let known = file(fd);
        known & WRITABLE == 0 || under_way(known) != Some(0)
    };
    // A handler that left by a jump, or a cancellation, would leave this counted for ever, and every fork wait for it.
    let mask = block_signals();
    READING.fetch_add(1, Ordering::SeqCst);
    let result = (!changing()).then(read);
    fence(Ordering::SeqCst);
    if result.is_some() && (changing() || moment() != since) {
        client::changes::before_change(fd);
    }
    READING.fetch_sub(1, Ordering::SeqCst);
    restore_signals(mask);
    result
}

/// What has been going on with the file behind a descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Activity {
    under_way: Option<u64>,
    begun: u64,
}

/// Of the file behind `fd`, now.
pub(crate) fn activity(fd: i32) -> Activity {
    let under_way = under_way(file(fd));
    Activity { under_way, begun: begun(fd) }
}

/// Moves with every call that changes the file behind `fd`.
pub(crate) fn begun(fd: i32) -> u64 {
    let known = file(fd);
    let same = used().iter().filter(|entry| entry.file.load(Ordering::SeqCst) == known);
    same.map(|entry| u64::from(entry.begun.load(Ordering::SeqCst))).sum()
}

/// Was the caller's the only change of the file since then, itself included then? If not, nobody can tell whose bytes
/// the file has where two changes met.
pub(crate) fn alone_since(fd: i32, before: Activity) -> bool {
    let now = activity(fd);
    let alone = |activity: Activity| activity.under_way.is_some_and(|count| count <= 1);
    file(fd) & WRITABLE != 0 && alone(before) && alone(now) && now.begun == before.begun
}

/// Is the caller's the only change of the file behind `fd` that is under way?
pub(crate) fn alone(fd: i32) -> bool {
    let known = file(fd);
    known & WRITABLE != 0 && under_way(known) == Some(1)
}

/// Has nobody changed the file since [`begun`] was `before`, if nobody was at it then?
pub(crate) fn quiet_since(fd: i32, before: u64) -> bool {
    let now = activity(fd);
    file(fd) & WRITABLE != 0 && now.under_way == Some(0) && now.begun == before
}

/// Waits for reads under way that may be deferred; not for ever, since it may be one of these that a signal handler
/// has interrupted.
pub(crate) fn wait_for_readers() {
    // What was noted comes first: a reader that is not seen here sees it.
    fence(Ordering::SeqCst);
    for _ in 0..100 {
        if READING.load(Ordering::SeqCst) == 0 {
            return;
        }
        kernel::pause();
    }
}

/// Descriptors are about to be shared with another process: what is open now is owned no longer, and what is
/// opened until [`end_sharing`] never will be.
pub(crate) fn begin_sharing() {
    SHARING.fetch_add(1, Ordering::SeqCst);
    surrender();
}

/// The call that shared them is over, in this process.
pub(crate) fn end_sharing() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    SHARING.fetch_sub(1, Ordering::SeqCst);
}

/// As [`end_sharing`], in a forked child: the threads that were in the middle of something are gone.
pub(crate) fn begin_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for entry in used() {
        entry.counted.store(0, Ordering::Relaxed);
    }
    COUNTED.store(0, Ordering::Relaxed);
    in_flight::reset();
    READING.store(0, Ordering::Relaxed);
    SHARING.store(0, Ordering::SeqCst);
}

/// From now on descriptors may be written through unseen at any time (io_uring, asynchronous I/O).
pub(crate) fn share_for_good() {
    if active() && !NEVER.swap(true, Ordering::SeqCst) {
        surrender();
    }
}

/// The descriptor table itself is shared with, or differs from, that of another user of this memory: numbers
/// no longer mean one thing, and nothing is offered any more.
pub(crate) fn pause_for_good() {
    if active() && SHARING.load(Ordering::Relaxed) < u32::MAX / 2 {
        SHARING.fetch_add(u32::MAX / 2, Ordering::SeqCst);
        surrender();
    }
}

fn surrender() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for entry in used() {
        entry.file.store(0, Ordering::SeqCst);
    }
    wait_for_readers();
    client::changes::release_write_leases();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    fn owned(fd: i32) -> bool {
        super::owned(fd, &elision_sys::file::stat(fd).unwrap())
    }

    // One process, one table.
    static ALONE: Mutex<()> = Mutex::new(());

    fn writable_file() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("elision-ownership-{}", std::process::id()));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        activate();
        file
    }

    #[test]
    fn what_is_opened_here_is_owned_until_it_is_shared() {
        let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
        let file = writable_file();
        let fd = file.as_raw_fd();
        assert!(!owned(fd));
        opened(fd, libc::O_RDWR, moment());
        assert!(owned(fd) && sole(fd) && writable(fd));
        begin_sharing();
        assert!(!owned(fd));
        opened(fd, libc::O_RDWR, moment());
        assert!(!writable(fd), "opened while a fork is under way");
        let during = moment();
        end_sharing();
        opened(fd, libc::O_RDWR, during);
        assert!(!owned(fd), "opened during the fork, recorded after it");
        opened(fd, libc::O_RDWR, moment());
        assert!(owned(fd));
        closing(fd);
        assert!(!owned(fd));
    }

    #[test]
    fn disowning_one_duplicate_disowns_all() {
        let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
        let file = writable_file();
        let other = writable_file();
        let copy = file.try_clone().unwrap();
        opened(file.as_raw_fd(), libc::O_RDWR, moment());
        opened(other.as_raw_fd(), libc::O_RDWR, moment());
        copied(file.as_raw_fd(), copy.as_raw_fd(), moment());
        assert!(owned(copy.as_raw_fd()));
        disown(file.as_raw_fd());
        assert!(!owned(copy.as_raw_fd()) && !owned(file.as_raw_fd()) && owned(other.as_raw_fd()));

        // A duplicate that the table has no room for counts as lost.
        copied(other.as_raw_fd(), DESCRIPTORS as i32, moment());
        assert!(!owned(other.as_raw_fd()));
    }

    #[test]
    fn a_stale_entry_is_not_believed() {
        let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
        let file = writable_file();
        let other = writable_file();
        opened(file.as_raw_fd(), libc::O_RDWR, moment());
        // SAFETY: both descriptors are ours; what `file` refers to changes, unseen by the table.
        #[allow(unsafe_code)]
        unsafe {
            elision_sys::raw::syscall(
                libc::SYS_dup2,
                [other.as_raw_fd() as usize, file.as_raw_fd() as usize, 0, 0, 0, 0],
            )
        }
        .unwrap();
        assert!(!owned(file.as_raw_fd()));
        closing(file.as_raw_fd());
    }
}
