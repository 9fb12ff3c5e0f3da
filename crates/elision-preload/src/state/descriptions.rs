//! Open file descriptions: which ones only wrapped calls of this process use.
//!
//! A write lease on a description open for writing is sound only while the library sees every change through it first. So a
//! description is *owned* on positive knowledge alone: a wrapped function opened it here for writing, and nothing could have
//! handed it to another process or unseen code.
//!
//! Three races decide the shape of the table, a record per descriptor:
//!
//! - *A change while a read is deferred.* Writers are noted ([`crate::state::in_flight`]). The reader looks for them once its
//!   lease is visible, and then materialises: one sees the other.
//! - *An open while another thread forks.* The opener takes the [`Moment`] first, and records only if no sharing has begun or
//!   ended since.
//! - *A read while another thread forks.* The fork waits, but not for ever: its signal handler may have interrupted the read,
//!   which then finds the moment changed, and materialises.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use elision_core::client::changes;
use elision_sys::file::{self, Stat};
use elision_sys::task::{block_signals, restore_signals};

use crate::abi::kernel;
use crate::state::in_flight::{self, Place};

const DESCRIPTORS: usize = 64 * 1024;

/// libc itself writes to the standard descriptors, and duplicates over them.
const FIRST: usize = 3;

/// A descriptor's description. The fields need never agree. Within a cache line: each small write looks here.
#[repr(align(32))]
struct Description {
    /// The number of the file opened here for writing, or 0.
    writes_to: AtomicU64,
    read_only: AtomicBool,
    /// Changes under way through this descriptor without a note.
    counted: AtomicU32,
    /// Moves with every change, not always by one: threads load, then store. It returns to no value that it had while no change
    /// was under way, as a note outlasts load and store.
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

    #[inline(always)]
    fn begin(&self) {
        let begun = self.begun.load(Ordering::Relaxed);
        self.begun.store(begun.wrapping_add(1), Ordering::Release);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Opened {
    ForWriting(NonZeroU64),
    ForReading,
    Unknown,
}

static TABLE: [Description; DESCRIPTORS] = [const { Description::unknown() }; DESCRIPTORS];

/// At least the sum of all `counted`.
static COUNTED: AtomicU32 = AtomicU32::new(0);

/// One past the highest descriptor ever recorded.
static HIGH: AtomicUsize = AtomicUsize::new(0);

static ACTIVE: AtomicBool = AtomicBool::new(false);

/// Calls under way that may share descriptors.
static SHARING: AtomicU32 = AtomicU32::new(0);

/// Moves when a sharing begins or ends.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Set for good: descriptors may be written through unseen.
static NEVER: AtomicBool = AtomicBool::new(false);

/// Reads under way that may take a write lease.
static READING: AtomicU32 = AtomicU32::new(0);

/// When a call that makes a descriptor began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(u32);

#[derive(Clone, Copy)]
#[must_use]
pub(crate) enum Change {
    Unknown,
    Noted(in_flight::Noted),
    Counted,
}

pub(crate) fn activate() {
    in_flight::prepare();
    ACTIVE.store(true, Ordering::Relaxed);
}

/// Set by the constructor, unless the drop-in is off.
#[inline]
pub(crate) fn active() -> bool {
    ACTIVE.load(Ordering::Relaxed)
}

/// Is a fork under way? Then nothing is offered: a child in this memory has its own descriptor table.
#[inline]
pub(crate) fn being_shared() -> bool {
    SHARING.load(Ordering::Relaxed) != 0
}

#[inline]
pub(crate) fn moment() -> Moment {
    Moment(GENERATION.load(Ordering::SeqCst))
}

#[inline]
fn description(fd: i32) -> Option<&'static Description> {
    TABLE.get(fd as usize)
}

#[inline]
fn writes_to(fd: i32) -> Option<NonZeroU64> {
    description(fd)?.writes_to()
}

fn used() -> &'static [Description] {
    TABLE.get(..HIGH.load(Ordering::SeqCst)).unwrap_or(&TABLE)
}

/// A call that began at `since` has opened `fd`.
pub(crate) fn opened(fd: i32, flags: i32, since: Moment) {
    if !active() || fd < FIRST as i32 {
        return;
    }
    let how = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => Opened::Unknown,
        libc::O_RDONLY => Opened::ForReading,
        // fstat would ask for times, which makes the next write cost more.
        _ => file::stat(fd).ok().and_then(|stat| number(&stat)).map_or(Opened::Unknown, Opened::ForWriting),
    };
    record(fd, how, since);
}

/// Nearly always tells two regular files apart.
fn number(stat: &Stat) -> Option<NonZeroU64> {
    // The lowest bit tells nothing.
    NonZeroU64::new(changes::file_number(stat.id) | 1).filter(|_| stat.is_regular())
}

/// The same, with the description's flags.
pub(crate) fn found(fd: i32, since: Moment) {
    if let Some(flags) = kernel::status_flags(fd) {
        opened(fd, flags, since);
    }
}

/// A call that began at `since` has made `to` from `from`.
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
    // Stored, then checked: a sharing that begins now clears the record or is seen here.
    if moment() != since || being_shared() {
        description.set(Opened::Unknown);
    }
}

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
    // (A note is found by its file.)
    if description.counted.load(Ordering::SeqCst) == 0 {
        return changes::closing(fd, false);
    }
    // A write through `fd` is under way, unseen by its duplicates' records.
    disown_file(file);
    changes::before_change(fd);
}

pub(crate) fn closing_range(first: u32, last: u32) {
    let last = (last as usize).min(HIGH.load(Ordering::SeqCst));
    for fd in first as usize..=last {
        closing(fd as i32);
    }
}

/// Does only seen code of this process use the position?
pub(crate) fn sole(fd: i32) -> bool {
    recorded(fd) && !being_shared() && !NEVER.load(Ordering::Relaxed)
}

pub(crate) fn any() -> bool {
    HIGH.load(Ordering::Relaxed) != 0
}

#[inline]
pub(crate) fn recorded(fd: i32) -> bool {
    description(fd).is_some_and(Description::is_known)
}

#[inline]
pub(crate) fn writable(fd: i32) -> bool {
    writes_to(fd).is_some()
}

/// Is the library sure to see every change through `fd` first? `stat` must be fresh.
pub(crate) fn owned(fd: i32, stat: &Stat) -> bool {
    let file = writes_to(fd);
    file.is_some() && !being_shared() && !NEVER.load(Ordering::Relaxed) && number(stat) == file
}

/// May a write lease guard the file? `false` is certain. The kernel is asked only if no record tells.
#[inline]
pub(crate) fn write_lease_on(fd: i32) -> bool {
    let may = |file: NonZeroU64| changes::write_lease_on_number(file.get());
    changes::write_leases() && writes_to(fd).is_none_or(may) && changes::write_lease_on(fd)
}

/// From here on, `fd`'s description may be changed through unseen.
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
    // This makes a read under way, which has already checked, materialise.
    GENERATION.fetch_add(1, Ordering::SeqCst);
    for description in used() {
        let _ = description.writes_to.compare_exchange(file.get(), 0, Ordering::SeqCst, Ordering::Relaxed);
    }
}

#[inline(always)]
fn open_for_writing(fd: i32) -> Option<(&'static Description, NonZeroU64)> {
    let description = description(fd)?;
    Some((description, description.writes_to()?))
}

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

pub(crate) enum Unnoted {
    NotForWriting,
    /// Perhaps under a write lease, or the thread lacks its first slot: see [`begin_change`].
    ToBeLookedAt,
}

/// As [`begin_change`], for a file known, without the kernel, to be under no write lease; for [`in_flight::end`]. An error:
/// nothing has begun.
#[inline(always)]
pub(crate) fn note_unguarded(fd: i32) -> Result<in_flight::Noted, Unnoted> {
    let (description, file) = open_for_writing(fd).ok_or(Unnoted::NotForWriting)?;
    let noted = in_flight::begin(file, Place::First).ok_or(Unnoted::ToBeLookedAt)?;
    // After the note: a thread that takes a write lease publishes it, then looks for notes.
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

fn of_file(file: NonZeroU64) -> impl Iterator<Item = &'static Description> {
    used().iter().filter(move |description| description.writes_to() == Some(file))
}

/// Changes of a file under way; `None` if unknown.
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

#[inline]
pub(crate) fn changing<T>(fd: i32, change: impl FnOnce() -> T) -> T {
    let counted = begin_change(fd);
    let result = change();
    end_change(fd, counted);
    result
}

/// Runs `read`, an offer of an owned descriptor; a change or sharing meanwhile takes the deferral back. `None`: a change is under
/// way.
pub(crate) fn reading<T>(fd: i32, since: Moment, read: impl FnOnce() -> T) -> Option<T> {
    let quiet = || writes_to(fd).is_some_and(|file| under_way(file) == Some(0));
    // A handler's jump or a cancellation would leave the count up, and every fork waiting.
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

#[derive(Clone, Copy)]
pub(crate) struct Activity {
    under_way: Option<u64>,
    begun: u64,
}

pub(crate) fn activity(fd: i32) -> Activity {
    let under_way = writes_to(fd).and_then(under_way);
    Activity { under_way, begun: begun(fd) }
}

pub(crate) fn begun(fd: i32) -> u64 {
    let Some(file) = writes_to(fd) else { return 0 };
    of_file(file).map(|one| u64::from(one.begun.load(Ordering::SeqCst))).sum()
}

/// Was the caller's, which `before` counts, the file's only change since? Else the bytes where changes met are unknown.
pub(crate) fn alone_since(fd: i32, before: Activity) -> bool {
    let now = activity(fd);
    let alone = |activity: Activity| activity.under_way.is_some_and(|count| count <= 1);
    writable(fd) && alone(before) && alone(now) && now.begun == before.begun
}

/// Is the caller's the file's only change under way?
pub(crate) fn alone(fd: i32) -> bool {
    writes_to(fd).is_some_and(|file| under_way(file) == Some(1))
}

/// Has nothing changed the file since `before`, when no change was under way?
pub(crate) fn quiet_since(fd: i32, before: u64) -> bool {
    let now = activity(fd);
    writable(fd) && now.under_way == Some(0) && now.begun == before
}

/// Waits for reads under way; not for ever, as a signal handler may have interrupted one.
pub(crate) fn wait_for_readers() {
    // Earlier stores first: a reader not seen here sees them.
    fence(Ordering::SeqCst);
    for _ in 0..100 {
        if READING.load(Ordering::SeqCst) == 0 {
            return;
        }
        kernel::sleep_briefly();
    }
}

/// Another process is about to share the descriptors: none open now, or opened before [`end_sharing`], is owned.
pub(crate) fn begin_sharing() {
    SHARING.fetch_add(1, Ordering::SeqCst);
    disown_all();
}

pub(crate) fn end_sharing() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    SHARING.fetch_sub(1, Ordering::SeqCst);
}

/// For a forked child, where other threads' calls are gone.
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

/// From now on, descriptors may be written through unseen (io_uring, asynchronous I/O).
pub(crate) fn share_for_good() {
    if active() && !NEVER.swap(true, Ordering::SeqCst) {
        disown_all();
    }
}

/// Users of this memory have different or shared descriptor tables: numbers have no one meaning, so nothing is offered.
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

    // They share the table.
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

        // Beyond the table.
        copied(other.as_raw_fd(), DESCRIPTORS as i32, moment());
        assert!(!owned(other.as_raw_fd()));
    }

    #[test]
    fn a_stale_entry_is_not_believed() {
        let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
        let file = writable_file();
        let other = writable_file();
        opened(file.as_raw_fd(), libc::O_RDWR, moment());
        // SAFETY: the test's own descriptors, changed unseen.
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
