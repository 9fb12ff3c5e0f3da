//! An elided write, in the sidecar: which pages must be written, and what is tracked afterwards.
#![allow(unsafe_code)] // Faults pages in for other extents; changes no contents.

use crate::extent::{self, Extent, FileId, Kind, PageFacts};
use crate::helper::files::{self, Guard};
use crate::helper::guard::{has_our_lease, is_held, is_whole};
use crate::helper::state::{self, State};
use crate::history;
use crate::shared::channel::{Op, PageRun, RUNS, Request};
use crate::stats::Reason;
use crate::transfer::PAGE;
use elision_sys::memory;
use elision_sys::pages::{self, Run, Wanted, category};

/// What a page run of a scan says.
pub fn facts(categories: u64) -> PageFacts {
    PageFacts {
        present: categories & category::PRESENT != 0,
        swapped: categories & category::SWAPPED != 0,
        file: categories & category::FILE != 0,
        written: categories & category::WRITTEN != 0,
    }
}

/// Any page that is somewhere.
pub const SOMEWHERE: Wanted =
    Wanted { all: 0, inverted: 0, any: category::PRESENT | category::SWAPPED, protect: false };

/// Two runs that are written synchronously are written as one, and what is between them with them, if that is no more than this: each call costs
/// about 3 ms, and each MiB of it 2.2 ms more (ext4 on a virtual disk). (Others are not joined: a run costs about 5 µs, and the pages between
/// have to be mapped first.)
const SYNCHRONOUS_GAP: usize = 1 << 20;

impl State {
    /// Which of the whole pages `[addr, addr + len)` must be written at `offset`? What is not in the answer equals the
    /// file. Pages in the answer are write-protected before it is given, so that a store that
    /// comes while they are copied out counts for the next time.
    pub(crate) fn plan(&mut self, request: &mut Request) -> Option<Reason> {
        let id = match self.guard_for_write(request) {
            Ok(id) => id,
            Err(reason) => return Some(reason),
        };
        let end_offset = request.offset + request.len as u64;
        let holes = self.holes(id, request.offset, end_offset);
        let protect = self.tracker >= 0
            && request.track
            && pages::track(self.tracker, request.addr, request.len).is_ok();
        (request.count, request.handled, request.altered) = (0, 0, 0);
        let mut unknown = 0;
        let (start, end) = (request.addr, request.addr + request.len);
        let delta = request.offset.wrapping_sub(start as u64);
        let gap = least_gap(request);
        if gap > 0 && !request.more {
            // It, or what comes before it, is written in any case.
            push_run(request, start, start + PAGE, 0, gap);
        }
        let mut at = start;
        while at < end {
            let piece = self.next_piece(at, end);
            let (to, known) = match piece {
                Some(row) if row.addr <= at => (row.end(), Some(row)),
                Some(row) => (row.addr, None),
                None => (end, None),
            };
            let here = known.filter(|row| {
                (row.kind == Kind::Tracked || self.is_still_mapped(*row))
                    && !holes
                    && row.file == id
                    && row.offset.wrapping_sub(row.addr as u64) == delta
            });
            let reached = match here {
                Some(row) => self.altered_runs(row.kind, at, to, request),
                None if push(request, at, to) => to,
                None => at,
            };
            if here.is_none() {
                unknown += reached - at;
            }
            at = reached;
            if reached < to {
                break;
            }
        }
        request.handled = at - start;
        (request.known, request.altered) =
            (request.handled.saturating_sub(unknown), request.altered.saturating_sub(unknown));
        if gap > 0 && request.tail > 0 && at == end {
            push_run(request, end - PAGE, end, 0, gap);
        }
        for i in 0..request.count {
            let Some(run) = request.runs.get(i).copied() else { break };
            if protect {
                self.follow(id, delta, run.addr, run.addr + run.len);
            }
            let from = request.offset + (run.addr - start) as u64;
            self.before_write(id, from, from + run.len as u64, Some(delta));
        }
        // The fragments are written in any case, and the first page where there is none before it.
        let delta = Some(delta);
        let first = request.offset - request.head as u64;
        let first_end = if request.head > 0 { request.offset } else { request.offset + PAGE as u64 };
        self.before_write(id, first, first_end, delta);
        self.before_write(id, end_offset, end_offset + request.tail as u64, delta);
        // If one of these let the guard go, the plan still holds: it was true when it was made.
        if let Some(entry) = self.files.get_mut(id).filter(|entry| entry.guard != Guard::None) {
            (entry.writer, entry.small, entry.saved) = (name_of(request), 0, true);
        }
        None
    }

    /// Does the request have to wait until somebody has written what was planned? His write is one, as far as anybody can see, though
    /// there are several calls to it: nobody else's may come in between, and no read may see a part of it.
    pub(crate) fn held_up(&self, request: &Request) -> bool {
        matches!(request.op, Op::Associate | Op::Plan | Op::BeforeWrite | Op::Release | Op::Closing)
            && self.files.find(request.key).is_some_and(|id| {
                let writer = self.file(id).writer;
                writer != 0 && writer != name_of(request)
            })
    }

    /// Write-protects what is about to be written to the place that `delta` names. What was tracked for another place is
    /// so no longer. Pages of a mapped extent of another place stay as they are: protected, those that were altered
    /// would pass for unaltered there.
    fn follow(&mut self, id: FileId, delta: u64, from: usize, to: usize) {
        let mut at = from;
        while at < to {
            let (end, free) = match self.next_piece(at, to) {
                Some(row) if row.addr <= at => {
                    let same = row.file == id && row.offset.wrapping_sub(row.addr as u64) == delta;
                    let tracked = row.kind == Kind::Tracked;
                    (row.end(), same || (tracked && self.map().remove(at, row.end() - at).is_ok()))
                }
                Some(row) => (row.addr, true),
                None => (to, true),
            };
            if free {
                self.scan_each(at, end, Wanted { protect: true, ..SOMEWHERE }, |_| ());
            }
            at = end;
        }
    }

    /// The write was carried out up to `len` of the `tried` bytes: what is now equal to the file is associated, what
    /// was not reached is not.
    pub(crate) fn wrote(&mut self, request: &Request) {
        let Some(id) = self.files.find(request.key) else { return };
        if let Some(entry) =
            self.files.get_mut(id).filter(|entry| entry.writer == name_of(request) && !request.more)
        {
            entry.writer = 0;
        }
        self.dirty = true;
        let (start, done, tried) = (request.addr, request.len, request.tried);
        if done < tried && self.tracker >= 0 {
            let _ = pages::unprotect(self.tracker, start + done, tried - done);
        }
        if !request.track {
            // Not armed, they would pass for altered for ever, and for a reason not to track.
            let mut at = start;
            while let Some(row) = self.next_piece(at, start + done) {
                at = row.end();
                if row.kind == Kind::Tracked {
                    let _ = self.map().remove(row.addr, row.len);
                }
            }
            self.publish();
        }
        let known = self.file(id);
        if done == 0 || !request.track || self.tracker < 0 || known.guard != Guard::Write || !is_held(&known)
        {
            return;
        }
        let delta = request.offset.wrapping_sub(start as u64);
        let mut at = start;
        while at < start + done {
            let (to, mapped) = match self.next_piece(at, start + done) {
                Some(row) if row.addr <= at => {
                    let same = row.file == id && row.offset.wrapping_sub(row.addr as u64) == delta;
                    (row.end(), row.kind == Kind::Mapped && same)
                }
                Some(row) => (row.addr, false),
                None => (start + done, false),
            };
            // A mapped extent of another file or place stays one: it is what the memory is.
            let elsewhere = self.map().overlapping(at, to - at).any(|row| row.kind == Kind::Mapped);
            if !mapped && !elsewhere {
                let offset = delta.wrapping_add(at as u64);
                let extent = Extent { addr: at, len: to - at, file: id, offset, kind: Kind::Tracked };
                if self.map().has_room(4) && self.map().insert(extent).is_ok() {
                    state::mark(at, to - at);
                }
            }
            at = to;
        }
        self.publish();
    }

    /// Bytes `[start, end)` of a file are about to be written from somewhere: pages elsewhere that stand for them get
    /// memory of their own and stop being associated. `delta` (file offset less address) names the place that is
    /// being written from, whose pages stay.
    pub(crate) fn before_write(&mut self, id: FileId, start: u64, end: u64, delta: Option<u64>) {
        let mut from = 0;
        // One at a time, looked up anew, because the map cannot be borrowed across the work.
        while let Some((row, clip)) = self.next_elsewhere(id, from, start, end, delta) {
            if clip.kind == Kind::Mapped && !self.is_still_mapped(clip) && self.prune(clip) {
                continue;
            }
            from = row.end();
            if clip.kind == Kind::Mapped {
                // SAFETY: populating changes no contents.
                if unsafe { memory::advise(clip.addr, clip.len, libc::MADV_POPULATE_WRITE) }.is_err() {
                    self.release(id);
                    return;
                }
            }
            if self.tracker >= 0 {
                let _ = pages::unprotect(self.tracker, clip.addr, clip.len);
            }
            if clip.kind == Kind::Tracked {
                // (Where there is no room to cut it out, it counts as altered, not being protected.)
                let _ = self.map().remove(clip.addr, clip.len);
            }
        }
    }

    /// The next extent after `from` that stands for bytes `[start, end)` of the file and is not where `delta` names; and
    /// the pages of it that do.
    fn next_elsewhere(
        &mut self,
        id: FileId,
        from: usize,
        start: u64,
        end: u64,
        delta: Option<u64>,
    ) -> Option<(Extent, Extent)> {
        self.map()
            .standing_for(id, from, start, end)
            .filter(|row| Some(row.offset.wrapping_sub(row.addr as u64)) != delta)
            .find_map(|row| row.clip_file(start, end).map(|clip| (row, clip)))
    }

    /// Somebody else wrote to the file while this range was being written to it: nobody can tell which of the two is
    /// there now, so what was just armed counts as altered.
    pub(crate) fn untrack(&mut self, addr: usize, len: usize) {
        let mut at = addr;
        while let Some(row) = self.next_piece(at, addr + len) {
            if self.tracker >= 0 {
                let _ = pages::unprotect(self.tracker, row.addr, row.len);
            }
            at = row.end();
            if at >= addr + len {
                break;
            }
        }
    }

    /// A guard under which a write may be elided.
    fn guard_for_write(&mut self, request: &Request) -> Result<FileId, Reason> {
        if let Some(id) = self.files.find(request.key)
            && self.file(id).guard != Guard::None
        {
            let known = self.file(id);
            let same = known.guard == Guard::Write
                && request.owned
                && has_our_lease(request.pid, request.fd, request.key, false);
            // Others wait for their turn until a write is done, not until there is none.
            return match same {
                true if request.more && known.writer == name_of(request) && is_held(&known) => Ok(id),
                true if !request.more && is_whole(&known) => Ok(id),
                _ => Err(Reason::OwnWriter),
            };
        }
        // (What was true of the description when the write began need not be any more.)
        if !request.owned || request.more {
            return Err(Reason::OwnWriter);
        }
        self.acquire_write(request)
    }

    fn next_piece(&mut self, at: usize, end: usize) -> Option<Extent> {
        self.map().overlapping(at, end - at).next()
    }

    /// Appends the altered pages of `[at, to)`; says how far it came.
    fn altered_runs(&mut self, kind: Kind, at: usize, to: usize, request: &mut Request) -> usize {
        let mut cursor = at;
        let mut full = None;
        let reached = self.scan_while(at, to, SOMEWHERE, |run| {
            let (from, until) = (run.start as usize, run.end as usize);
            // Pages that are nowhere come between the runs.
            let nowhere = extent::state(kind, PageFacts::default()) == extent::State::Altered;
            if nowhere && cursor < from && !push(request, cursor, from) {
                full = Some(cursor);
                return false;
            }
            cursor = until;
            if extent::state(kind, facts(run.categories)) == extent::State::Altered
                && !push(request, from, until)
            {
                full = Some(from);
            }
            full.is_none()
        });
        if let Some(full) = full {
            return full;
        }
        let nowhere = extent::state(kind, PageFacts::default()) == extent::State::Altered;
        if nowhere && cursor < reached && !push(request, cursor, reached) {
            return cursor;
        }
        reached
    }

    /// Scans `[start, end)` and hands over each run; says how far it came (short only if the scan failed, and then
    /// nothing is known of the rest).
    pub(crate) fn scan_each(
        &mut self,
        start: usize,
        end: usize,
        wanted: Wanted,
        mut each: impl FnMut(Run),
    ) -> usize {
        self.scan_while(start, end, wanted, |run| {
            each(run);
            true
        })
    }

    /// The same, until `each` says that it has enough. (An answer has room for some hundred runs, and a file may have a hundred thousand.)
    fn scan_while(
        &mut self,
        start: usize,
        end: usize,
        wanted: Wanted,
        mut each: impl FnMut(Run) -> bool,
    ) -> usize {
        let mut at = start;
        while at < end {
            let Ok((count, stopped)) = pages::scan(self.pagemap, at, end, wanted, &mut self.scan) else {
                return at;
            };
            for run in self.scan.iter().take(count) {
                if !each(*run) {
                    return run.end as usize;
                }
            }
            if stopped <= at {
                return at;
            }
            at = stopped;
        }
        end
    }

    /// The program has done with what is deferred in the range: did it pay?
    pub(crate) fn learn(&mut self, addr: usize, len: usize) {
        let mut at = addr;
        while let Some(row) = self.next_piece(at, addr + len) {
            at = row.end();
            // (Perhaps it is gone already, and with it what there was to learn.)
            if row.kind == Kind::Mapped && self.is_still_mapped(row) {
                let altered = self.ever_altered(row);
                history::learn_large(files::number(self.file(row.file).key), row.len, altered);
            }
        }
    }

    /// Somebody wants to change the file: did deferring pay until now? What is not altered is loaded now.
    pub(crate) fn learn_of_break(&mut self, id: FileId) {
        let (mut known, mut altered, mut at) = (0, 0, 0);
        loop {
            let Some(row) = self.map().of_file(id, at).next() else { break };
            at = row.end();
            if row.kind == Kind::Mapped {
                known += row.len;
                altered += self.ever_altered(row);
            }
        }
        let number = files::number(self.file(id).key);
        match altered / 4 >= known / 5 {
            true => history::learn_large(number, known, altered),
            false if known >= history::LARGE => history::learn_of_file(number, known),
            false => (),
        }
    }

    /// Bytes of a mapped extent that were stored into since it was read, whether they were saved or not.
    fn ever_altered(&mut self, row: Extent) -> usize {
        let mut altered = 0;
        self.scan_each(row.addr, row.end(), SOMEWHERE, |run| {
            let facts = facts(run.categories);
            if facts.swapped || facts.present && !facts.file {
                altered += (run.end - run.start) as usize;
            }
        });
        altered
    }

    /// Counts the pages of mapped extents in the range that were loaded because somebody touched them.
    pub(crate) fn count_loaded(&mut self, addr: usize, len: usize) {
        let mut at = addr;
        while at < addr + len {
            let Some(row) = self.next_piece(at, addr + len) else { break };
            at = row.end();
            if row.kind == Kind::Mapped {
                let mut loaded = 0;
                self.scan_each(row.addr, row.end(), SOMEWHERE, |run| {
                    loaded += (run.end - run.start) as usize
                });
                crate::stats::Counters::add(&crate::stats::COUNTERS.loaded, loaded);
            }
        }
    }

    /// Answers a query: the state of every page of the range, as runs.
    pub(crate) fn query(&mut self, request: &mut Request) {
        let (start, end) = (request.addr, request.addr + request.len);
        request.count = 0;
        let mut at = start;
        while at < end && request.count + 2 < RUNS {
            let row = self.next_piece(at, end);
            let to = row.map_or(end, |row| if row.addr <= at { row.end() } else { row.addr });
            let Some(row) = row.filter(|row| row.addr <= at) else {
                push_state(request, at, to, 0);
                at = to;
                continue;
            };
            let nowhere = if row.kind == Kind::Mapped { 1 } else { 4 };
            let mut cursor = at;
            let mut full = None;
            let reached = self.scan_while(at, to, SOMEWHERE, |run| {
                let (from, until) = (run.start as usize, run.end as usize);
                if request.count + 2 >= RUNS {
                    full = Some(cursor);
                    return false;
                }
                if cursor < from {
                    push_state(request, cursor, from, nowhere);
                }
                let code = match extent::state(row.kind, facts(run.categories)) {
                    extent::State::Mapped => 2,
                    extent::State::Tracked => 3,
                    extent::State::Altered => 4,
                };
                push_state(request, from, until, code);
                cursor = until;
                true
            });
            match full {
                Some(full) => {
                    at = full;
                    break;
                }
                None => {
                    if cursor < reached {
                        push_state(request, cursor, reached, nowhere);
                    }
                    at = reached;
                    if reached < to {
                        break;
                    }
                }
            }
        }
        request.handled = at - start;
    }
}

/// Tells one write under way from another: they have their requests until they are done.
fn name_of(request: &Request) -> usize {
    core::ptr::from_ref(request) as usize
}

/// Appends `[from, to)`, which is altered, to the answer, joined with the run before it if they meet, or nearly. False: no room.
fn push(request: &mut Request, from: usize, to: usize) -> bool {
    let good = push_run(request, from, to, 0, least_gap(request));
    request.altered += if good { to.saturating_sub(from) } else { 0 };
    good
}

fn least_gap(request: &Request) -> usize {
    if request.flags & libc::O_DSYNC != 0 { SYNCHRONOUS_GAP } else { 0 }
}

fn push_state(request: &mut Request, from: usize, to: usize, state: u8) {
    push_run(request, from, to, state, 0);
}

fn push_run(request: &mut Request, from: usize, to: usize, state: u8, gap: usize) -> bool {
    if from >= to {
        return true;
    }
    let count = request.count;
    if let Some(last) = count.checked_sub(1).and_then(|i| request.runs.get_mut(i))
        && from <= last.addr + last.len + gap
        && last.state == state
    {
        last.len = last.len.max(to - last.addr);
        return true;
    }
    match request.runs.get_mut(count) {
        Some(slot) => {
            *slot = PageRun { addr: from, len: to - from, state };
            request.count += 1;
            true
        }
        None => false,
    }
}
