//! The open file descriptions of this process: which of them only this process uses, and only in ways that are seen here.
//!
//! A write lease on a description that the program has open for writing is sound only while every change made through that
//! description is shown to the library first. So a description is *owned* on positive knowledge alone: a function that was
//! seen here opened it for writing, in this process, and nothing since could have handed it to another process or to code
//! that is not seen. Not to know is always safe, and costs a deferral.
//!
//! The knowledge is a table with a record per descriptor. Three races decide its shape:
//!
//! - *A change under way while a read is deferred.* A thread that found no lease may be inside write(2) when another
//!   thread's read of the same file is deferred. So writers are noted (see [`crate::state::in_flight`]). The reader looks
//!   for them once its lease is visible, and materialises if there is one: either the writer sees the lease, or the reader
//!   sees the writer.
//! - *A descriptor opened while another thread forks.* The opener takes the [`Moment`] first, and records only if no
//!   sharing has begun or ended since.
//! - *A read under way while another thread forks.* The fork waits for the read, though not for ever: a signal handler
//!   that forks may have interrupted it. Such a read finds the moment changed when it is done, and materialises.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use elision_core::client::changes;
use elision_sys::file::{self, Stat};
use elision_sys::task::{block_signals, restore_signals};

use crate::abi::kernel;
use crate::state::in_flight::{self, Place};

/// Descriptors beyond are never recorded.
const DESCRIPTORS: usize = 64 * 1024;

/// The standard descriptors are never recorded: libc itself writes to them and duplicates over them.
const FIRST: usize = 3;

/// What is known of the description behind one descriptor. Each field is true by itself: there is no moment at which two of
/// them have to agree. In one cache line, since every small write looks at it.
#[repr(align(32))]
struct Description {
    /// Opened here for writing to the file of this number. 0: not known to be.
    writes_to: AtomicU64,
    /// Opened here for reading only.
    read_only: AtomicBool,
    /// Calls under way that change the file through this descriptor and are not noted with their threads.
    counted: AtomicU32,
    /// Moves with every call that changes the file through this descriptor. Not always by one: threads store what they
    /// loaded and one more. But it never returns to a value that it had when no call was changing the file: a
    /// thread is noted from before its load until after its store.
    begun: AtomicU32,
}

impl Description {
    const fn unknown() -> Description {
        Description {
            writes_to: AtomicU64::new(0),
            read_only: AtomicBool::new(false),
            counted: AtomicU32::new(0),
            begun: AtomicU32::new(0),
        }
    }

    #[inline(always)]
    fn writes_to(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.writes_to.load(Ordering::SeqCst))
    }

    fn is_known(&self) -> bool {
        self.writes_to().is_some() || self.read_only.load(Ordering::SeqCst)
    }

    fn set(&self, opened: Opened) {
        let (file, read_only) = match opened {
            Opened::ForWriting(file) => (file.get(), false),
            Opened::ForReading => (0, true),
            Opened::Unknown => (0, false),
        };
        self.writes_to.store(file, Ordering::SeqCst);
        self.read_only.store(read_only, Ordering::SeqCst);
    }

    /// A noted call begins.
    #[inline(always)]
    fn begin(&self) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.begun.store(begun.wrapping_add(1), Ordering::Release);
    }
}

/// How a description was opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    ForWriting(NonZeroU64),
    ForReading,
    Unknown,
}

static TABLE: [Description; DESCRIPTORS] = [const { Description::unknown() }; DESCRIPTORS];

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

/// Is a fork or its like under way? Then nothing is offered: a child that borrows this memory has a descriptor table of its
/// own, where a number means another file.
#[inline]
pub(crate) fn being_shared() -> bool {
    SHARING.load(Ordering::Relaxed) != 0
}

/// Now, for [`opened`] and its kin.
#[inline]
pub(crate) fn moment() -> Moment {
    Moment(GENERATION.load(Ordering::SeqCst))
}

#[inline]
fn description(fd: i32) -> Option<&'static Description> {
    TABLE.get(fd as usize)
}

/// The file that `fd` is recorded as open for writing to.
#[inline]
fn writes_to(fd: i32) -> Option<NonZeroU64> {
    description(fd)?.writes_to()
}

/// The records that were ever in use.
fn used() -> &'static [Description] {
    TABLE.get(..HIGH.load(Ordering::SeqCst)).unwrap_or(&TABLE)
}

/// `fd` was opened with `flags` by a call that began at `since`.
pub(crate) fn opened(fd: i32, flags: i32, since: Moment) {
    if !active() || fd < FIRST as i32 {
        return;
    }
    let how = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => Opened::Unknown,
        libc::O_RDONLY => Opened::ForReading,
        // Not by fstat: to ask for times makes the next write cost more.
        _ => file::stat(fd).ok().and_then(|stat| number(&stat)).map_or(Opened::Unknown, Opened::ForWriting),
    };
    record(fd, how, since);
}

/// A number that tells one regular file from another, though not beyond all doubt.
fn number(stat: &Stat) -> Option<NonZeroU64> {
    // (The lowest bit tells nothing.)
    NonZeroU64::new(changes::file_number(stat.id) | 1).filter(|_| stat.is_regular())
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
    let how = match (writes_to(from), recorded(from)) {
        (Some(file), _) => Opened::ForWriting(file),
        (None, true) => Opened::ForReading,
        (None, false) => Opened::Unknown,
    };
    if (FIRST..DESCRIPTORS).contains(&(to as usize)) {
        record(to, how, since);
    } else if how != Opened::Unknown {
        disown(from);
    }
}

fn record(fd: i32, how: Opened, since: Moment) {
    let Some(description) = description(fd) else { return };
    if how != Opened::Unknown {
        HIGH.fetch_max(fd as usize + 1, Ordering::SeqCst);
    }
    description.set(how);
    // Stored first, then checked: a sharing that begins now either clears the record or is seen here.
    if moment() != since || being_shared() {
        description.set(Opened::Unknown);
    }
}

/// `fd` is about to be closed, or duplicated over.
#[inline]
pub(crate) fn closing(fd: i32) {
    if recorded(fd) {
        forget(fd);
    }
}

#[cold]
fn forget(fd: i32) {
    let Some(description) = description(fd) else { return };
    let file = NonZeroU64::new(description.writes_to.swap(0, Ordering::SeqCst));
    description.read_only.store(false, Ordering::SeqCst);
    let Some(file) = file else { return };
    // (A noted writer is known by its file, and found without the record.)
    if description.counted.load(Ordering::SeqCst) == 0 {
        return changes::closing(fd, false);
    }
    // Somebody writes through it at this moment, of which the records of its duplicates know nothing.
    disown_file(file);
    changes::before_change(fd);
}

/// Descriptors `first` to `last` are about to be closed.
pub(crate) fn closing_range(first: u32, last: u32) {
    let last = (last as usize).min(HIGH.load(Ordering::SeqCst));
    for fd in first as usize..=last {
        closing(fd as i32);
    }
}

/// Is no other process, and no code that is not seen here, using the position of `fd`?
pub(crate) fn sole(fd: i32) -> bool {
    recorded(fd) && !being_shared() && !NEVER.load(Ordering::Relaxed)
}

/// Was any descriptor ever recorded?
pub(crate) fn any() -> bool {
    HIGH.load(Ordering::Relaxed) != 0
}

/// Was `fd` opened here, and not shared since?
#[inline]
pub(crate) fn recorded(fd: i32) -> bool {
    description(fd).is_some_and(Description::is_known)
}

/// Is `fd` recorded as open for writing?
#[inline]
pub(crate) fn writable(fd: i32) -> bool {
    writes_to(fd).is_some()
}

/// Is every change through `fd`, of which `stat` was asked just now, certain to be shown to the library first?
pub(crate) fn owned(fd: i32, stat: &Stat) -> bool {
    let file = writes_to(fd);
    file.is_some() && !being_shared() && !NEVER.load(Ordering::Relaxed) && number(stat) == file
}

/// May the file behind `fd` be guarded by a write lease? The kernel is asked only where the record does not tell. `false` is
/// certain.
#[inline]
pub(crate) fn write_lease_on(fd: i32) -> bool {
    let may = |file: NonZeroU64| changes::write_lease_on_number(file.get());
    changes::write_leases() && writes_to(fd).is_none_or(may) && changes::write_lease_on(fd)
}

/// From here on changes are made through the description of `fd` that are not seen here.
pub(crate) fn disown(fd: i32) {
    let file = writes_to(fd);
    match file {
        Some(file) => disown_file(file),
        None => closing(fd),
    }
    if file.is_some() || changes::write_leases() {
        wait_for_readers();
        changes::before_change(fd);
    }
}

fn disown_file(file: NonZeroU64) {
    // The generation moves so that a read under way, which asked before, materialises.
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for description in used() {
        let _ = description.writes_to.compare_exchange(file.get(), 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

/// The record of a descriptor that is open for writing, and its file.
#[inline(always)]
fn open_for_writing(fd: i32) -> Option<(&'static Description, NonZeroU64)> {
    let description = description(fd)?;
    Some((description, description.writes_to()?))
}

/// A call that changes the file behind `fd` begins.
#[inline(always)]
pub(crate) fn begin_change(fd: i32) -> Change {
    let Some((description, file)) = open_for_writing(fd) else { return Change::Unknown };
    match in_flight::begin(file, Place::Any) {
        Some(noted) => {
            description.begin();
            Change::Noted(noted)
        }
        None => count_change(description),
    }
}

/// Why a change was not noted by [`note_unguarded`].
pub(crate) enum Unnoted {
    /// The descriptor is not recorded as open for writing.
    NotForWriting,
    /// The file may be under a write lease, or the thread has no slot in its first place: see [`begin_change`].
    ToBeLookedAt,
}

/// The same for a file that no write lease guards, as far as can be told without asking the kernel. Ended by
/// [`in_flight::end`]. An error: nothing has begun.
#[inline(always)]
pub(crate) fn note_unguarded(fd: i32) -> Result<in_flight::Noted, Unnoted> {
    let (description, file) = open_for_writing(fd).ok_or(Unnoted::NotForWriting)?;
    let noted = in_flight::begin(file, Place::First).ok_or(Unnoted::ToBeLookedAt)?;
    // Asked when the note can be seen: a thread that takes a write lease looks for notes once the lease is published.
    if changes::write_lease_on_number(file.get()) {
        in_flight::end(noted);
        return Err(Unnoted::ToBeLookedAt);
    }
    description.begin();
    Ok(noted)
}

#[cold]
#[inline(never)]
fn count_change(description: &Description) -> Change {
    COUNTED.fetch_add(1, Ordering::SeqCst);
    description.counted.fetch_add(1, Ordering::SeqCst);
    description.begun.fetch_add(1, Ordering::SeqCst);
    Change::Counted
}

/// It is over.
#[inline(always)]
pub(crate) fn end_change(fd: i32, change: Change) {
    match change {
        Change::Unknown => (),
        Change::Noted(noted) => in_flight::end(noted),
        Change::Counted => {
            if let Some(description) = description(fd) {
                description.counted.fetch_sub(1, Ordering::SeqCst);
            }
            COUNTED.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Those of `file`.
fn of_file(file: NonZeroU64) -> impl Iterator<Item = &'static Description> {
    used().iter().filter(move |description| description.writes_to() == Some(file))
}

/// Calls under way that change a file, whichever descriptor they use. `None`: that cannot be told.
fn under_way(file: NonZeroU64) -> Option<u64> {
    if !in_flight::barrier() {
        NEVER.store(true, Ordering::SeqCst);
        return None;
    }
    let counted = match COUNTED.load(Ordering::SeqCst) {
        0 => 0,
        _ => of_file(file).map(|one| u64::from(one.counted.load(Ordering::SeqCst))).sum(),
    };
    Some(in_flight::under_way(file) + counted)
}

/// Runs `change`, which changes the file behind `fd`, with the library told before.
#[inline]
pub(crate) fn changing<T>(fd: i32, change: impl FnOnce() -> T) -> T {
    let counted = begin_change(fd);
    let result = change();
    end_change(fd, counted);
    result
}

/// Runs `read`, an offer of an owned descriptor, and takes the deferral back if a change or a sharing came in between.
/// `None`: a change is under way, and nothing was offered.
pub(crate) fn reading<T>(fd: i32, since: Moment, read: impl FnOnce() -> T) -> Option<T> {
    let quiet = || writes_to(fd).is_some_and(|file| under_way(file) == Some(0));
    // A handler that left by a jump, or a cancellation, would leave this counted for ever, and every fork wait for it.
    let mask = block_signals();
    READING.fetch_add(1, Ordering::SeqCst);
    let result = quiet().then(read);
    fence(Ordering::SeqCst);
    if result.is_some() && (!quiet() || moment() != since) {
        changes::before_change(fd);
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
    let under_way = writes_to(fd).and_then(under_way);
    Activity { under_way, begun: begun(fd) }
}

/// Moves with every call that changes the file behind `fd`.
pub(crate) fn begun(fd: i32) -> u64 {
    let Some(file) = writes_to(fd) else { return 0 };
    of_file(file).map(|one| u64::from(one.begun.load(Ordering::SeqCst))).sum()
}

/// Was the caller's the only change of the file since `before`, which counts the caller's? If not, whose bytes the file has
/// where two changes met cannot be told.
pub(crate) fn alone_since(fd: i32, before: Activity) -> bool {
    let now = activity(fd);
    let alone = |activity: Activity| activity.under_way.is_some_and(|count| count <= 1);
    writable(fd) && alone(before) && alone(now) && now.begun == before.begun
}

/// Is the caller's the only change of the file behind `fd` that is under way?
pub(crate) fn alone(fd: i32) -> bool {
    writes_to(fd).is_some_and(|file| under_way(file) == Some(1))
}

/// Has no call changed the file since [`begun`] was `before`, if none was under way then?
pub(crate) fn quiet_since(fd: i32, before: u64) -> bool {
    let now = activity(fd);
    writable(fd) && now.under_way == Some(0) && now.begun == before
}

/// Waits for reads under way that may be deferred; not for ever, since the caller may be a signal handler that has
/// interrupted one of them.
pub(crate) fn wait_for_readers() {
    // What was noted comes first: a reader that is not seen here sees it.
    fence(Ordering::SeqCst);
    for _ in 0..100 {
        if READING.load(Ordering::SeqCst) == 0 {
            return;
        }
        kernel::sleep_briefly();
    }
}

/// Descriptors are about to be shared with another process: what is open now is owned no longer, and what is
/// opened until [`end_sharing`] never will be.
pub(crate) fn begin_sharing() {
    SHARING.fetch_add(1, Ordering::SeqCst);
    disown_all();
}

/// The call that shared them is over, in this process.
pub(crate) fn end_sharing() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    SHARING.fetch_sub(1, Ordering::SeqCst);
}

/// As [`end_sharing`], in a forked child: the threads that were in the middle of something are gone.
pub(crate) fn begin_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for description in used() {
        description.counted.store(0, Ordering::Relaxed);
    }
    COUNTED.store(0, Ordering::Relaxed);
    in_flight::reset();
    READING.store(0, Ordering::Relaxed);
    SHARING.store(0, Ordering::SeqCst);
}

/// From now on descriptors may be written through unseen at any time (io_uring, asynchronous I/O).
pub(crate) fn share_for_good() {
    if active() && !NEVER.swap(true, Ordering::SeqCst) {
        disown_all();
    }
}

/// The descriptor table itself is shared with, or differs from, that of another user of this memory: numbers
/// no longer mean one thing, and nothing is offered any more.
pub(crate) fn share_table_for_good() {
    if active() && SHARING.load(Ordering::Relaxed) < u32::MAX / 2 {
        SHARING.fetch_add(u32::MAX / 2, Ordering::SeqCst);
        disown_all();
    }
}

fn disown_all() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for description in used() {
        description.set(Opened::Unknown);
    }
    wait_for_readers();
    changes::release_write_leases();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;
    use std::sync::Mutex;

    fn owned(fd: i32) -> bool {
        super::owned(fd, &file::stat(fd).unwrap())
    }

    // One process, one table.
    static ALONE: Mutex<()> = Mutex::new(());

    fn writable_file() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("elision-descriptions-{}", std::process::id()));
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
