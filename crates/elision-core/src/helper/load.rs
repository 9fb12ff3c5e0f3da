//! Loads an extent's file bytes into the page cache, ahead of the program.

use crate::cold::{self, LATE, Route, SHALLOW};
use crate::extent::{BLANK, Extent, TargetId};
use crate::helper::files::File;
use crate::helper::page_tables::{PageTables, SOMEWHERE};
use crate::helper::residency::{self, is_loaded};
use crate::stats::{COUNTERS, Counters};
use crate::transfer::PAGE;
use elision_sys::file::{self, Cached};
use elision_sys::raw::Result;

/// What one request loads: as much as the kernel asks the device for at once.
const SMALLEST_STEP: usize = 128 << 10;
const LARGEST_STEP: usize = 2 << 20;

/// What the helper asks for: more than a request loads, as in reads that are certainly large.
pub(crate) const MOST_READ: usize = 2 * LARGEST_STEP;

/// How long a busy device is measured, and over how many bytes: the kernel's throttle of a control group opens every tenth of a second.
const MEASURE_NS: u64 = 200_000_000;
const MEASURED: usize = 24 << 20;

/// One at a time. `extent.len` 0: none.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub extent: Extent,
    untouchable: usize,
    pub step: usize,
    pub route: Route,
    /// Steps loaded, and asked for.
    pub done: usize,
    pub asked: usize,
    /// Steps asked for at a time.
    depth: usize,
    /// Memory is short: so many steps are asked for ahead of the one that the program is in. Else as many as there are.
    ahead: usize,
    pub used: usize,
    /// What the program had waited when it came to that step.
    pub used_waited_ns: u64,
    pub progress_ns: u64,
    /// What the program had waited before anything came.
    pub waited_ns: u64,
    /// Since when the device is busy, and the steps loaded then.
    busy_ns: u64,
    busy: usize,
    /// The device was measured, and the load is still worth while: it goes on to the end.
    pub sure: bool,
    /// Asked for, and not told of: from where to where.
    told: (usize, usize),
}

pub(crate) const NO_LOAD: Load = Load {
    extent: BLANK,
    untouchable: 0,
    step: 0,
    route: Route::NONE,
    done: 0,
    asked: 0,
    depth: 0,
    ahead: usize::MAX,
    used: 0,
    used_waited_ns: 0,
    progress_ns: 0,
    waited_ns: 0,
    busy_ns: 0,
    busy: 0,
    sure: false,
    told: (0, 0),
};

impl Load {
    /// `room`: so much memory may be used for it.
    pub(crate) fn new(
        extent: Extent,
        untouchable: usize,
        some: u32,
        file: &File,
        now: u64,
        room: u64,
    ) -> Load {
        let whole = Load { extent, untouchable, step: LARGEST_STEP, ..NO_LOAD };
        let steps = |step| extent.len.div_ceil(step);
        let route = Route::new(steps(LARGEST_STEP), some);
        // The kernel cuts what is too much for the device.
        let cold =
            (0..steps(LARGEST_STEP)).map(|turn| route.step(turn)).find(|&step| whole.cached(step, file) == 0);
        let asked = cold.map_or(0, |step| {
            whole.begin(step, 0, file);
            whole.cached(step, file) as usize * PAGE
        });
        let step = match asked.next_multiple_of(SMALLEST_STEP) {
            0 => LARGEST_STEP / 2,
            asked => asked.min(LARGEST_STEP),
        };
        let route = Route::new(steps(step), some);
        let ahead = cold::ahead(extent.len, room, step);
        Load { step, route, ahead, depth: SHALLOW, progress_ns: now, busy_ns: now, ..whole }
    }

    pub(crate) fn go_on(&mut self, file: &File, tables: &mut PageTables, now: u64) {
        let before = self.done;
        self.done = cold::come(before, self.asked, |turn| self.is_loaded(self.route.step(turn)));
        if self.done > before {
            self.progress_ns = now;
        }
        if self.done == self.asked && self.asked > 0 {
            // The device was idle for a while, and is not measured by that.
            (self.busy_ns, self.busy) = (now, self.done);
            self.depth = cold::deeper(self.depth);
        }
        if self.is_short() {
            while self.used + 1 < self.asked && self.is_touched(self.used + 1, tables) {
                self.used += 1;
            }
        } else if self.done > before && self.loses_pages(file) {
            self.ahead = (self.asked / 4).max(2);
            self.used = (0..self.asked).rev().find(|&turn| self.is_touched(turn, tables)).unwrap_or(0);
            // The kernel may have evicted what was loaded further ahead, too.
            self.asked = self.used + 1;
            (self.done, self.busy, self.busy_ns) = (self.asked, self.asked, now);
        }
        while self.asked < self.route.steps
            && self.asked - self.done < self.depth
            && self.asked - self.used < self.ahead
        {
            let step = self.route.step(self.asked);
            self.ask(step, file);
            let (from, to) = self.range(step);
            self.told =
                if self.told.1 == 0 { (from, to) } else { (self.told.0.min(from), self.told.1.max(to)) };
            self.asked += 1;
        }
    }

    /// The load is certain, on a device of so many bytes a second.
    pub(crate) fn go_deep(&mut self, speed: u64) {
        self.sure = true;
        self.depth = cold::depth(speed, self.step);
    }

    /// Is memory short?
    pub(crate) fn is_short(&self) -> bool {
        self.ahead != usize::MAX
    }

    /// Does it wait for the device?
    pub(crate) fn waits(&self) -> bool {
        self.extent.len > 0 && self.done < self.asked
    }

    /// Bytes a second, once the device was busy for long enough. Another measurement begins.
    pub(crate) fn measure(&mut self, now: u64) -> Option<u64> {
        let (took, bytes) = (now - self.busy_ns, (self.done - self.busy) * self.step);
        if took < MEASURE_NS || bytes < MEASURED {
            return None;
        }
        (self.busy_ns, self.busy) = (now, self.done);
        Some(bytes as u64 * 1_000 / (took / 1_000_000))
    }

    pub(crate) fn take_asked(&mut self) -> Option<(TargetId, u64, usize)> {
        let (from, to) = core::mem::take(&mut self.told);
        (to > from).then(|| (self.extent.target, self.extent.offset + from as u64, to - from))
    }

    fn range(&self, step: usize) -> (usize, usize) {
        let end = self.extent.len;
        ((step * self.step).min(end), ((step + 1) * self.step).min(end))
    }

    fn is_loaded(&self, step: usize) -> bool {
        let (from, to) = self.range(step);
        from == to || is_loaded(self.extent.addr + to - PAGE)
    }

    fn is_touched(&self, turn: usize, tables: &mut PageTables) -> bool {
        let (from, to) = self.range(self.route.step(turn));
        tables.count(self.extent.addr + from, self.extent.addr + to, SOMEWHERE) > 0
    }

    /// Does the kernel evict what this load brings, since memory is short?
    fn loses_pages(&self, file: &File) -> bool {
        let loaded = |turn: usize| self.is_loaded(self.route.step(turn));
        let evicted = |turn: usize| match self.cache(self.route.step(turn), file) {
            Ok(cache) => cache.evicted as usize * PAGE,
            // The kernel does not say. Some come late, but not so many in a row.
            Err(_) if turn + LATE < self.done && !(turn..=turn + LATE).any(loaded) => self.step,
            Err(_) => 0,
        };
        cold::is_short(self.done, self.step, evicted)
    }

    fn cache(&self, step: usize, file: &File) -> Result<Cached> {
        let (from, to) = self.range(step);
        residency::cached(file, self.extent.offset + from as u64, self.extent.offset + to as u64)
    }

    fn cached(&self, step: usize, file: &File) -> u64 {
        self.cache(step, file).map_or(0, |cache| cache.pages)
    }

    fn begin(&self, step: usize, within: usize, file: &File) {
        if self.untouchable == 0 {
            return;
        }
        let (from, _) = self.range(step);
        file::begin_to_read(
            file.source.fd,
            self.extent.offset + (from + within) as u64,
            self.untouchable,
            MOST_READ,
        );
    }

    fn ask(&self, step: usize, file: &File) {
        let (from, to) = self.range(step);
        let pages = ((to - from) / PAGE) as u64;
        let before = self.cached(step, file);
        let mut cached = before;
        // A page of the last request is marked, the first or one in the middle: the kernel goes on from there, in larger folios.
        let last = step.saturating_sub(1);
        for (of, within) in [(last, 0), (last, self.step / 2), (step, 0)] {
            if cached < pages {
                self.begin(of, within, file);
                cached = self.cached(step, file);
            }
        }
        if cached < pages {
            let _ = file::read_ahead(file.source.fd, self.extent.offset + from as u64, to - from);
            cached = self.cached(step, file);
        }
        let asked = match self.cache(step, file) {
            Ok(_) => cached.saturating_sub(before) as usize * PAGE,
            Err(_) => to - from,
        };
        Counters::add(&COUNTERS.prefetched, asked);
    }
}
