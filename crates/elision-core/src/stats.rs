//! Counters of this process; a forked child starts from zero. While no transfer is under way, bytes deferred = loaded +
//! materialised + dropped unread + pending.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a transfer was traditional. [`snapshot`] counts them; it prints as its name in the statistics of the drop-in.
        ///
        /// ```
        /// use elision_core::stats::Reason; // in the crate `elision`: `elision::stats::Reason`
        ///
        /// assert_eq!(Reason::LeaseRefused.to_string(), "lease_refused");
        /// ```
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            pub fn name(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }

        /// Its name.
        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

reasons! {
    /// Not a regular file.
    NotRegular = "not_a_regular_file",
    /// A file system, or the upper layer of an overlay, whose leases and page cache are not known to be reliable.
    FileSystem = "file_system",
    /// O_DIRECT or O_APPEND.
    OpenFlags = "open_flags",
    /// Buffer and file position differ modulo the page size, by a multiple of 16: a block could be placed so that they agree.
    Phase = "phase",
    /// They differ by another number: no block of `malloc` could agree.
    OddPhase = "odd_phase",
    /// Too few whole pages.
    Small = "small",
    /// The buffer may not be mapped over.
    Memory = "memory",
    /// No lease: the file is open for writing, or another user's.
    LeaseRefused = "lease_refused",
    /// This process has the file open for writing, unwatched; or it is a program, which is likely to be executed next.
    OwnWriter = "own_writer",
    /// No write lease: the file is open elsewhere.
    NotSole = "not_sole_opener",
    /// A limit is near: mappings, descriptors, address space.
    Limit = "limit",
    /// The file has holes, which a write would fill and a read on tmpfs would not.
    Holes = "holes",
    /// The kernel lacks support, or no helper could be started.
    Unavailable = "unavailable",
    /// The helper is gone or busy.
    Helper = "helper",
    /// Nearly all of earlier reads of this file or size was altered; for a save, since the last one.
    MostlyAltered = "mostly_altered",
    /// Deferred pages of this file had to be loaded for a change that was no save of this process.
    Changing = "changing_file",
    /// The file or its position changed during the call.
    Raced = "raced",
    /// A file was emptied when it was opened to be saved (O_TRUNC): nothing of it could be left out of the save.
    Emptied = "emptied",
    /// A copy of another version of this library serves the program.
    AnotherCopy = "another_copy",
}

static EXACT: AtomicBool = AtomicBool::new(false);

/// Counts loaded bytes of dropped buffers, too (off by default): a drop then waits for the helper to read page tables.
pub fn count_exactly(on: bool) {
    EXACT.store(on, Relaxed);
}

#[cfg(target_os = "linux")]
pub fn exact() -> bool {
    EXACT.load(Relaxed)
}

const REASONS: usize = Reason::ALL.len();
const SUMS: usize = 7;
/// All counters of a process.
pub const WORDS: usize = SUMS + 2 * REASONS;

pub struct Counters {
    pub deferred: AtomicU64,
    pub loaded: AtomicU64,
    pub materialised: AtomicU64,
    pub prefetched: AtomicU64,
    pub elided: AtomicU64,
    pub shared: AtomicU64,
    pub written: AtomicU64,
    pub declined: [AtomicU64; REASONS],
    pub declined_read_bytes: [AtomicU64; REASONS],
}

pub static COUNTERS: Counters = Counters {
    deferred: AtomicU64::new(0),
    loaded: AtomicU64::new(0),
    materialised: AtomicU64::new(0),
    prefetched: AtomicU64::new(0),
    elided: AtomicU64::new(0),
    shared: AtomicU64::new(0),
    written: AtomicU64::new(0),
    declined: [const { AtomicU64::new(0) }; REASONS],
    declined_read_bytes: [const { AtomicU64::new(0) }; REASONS],
};

impl Counters {
    #[cfg(target_os = "linux")]
    pub fn add(counter: &AtomicU64, bytes: usize) {
        counter.fetch_add(bytes as u64, Relaxed);
    }

    pub fn decline(&self, reason: Reason) {
        if let Some(counter) = self.declined.get(reason as usize) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub fn decline_read(&self, reason: Reason, bytes: usize) {
        self.decline(reason);
        if let Some(counter) = self.declined_read_bytes.get(reason as usize) {
            counter.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// In the order of the fields.
    pub fn words(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words.iter_mut().zip(self.all()).for_each(|(word, counter)| *word = counter.load(Relaxed));
        words
    }

    fn all(&self) -> impl Iterator<Item = &AtomicU64> {
        [
            &self.deferred,
            &self.loaded,
            &self.materialised,
            &self.prefetched,
            &self.elided,
            &self.shared,
            &self.written,
        ]
        .into_iter()
        .chain(&self.declined)
        .chain(&self.declined_read_bytes)
    }

    #[cfg(target_os = "linux")]
    pub fn reset(&self) {
        self.all().for_each(|counter| counter.store(0, Relaxed));
    }

    #[cfg(target_os = "linux")]
    pub fn any(&self) -> bool {
        self.all().any(|counter| counter.load(Relaxed) != 0)
    }
}

/// A reading of the counters. What happened between two of them is their difference.
///
/// ```
/// let stats = elision_core::stats::snapshot(); // in the crate `elision`: `elision::stats::snapshot`
/// println!("{} bytes deferred, {} loaded since", stats.deferred_bytes, stats.loaded_bytes);
/// for (reason, count) in &stats.declined {
///     println!("{count} transfers were traditional: {reason}"); // `lease_refused`, `small` …
/// }
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Bytes that reads did not load.
    pub deferred_bytes: u64,
    /// Of these, loaded since by a touch, as far as noticed (see [`snapshot`]).
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
    /// Traditional transfers, by reason.
    pub declined: Vec<(Reason, u64)>,
    /// Bytes of the reads among them.
    pub declined_read_bytes: Vec<(Reason, u64)>,
}

impl Stats {
    /// Of what [`Counters::words`] gives.
    pub fn of(words: &[u64; WORDS]) -> Stats {
        let (bytes, by_reason) = words.split_at(SUMS);
        let (declined, read_bytes) = by_reason.split_at(REASONS);
        let sum = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let by_reason = |counts: &[u64]| {
            let all = Reason::ALL.iter().zip(counts).map(|(&reason, &count)| (reason, count));
            all.filter(|&(_, count)| count > 0).collect()
        };
        Stats {
            deferred_bytes: sum(0),
            loaded_bytes: sum(1),
            materialised_bytes: sum(2),
            prefetched_bytes: sum(3),
            elided_bytes: sum(4),
            shared_bytes: sum(5),
            written_bytes: sum(6),
            declined: by_reason(declined),
            declined_read_bytes: by_reason(read_bytes),
        }
    }
}

/// Loaded bytes count when an extent ends (see [`count_exactly`]); `Buffer::ranges` has those of a live buffer.
pub fn snapshot() -> Stats {
    Stats::of(&COUNTERS.words())
}

#[cfg(target_os = "linux")]
pub const LINE: usize = 2048;

#[cfg(target_os = "linux")]
pub(crate) fn putting<'a>(line: &'a mut [u8], at: &'a mut usize) -> impl FnMut(&[u8]) + 'a {
    |bytes| {
        for &byte in bytes {
            if let Some(slot) = line.get_mut(*at) {
                *slot = byte;
                *at += 1;
            }
        }
    }
}

/// Writes the JSON line on the end of deferral; returns its length.
#[cfg(target_os = "linux")]
pub fn stopped_line(pid: i32, why: &str, line: &mut [u8]) -> usize {
    let mut at = 0;
    let mut put = putting(line, &mut at);
    put(b"{\"pid\":");
    put(elision_sys::file::decimal(pid.max(0) as u64, &mut [0; 20]));
    put(b",\"stopped\":\"");
    put(why.as_bytes());
    put(b"\"}\n");
    drop(put);
    at
}

/// Writes the counters as a line of JSON; returns its length. Resets them, so that concurrent reports count nothing twice.
#[cfg(target_os = "linux")]
pub fn take_line(pid: i32, line: &mut [u8; LINE]) -> usize {
    let mut at = 0;
    let mut put = putting(line, &mut at);
    let mut digits = [0; 20];
    put(b"{\"pid\":");
    put(elision_sys::file::decimal(pid.max(0) as u64, &mut digits));
    for (name, counter) in [
        ("deferred_bytes", &COUNTERS.deferred),
        ("loaded_bytes", &COUNTERS.loaded),
        ("materialised_bytes", &COUNTERS.materialised),
        ("prefetched_bytes", &COUNTERS.prefetched),
        ("elided_bytes", &COUNTERS.elided),
        ("shared_bytes", &COUNTERS.shared),
        ("written_bytes", &COUNTERS.written),
    ] {
        put(b",\"");
        put(name.as_bytes());
        put(b"\":");
        put(elision_sys::file::decimal(counter.swap(0, Relaxed), &mut digits));
    }
    for (name, counters) in
        [("declined", &COUNTERS.declined), ("declined_read_bytes", &COUNTERS.declined_read_bytes)]
    {
        put(b",\"");
        put(name.as_bytes());
        put(b"\":{");
        let mut first = true;
        for (reason, counter) in Reason::ALL.iter().zip(counters) {
            let count = counter.swap(0, Relaxed);
            if count > 0 {
                put(if first { b"\"" } else { b",\"" });
                put(reason.name().as_bytes());
                put(b"\":");
                put(elision_sys::file::decimal(count, &mut digits));
                first = false;
            }
        }
        put(b"}");
    }
    put(b"}\n");
    drop(put);
    at
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_longest_line_has_room() {
        COUNTERS.all().for_each(|counter| counter.store(u64::MAX, Relaxed));
        let mut line = [0; LINE];
        let length = take_line(i32::MAX, &mut line);
        assert!(line[..length].ends_with(b"}}\n"), "{}", String::from_utf8_lossy(&line[..length]));
        assert!(!COUNTERS.any());
    }
}
