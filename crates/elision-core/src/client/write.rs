//! An elided write, start to end, on the program's side.
//!
//! The sidecar says which pages must be written; they are written here, through the program's own descriptor, so that
//! permissions, limits, O_SYNC, signals and errors are the kernel's own. The fragments, or else the first page, are
//! written always: it is by this one real write that times move, set-uid bits fall and errors come as ever. It comes
//! first, so that a call which is refused has written nothing, and says why instead of how much.

use crate::client::dropin::Outcome;
use crate::client::launch;
use crate::client::read::Terms;
use crate::helper::files;
use crate::helper::state;
use crate::history;
use crate::shared::channel::{Call, Op, RUNS};
use crate::stats::{COUNTERS, Counters, Reason};
use crate::transfer::{PAGE, Split, Transfer};
use core::sync::atomic::{AtomicU64, Ordering::*};
use elision_sys::file::{self, Stat};
use elision_sys::raw::Errno;

/// How eager a write is to begin tracking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Track {
    /// From the first write on: the caller means to write again.
    Now,
    /// From the second time on that the same bytes of memory go to the same place: tracking costs a fault for each
    /// page stored into later, which a buffer that is used once should not pay.
    SecondTime,
}

/// Tries to write `[addr, addr + len)` without what the file already has. `alone`, asked once the sidecar keeps out whoever comes
/// later: is nobody else changing the file?
pub fn write(
    fd: i32,
    addr: usize,
    len: usize,
    terms: Terms,
    track: Track,
    alone: impl Fn() -> bool,
) -> Outcome {
    let Ok(stat) = file::stat(fd) else { return Outcome::PassThrough };
    if !stat.is_regular() || len == 0 {
        return Outcome::PassThrough;
    }
    let guarded = files::write_guarded(stat.id);
    let big = len >= terms.least && len >= PAGE;
    if !guarded && !big {
        return Outcome::PassThrough;
    }
    let Ok(flags) = file::flags(fd) else { return Outcome::PassThrough };
    let plain = flags & (libc::O_APPEND | libc::O_DIRECT | libc::O_PATH) == 0
        && flags & libc::O_ACCMODE != libc::O_RDONLY;
    if !plain {
        if guarded {
            release(fd, stat);
        }
        return Outcome::PassThrough;
    }
    let tracked = state::touched(addr, len);
    let again =
        big && (track == Track::Now || (!tracked && terms.owned && second_time(fd, addr, len, stat, terms)));
    // Where all of it comes back altered, tracking costs a fault for each page and saves nothing.
    let declines = if tracked || again { history::declines_large(files::number(stat.id), len) } else { None };
    if let Some(reason) = declines {
        crate::decline(reason, len);
    }
    let follow = (tracked || again) && declines.is_none();
    let again = again && follow;
    if !guarded && !tracked && !again {
        return Outcome::PassThrough;
    }
    let limit = file::size_limit();
    // The position is claimed first, in one step, so that two threads never write to the same place.
    let claimed = match terms.offset {
        Some(offset) => Ok(offset),
        None => file::seek(fd, len as i64, libc::SEEK_CUR).map(|end| end - len as u64),
    };
    let Ok(offset) = claimed else { return Outcome::PassThrough };
    let give_back = |unwritten: usize| {
        if terms.offset.is_none() && unwritten > 0 {
            let _ = file::seek(fd, -(unwritten as i64), libc::SEEK_CUR);
        }
    };
    if offset.checked_add(len as u64).is_none_or(|end| end > limit || end > i64::MAX as u64) {
        // Where exactly the limit cuts is the kernel's business.
        give_back(len);
        if guarded {
            release(fd, stat);
        }
        return Outcome::PassThrough;
    }
    let in_runs = big && (tracked || again);
    let flags = if in_runs && is_synchronous(fd) { flags | libc::O_DSYNC } else { flags };
    let job = Job { fd, flags, stat, whole: Transfer { addr, len, offset }, terms, guarded, follow };
    let (written, failure) = if in_runs { job.in_runs(alone) } else { job.at_once() };
    give_back(len - written);
    match failure {
        Some(errno) if written == 0 => Outcome::Failed(errno),
        _ => Outcome::Done(written),
    }
}

/// Is every write to the file synchronous, however it was opened? (Not asked before a helper has shown that no filter kills for the question.)
pub(crate) fn is_synchronous(fd: i32) -> bool {
    launch::harmless() && file::writes_synchronously(fd)
}

/// Has this very write been seen before?
fn second_time(fd: i32, addr: usize, len: usize, stat: Stat, terms: Terms) -> bool {
    static SEEN: [AtomicU64; 256] = [const { AtomicU64::new(0) }; 256];
    let offset = terms.offset.or_else(|| file::seek(fd, 0, libc::SEEK_CUR).ok()).unwrap_or(0);
    let mix = |sum: u64, value: u64| (sum ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
    let print = [addr as u64, len as u64, stat.id.dev, stat.id.ino, offset].into_iter().fold(1, mix);
    let Some(slot) = SEEN.get((print >> 56) as usize) else { return false };
    slot.swap(print, Relaxed) == print
}

/// The file is about to be changed in a way that is not followed.
pub fn release(fd: i32, stat: Stat) {
    if let Some(mut call) = Call::new(Op::Release, false) {
        let request = call.request();
        (request.fd, request.key) = (fd, stat.id);
        call.send();
        learn_of_nothing(&mut call, stat);
    }
}

/// What was deferred, and then had to be loaded for a change that is no save, was not worth it.
fn learn_of_nothing(call: &mut Call, stat: Stat) {
    history::learn_of_file(files::number(stat.id), call.request().known);
}

struct Job {
    fd: i32,
    flags: i32,
    stat: Stat,
    whole: Transfer,
    terms: Terms,
    guarded: bool,
    /// What is written is tracked afterwards.
    follow: bool,
}

impl Job {
    /// A write too small to elide anything of: only others' extents have to be looked after.
    fn at_once(&self) -> (usize, Option<Errno>) {
        if self.guarded
            && let Some(mut call) = Call::new(Op::BeforeWrite, false)
        {
            let request = call.request();
            request.key = self.stat.id;
            (request.len, request.offset) = (self.whole.len, self.whole.offset);
            call.send();
            learn_of_nothing(&mut call, self.stat);
        }
        match file::pwrite(self.fd, self.whole.addr, self.whole.len, self.whole.offset) {
            Ok(written) => (written, None),
            Err(errno) => (0, Some(errno)),
        }
    }

    /// Writes what has to be written, in order. How much was done from the beginning on, and what stopped it.
    ///
    /// To everybody else it is one write: from the first plan until the last report the sidecar lets nobody have the file. The request
    /// is kept all that time, and with it signals are blocked: a handler that wrote to the file would wait for itself.
    fn in_runs(&self, alone: impl Fn() -> bool) -> (usize, Option<Errno>) {
        let Split { head, pages, tail } = self.whole.split();
        if pages.len == 0 {
            return self.at_once();
        }
        let mut writer = Writer::new(self.fd, self.whole);
        let Some(mut call) = Call::new(Op::Plan, true) else {
            return self.rest_at_once(writer, 0, crate::unavailable(), None);
        };
        let mut at = 0;
        let (mut known, mut altered) = (0, 0);
        while at < pages.len {
            let rest = pages.part(at, pages.len - at);
            let start = rest.addr - self.whole.addr;
            let request = call.request();
            (request.op, request.more) = (Op::Plan, at > 0);
            (request.fd, request.flags, request.key) = (self.fd, self.flags, self.stat.id);
            (request.addr, request.len, request.offset) = (rest.addr, rest.len, rest.offset);
            (request.owned, request.forks, request.track) = (self.terms.owned, self.terms.forks, self.follow);
            (request.head, request.tail) = (if at == 0 { head.len } else { 0 }, tail.len);
            let declined = call.send();
            let answer = call.request();
            let (count, handled) = (answer.count.min(RUNS), answer.handled.min(rest.len));
            known += answer.known;
            altered += answer.altered;
            if declined.is_some() || handled == 0 {
                let reason = declined.unwrap_or(Reason::Sidecar);
                return self.rest_at_once(writer, start, reason, Some(call));
            }
            // Who was at it before the plan was made, and is still, is not kept out: the kernel does that, of one call.
            if at == 0 && !alone() {
                return self.rest_at_once(writer, 0, Reason::Raced, Some(call));
            }
            let runs = call.request().runs.get(..count).unwrap_or(&[]);
            if at == 0 && head.len > 0 {
                writer.write_part(0, head.len);
            } else if at == 0 && runs.first().is_none_or(|run| run.addr != pages.addr) {
                writer.write_part(0, PAGE);
            }
            for run in runs {
                writer.write_part(run.addr - self.whole.addr, run.len);
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
            let request = call.request();
            (request.op, request.addr, request.len, request.offset) =
                (Op::Wrote, rest.addr, done, rest.offset);
            (request.key, request.tried, request.track) = (self.stat.id, handled, self.follow);
            request.more = at < pages.len && writer.stop.is_none();
            call.send();
            if let Some(stop) = writer.stop {
                return stop;
            }
        }
        drop(call);
        history::learn(files::number(self.stat.id), known, altered);
        if self.flags & libc::O_DSYNC != 0 {
            // What was elided may still be on its way to the disk from before; a traditional write would wait for it.
            let metadata = self.flags & libc::O_SYNC == libc::O_SYNC;
            if let Err(errno) = file::sync(self.fd, metadata) {
                return (0, Some(errno));
            }
        }
        Counters::add(&COUNTERS.written, writer.bytes);
        Counters::add(&COUNTERS.elided, self.whole.len - writer.bytes);
        (self.whole.len, None)
    }

    /// From `start` on nothing can be elided: it is written traditionally, after extents elsewhere were looked after. `call`: of a write
    /// of which something was planned, which this ends.
    fn rest_at_once(
        &self,
        mut writer: Writer,
        start: usize,
        reason: Reason,
        call: Option<Call>,
    ) -> (usize, Option<Errno>) {
        crate::decline(reason, self.whole.len);
        let mut call = call.filter(Call::is_good).or_else(|| Call::new(Op::Release, false));
        if (self.guarded || files::write_guarded(self.stat.id))
            && let Some(call) = &mut call
        {
            let request = call.request();
            (request.op, request.fd, request.key) = (Op::Release, self.fd, self.stat.id);
            call.send();
        }
        drop(call);
        let from = if start == self.whole.split().pages.addr - self.whole.addr { 0 } else { start };
        writer.write_part(from, self.whole.len - from);
        writer.flush();
        writer.stop.unwrap_or((self.whole.len, None))
    }
}

/// Writes parts of a transfer in order, until one fails. Parts that meet are written together, as they would be traditionally.
struct Writer {
    fd: i32,
    whole: Transfer,
    /// What was asked for and is not written yet: where it begins and ends.
    waiting: (usize, usize),
    /// Bytes written in all.
    bytes: usize,
    /// Where it stopped, if it did, and why. Everything before is as it should be.
    stop: Option<(usize, Option<Errno>)>,
}

impl Writer {
    fn new(fd: i32, whole: Transfer) -> Writer {
        Writer { fd, whole, waiting: (0, 0), bytes: 0, stop: None }
    }

    /// The next part.
    fn write_part(&mut self, skip: usize, len: usize) {
        if len == 0 {
            return;
        }
        if self.waiting.1 != skip {
            self.flush();
            self.waiting.0 = skip;
        }
        self.waiting.1 = skip + len;
    }

    /// That was the last one for now.
    fn flush(&mut self) {
        let (skip, end) = self.waiting;
        self.waiting = (end, end);
        if self.stop.is_some() || skip == end {
            return;
        }
        let part = self.whole.part(skip, end - skip);
        // Where it comes up short, so would the traditional call, which says so and goes no further.
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
