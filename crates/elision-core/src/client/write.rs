//! An elided write, on the program's side.
//!
//! The helper plans which pages to write; this thread writes them through the program's own descriptor, so errors and limits are
//! the kernel's. The fragments, or else the first page, are written first, always: a real write moves times and clears set-uid
//! bits.
//!
//! [`plan`] claims the file position and has the helper keep others from the file, [`ElidedWrite::carry_out`] writes. Between the
//! two the caller checks that none of its other threads changes the file.

use crate::client::call::Call;
use crate::client::changes::{learn_of_release, release};
use crate::client::equal::{self, Comparison};
use crate::client::memory;
use crate::client::offer::{self, TransferOptions, check_lease};
use crate::history;
use crate::shared::requests::{Op, RUNS};
use crate::shared::{control, verbose};
use crate::shared::{live, pending, sharing, write_guarded};
use crate::stats::{COUNTERS, Counters, Reason};
use crate::transfer::{PAGE, Split, Transfer};
use core::sync::atomic::{AtomicU64, Ordering::*};
use elision_sys::file::{self, FileKey, Stat};
use elision_sys::limits;
use elision_sys::raw::{Errno, Result};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Track {
    /// At the first write: the caller means to write again.
    Now,
    /// When the same memory goes to the same place again: tracking costs faults.
    SecondTime,
    /// The memory may be freed unseen.
    Never,
}

/// Must be carried out: the position has moved, and the helper keeps others from the file.
#[must_use]
pub struct ElidedWrite {
    fd: i32,
    /// Status flags, with O_DSYNC if every write to the file is synchronous.
    flags: i32,
    key: FileKey,
    whole: Transfer,
    options: TransferOptions,
    guarded: bool,
    follow: bool,
    /// Most of the memory may be equal to the file.
    compares: bool,
    /// The size that the program sees of a file whose truncation is put off.
    emptied: Option<u64>,
    /// The file may share blocks with what the memory stands for.
    shares: bool,
    way: Way,
}

enum Way {
    Small,
    /// At once: nothing can be elided. The request, if any.
    Whole(Reason, Option<Call>),
    Planned(Call),
}

/// `None`: make the traditional call. `stat` is fresh.
///
/// Offer every write of at least `options.least` bytes, and all while there are [write
/// leases](crate::client::changes::write_leases).
pub fn plan(
    fd: i32,
    stat: &Stat,
    addr: usize,
    len: usize,
    options: TransferOptions,
    track: Track,
) -> Option<ElidedWrite> {
    verbose::say_active();
    if !stat.is_regular() || len == 0 {
        return None;
    }
    let key = stat.id;
    let guarded = write_guarded::write_guarded(key);
    let big = len >= options.least && len >= PAGE;
    if !guarded && !big {
        return None;
    }
    let release_if_guarded = || {
        if guarded {
            release(key);
        }
    };
    let flags = file::flags(fd).ok()?;
    if flags & (libc::O_APPEND | libc::O_DIRECT | libc::O_PATH) != 0
        || flags & libc::O_ACCMODE == libc::O_RDONLY
    {
        release_if_guarded();
        return None;
    }
    let tracked = live::touched(addr, len);
    // Asked only where it matters: a small write does without.
    let place = || options.offset.or_else(|| file::seek(fd, 0, libc::SEEK_CUR).ok()).unwrap_or(0);
    let again = big
        && match track {
            Track::Now => true,
            Track::SecondTime => !tracked && options.owned && second_time(key, addr, len, place()),
            Track::Never => false,
        };
    // A file that is truncated before each save has nothing that the next save could leave out.
    let empty = || track == Track::SecondTime && place() >= stat.size;
    let mut follow = (tracked && track != Track::Never || again) && !empty();
    // Where all comes back altered, tracking costs faults and saves nothing.
    if follow && let Some(reason) = history::declines_large(write_guarded::number(key), len) {
        crate::decline_write(reason, len);
        follow = false;
    }
    let compares = len >= equal::least(options.least)
        && !tracked
        && options.owned
        && flags & (libc::O_ACCMODE | libc::O_DSYNC) == libc::O_RDWR
        && place().checked_add(len as u64).is_some_and(|end| end <= stat.size)
        && equal::likely(fd, write_guarded::number(key), Transfer { addr, len, offset: place() });
    if !guarded && !tracked && !follow && !compares {
        return None;
    }
    let limit = limits::file_size();
    // One step claims the position, so that no two threads write to the same place.
    let offset = match options.offset {
        Some(offset) => offset,
        None => file::seek(fd, len as i64, libc::SEEK_CUR).ok()? - len as u64,
    };
    let whole = Transfer { addr, len, offset };
    let mut write = ElidedWrite {
        fd,
        flags,
        key,
        whole,
        options,
        guarded,
        follow,
        compares,
        emptied: None,
        shares: false,
        way: Way::Small,
    };
    if offset.checked_add(len as u64).is_none_or(|end| end > limit || end > i64::MAX as u64) {
        write.give_back(len);
        release_if_guarded();
        return None;
    }
    if big && (tracked || follow || compares) && whole.split().pages.len > 0 {
        if is_synchronous(fd) {
            write.flags |= libc::O_DSYNC;
        }
        write.emptied = pending::begin_save(key, offset + len as u64);
        // What a file has keeps its place.
        write.shares = sharing::allowed() && write.emptied.is_none() && offset >= stat.size;
        write.way = match write.first_plan(stat) {
            Ok(call) => Way::Planned(call),
            Err((reason, call)) => {
                if compares {
                    equal::learn(write_guarded::number(key), len, false);
                }
                Way::Whole(reason, call)
            }
        };
    }
    Some(write)
}

/// Is every write synchronous, however the file was opened? `false` until no filter is known to kill for the question.
pub fn is_synchronous(fd: i32) -> bool {
    control::harmless() && file::writes_synchronously(fd)
}

fn second_time(key: FileKey, addr: usize, len: usize, offset: u64) -> bool {
    static SEEN: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
    let mix = |sum: u64, value: u64| (sum ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let print = [addr as u64, len as u64, key.dev, key.ino, offset].into_iter().fold(1, mix);
    let Some(slot) = SEEN.get((print >> 56) as usize) else { return false };
    slot.swap(print, Relaxed) == print
}

impl ElidedWrite {
    pub fn is_planned(&self) -> bool {
        matches!(self.way, Way::Planned(_))
    }

    /// Makes the write. `alone`: no other thread of the caller changes the file. Returns the bytes written.
    ///
    /// # Errors
    /// As the traditional call.
    pub fn carry_out(mut self, alone: bool) -> Result<usize> {
        let (written, failure) = match core::mem::replace(&mut self.way, Way::Small) {
            Way::Small => self.at_once(),
            // The helper cannot hold off a write that had begun before; the kernel does, for one call.
            Way::Planned(call) if !alone => self.rest_at_once(0, Reason::Raced, Some(call)),
            Way::Planned(call) => self.in_runs(call),
            Way::Whole(reason, call) => self.rest_at_once(0, reason, call),
        };
        self.give_back(self.whole.len - written);
        match failure {
            Some(errno) if written == 0 => Err(errno),
            _ => Ok(written),
        }
    }

    fn give_back(&self, unwritten: usize) {
        if self.options.offset.is_none() && unwritten > 0 {
            let _ = file::seek(self.fd, -(unwritten as i64), libc::SEEK_CUR);
        }
    }

    /// A write too small to elide from: only the extents of others need care.
    fn at_once(&self) -> (usize, Option<Errno>) {
        if self.guarded
            && let Some(mut call) = Call::new(Op::BeforeWrite, false)
        {
            let request = call.request();
            request.key = self.key;
            (request.len, request.offset) = (self.whole.len, self.whole.offset);
            call.send();
            learn_of_release(&mut call, self.key);
        }
        let emptied = pending::begin_write(self.key, self.whole.offset + self.whole.len as u64);
        let result = file::pwrite(self.fd, self.whole.addr, self.whole.len, self.whole.offset);
        if let Some(before) = emptied {
            pending::end_write(self.key, before, self.whole.offset + result.unwrap_or(0) as u64);
        }
        match result {
            Ok(written) => (written, None),
            Err(errno) => (0, Some(errno)),
        }
    }

    /// Plans the first part. The request, or the reason and the request, if any.
    fn first_plan(&self, stat: &Stat) -> core::result::Result<Call, (Reason, Option<Call>)> {
        let fs = check_lease(self.fd, offer::fs(self.fd), stat, true).map_err(|reason| (reason, None))?;
        let mut call = Call::new(Op::Plan, true).ok_or_else(|| (crate::unavailable(), None))?;
        call.request().fs = Some(fs);
        let declined = self.plan_pages(&mut call, 0);
        if call.is_good() && call.request().deferred {
            memory::map_cached(self.whole.addr, self.whole.len);
        }
        match declined {
            Some(reason) => Err((reason, Some(call))),
            None => Ok(call),
        }
    }

    fn plan_pages(&self, call: &mut Call, at: usize) -> Option<Reason> {
        let Split { head, pages, tail } = self.whole.split();
        let rest = pages.part(at, pages.len - at);
        if !call.is_good() {
            return Some(Reason::Helper);
        }
        let request = call.request();
        (request.op, request.more, request.shares) = (Op::Plan, at > 0, self.shares);
        (request.fd, request.flags, request.key) = (self.fd, self.flags, self.key);
        (request.addr, request.len, request.offset) = (rest.addr, rest.len, rest.offset);
        (request.owned, request.forks, request.track) = (self.options.owned, self.options.forks, self.follow);
        (request.head, request.tail) = (if at == 0 { head.len } else { 0 }, tail.len);
        let declined = call.send();
        declined.or((call.request().handled == 0).then_some(Reason::Helper))
    }

    /// Writes the planned runs in order: bytes done, and what stopped it.
    ///
    /// Others see one write: from the first plan to the last report the helper keeps them from the file. The request is held and
    /// signals are blocked all that time: a handler that wrote to the file would wait for itself.
    fn in_runs(&self, mut call: Call) -> (usize, Option<Errno>) {
        let Split { head, pages, tail } = self.whole.split();
        let mut writer = Writer::new(self.fd, self.whole);
        let (mut at, mut known, mut altered, mut shared) = (0, 0, 0, 0);
        let mut comparison = None;
        loop {
            let rest = pages.part(at, pages.len - at);
            let start = rest.addr - self.whole.addr;
            let answer = call.request();
            let (handled, comparable) = (answer.handled.min(rest.len), answer.comparable);
            known += answer.known;
            altered += answer.altered;
            // What lies between the runs equals the file, or is shared: until that fails once.
            let (shares, count) = (answer.shares, answer.count.min(RUNS));
            let mut tries = shares;
            let first = answer.runs.first().filter(|_| count > 0).map(|run| run.addr);
            if at == 0 && self.compares && comparable && self.flags & libc::O_DSYNC == 0 {
                comparison = Comparison::begin(self.fd, false);
            }
            let mut written = 0;
            if at == 0 && head.len > 0 {
                writer.write_part(0, head.len);
            } else if at == 0 && !shares && (comparison.is_some() || first != Some(pages.addr)) {
                writer.write_part(0, PAGE);
                written = PAGE;
            }
            let mut reached = start;
            for i in 0..=count {
                // Looked up anew each time: to share is a request, too.
                let run = call.request().runs.get(i).filter(|_| i < count).copied();
                let from = run.map_or(start + handled, |run| run.addr - self.whole.addr);
                if shares && from > reached {
                    writer.flush();
                    tries &= writer.stop.is_none();
                    let done = if tries { self.share(&mut call, reached, from) } else { 0 };
                    if !call.is_good() {
                        return self.rest_at_once(reached + done, Reason::Helper, Some(call));
                    }
                    shared += done;
                    reached += done;
                    tries = reached == from;
                    writer.write_part(reached, from - reached);
                }
                let Some(run) = run else { break };
                let end = from + run.len;
                reached = end;
                let skip = from.max(written);
                match &mut comparison {
                    Some(comparison) => {
                        comparison.each_other(self.whole.part(skip, end - skip), |at, len| {
                            writer.write_part(skip + at, len);
                        })
                    }
                    None => writer.write_part(skip, end - skip),
                }
            }
            at += handled;
            if at == pages.len {
                writer.write_part(self.whole.len - tail.len, tail.len);
            }
            writer.flush();
            let done = match writer.stop {
                None => handled,
                Some((stopped, _)) => stopped.saturating_sub(start).min(handled) / PAGE * PAGE,
            };
            let more = at < pages.len && writer.stop.is_none();
            if !more {
                // Before the helper may cut the file.
                let written = writer.stop.map_or(self.whole.len, |(stopped, _)| stopped);
                pending::end_save(self.key, self.whole.offset + written as u64);
            }
            let request = call.request();
            (request.op, request.addr, request.len, request.offset) =
                (Op::Wrote, rest.addr, done, rest.offset);
            (request.key, request.tried, request.track) = (self.key, handled, self.follow);
            request.more = more;
            call.send();
            if let Some(stop) = writer.stop {
                return stop;
            }
            if at == pages.len {
                break;
            }
            if let Some(reason) = self.plan_pages(&mut call, at) {
                return self.rest_at_once(head.len + at, reason, Some(call));
            }
        }
        drop(call);
        if self.compares {
            let paid = comparison.is_some_and(|comparison| comparison.pays());
            equal::learn(write_guarded::number(self.key), self.whole.len, paid);
        }
        if self.emptied.is_some() {
            equal::saved(write_guarded::number(self.key), self.whole.addr, self.whole.len);
        }
        history::learn(write_guarded::number(self.key), known, altered);
        if self.flags & libc::O_DSYNC != 0 {
            // Elided bytes may still be on their way to the disk; a traditional write would wait for them.
            let metadata = self.flags & libc::O_SYNC == libc::O_SYNC;
            if let Err(errno) = file::sync(self.fd, metadata) {
                return (0, Some(errno));
            }
        }
        Counters::add(&COUNTERS.written, writer.bytes);
        Counters::add(&COUNTERS.shared, shared);
        Counters::add(&COUNTERS.elided, self.whole.len - writer.bytes - shared);
        (self.whole.len, None)
    }

    /// Asks the helper to have the file share the blocks of what the memory stands for. Returns how many bytes it shares. The helper
    /// answers nobody else meanwhile, so it is asked in steps. The rest is mapped, to be copied.
    fn share(&self, call: &mut Call, from: usize, to: usize) -> usize {
        const STEP: usize = 64 << 20;
        let mut at = from;
        while at < to {
            let part = self.whole.part(at, STEP.min(to - at));
            let request = call.request();
            (request.op, request.addr, request.len, request.offset) =
                (Op::Share, part.addr, part.len, part.offset);
            let declined = call.send();
            let handled = if declined.is_none() { call.request().handled.min(part.len) } else { 0 };
            at += handled;
            if handled < part.len {
                memory::map_cached(self.whole.addr + at, to - at);
                break;
            }
        }
        at - from
    }

    /// Writes from `start` on traditionally, after the extents of others, and ends `call`.
    fn rest_at_once(&self, start: usize, reason: Reason, call: Option<Call>) -> (usize, Option<Errno>) {
        crate::decline_write(reason, self.whole.len);
        let so_far = self.whole.offset + start as u64;
        if let Some(size) = self.emptied {
            pending::end_save(self.key, if start > 0 { so_far } else { size });
        }
        let mut call = call.filter(Call::is_good).or_else(|| Call::new(Op::Release, false));
        if (self.guarded || write_guarded::write_guarded(self.key))
            && let Some(call) = &mut call
        {
            let request = call.request();
            (request.op, request.key) = (Op::Release, self.key);
            call.send();
        }
        drop(call);
        if let Some(size) = self.emptied {
            // A helper that was killed may have left more than that.
            let size = size.max(if start > 0 { so_far } else { 0 });
            file::cut(self.fd, size);
        }
        let mut writer = Writer::new(self.fd, self.whole);
        writer.write_part(start, self.whole.len - start);
        writer.flush();
        writer.stop.unwrap_or((self.whole.len, None))
    }
}

pub(crate) struct Writer {
    fd: i32,
    whole: Transfer,
    waiting: (usize, usize),
    pub(crate) bytes: usize,
    /// Where and why a write stopped short; everything before is complete.
    pub(crate) stop: Option<(usize, Option<Errno>)>,
}

impl Writer {
    pub(crate) fn new(fd: i32, whole: Transfer) -> Writer {
        Writer { fd, whole, waiting: (0, 0), bytes: 0, stop: None }
    }

    pub(crate) fn write_part(&mut self, skip: usize, len: usize) {
        if len == 0 {
            return;
        }
        if self.waiting.1 != skip {
            self.flush();
            self.waiting.0 = skip;
        }
        self.waiting.1 = skip + len;
    }

    pub(crate) fn flush(&mut self) {
        let (skip, end) = self.waiting;
        self.waiting = (end, end);
        if self.stop.is_some() || skip == end {
            return;
        }
        let part = self.whole.part(skip, end - skip);
        // A short write here is short in the traditional call.
        match file::pwrite(self.fd, part.addr, part.len, part.offset) {
            Ok(written) => {
                self.bytes += written;
                if written < part.len {
                    self.stop = Some((skip + written, None));
                }
            }
            Err(errno) => self.stop = Some((skip, Some(errno))),
        }
    }
}
