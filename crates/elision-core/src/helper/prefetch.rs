//! Loads deferred files that are not in the page cache, once the program's faults have taken too long (see [`crate::cold`]).
//!
//! After an answer the helper looks whether the new pages are in the page cache. If not, it looks every millisecond how long the
//! program has waited for its faults, less often while it has none. Files in the page cache wake nobody.
#![allow(unsafe_code)] // Advice to the kernel.

use crate::cold::{self, FASTEST, Faults, Large, Reading, Waiting};
use crate::extent::{BLANK, Extent, TargetId};
use crate::helper::files::{File, Files};
use crate::helper::load::{Load, MOST_READ, NO_LOAD};
use crate::helper::map::Map;
use crate::helper::mappings;
use crate::helper::page_tables::PageTables;
use crate::helper::residency::{self, Survey, is_loaded};
use crate::helper::room::room;
use crate::shared::processes;
use crate::transfer::PAGE;
use elision_sys::file::{self, FileKey, ProcPath};
use elision_sys::{memory, task};

/// Deferred reads watched at once.
const WATCHES: usize = 128;

const MS: u64 = 1_000_000;

/// A device that delivers nothing for as long is left alone.
const GIVE_UP_NS: u64 = 2_000 * MS;

/// A load stays ahead of a program that uses the file in order. One that has waited so long, but not for the load, does not.
const LEFT_NS: u64 = 100 * MS;

/// The longest pause between two looks at a program that does not wait.
const LONGEST_PAUSE_NS: u64 = 10_000 * MS;

const DEVICES: usize = 8;

#[derive(Clone, Copy)]
struct Watch {
    extent: Extent,
    /// Not looked at yet.
    new: bool,
    file: FileKey,
    /// Bytes missing at first, and at the last survey.
    whole: u64,
    rest: u64,
    waited_ns: u64,
    /// Looked at again when it has waited as long.
    look_ns: u64,
    /// Pages that the kernel had given back at first.
    evicted: u64,
    /// Memory is short: nothing more is loaded ahead.
    short: bool,
    large: Large,
    is_large: bool,
}

const NOTHING: Watch = Watch {
    extent: BLANK,
    new: false,
    file: FileKey { dev: 0, ino: 0 },
    whole: 0,
    rest: 0,
    waited_ns: 0,
    look_ns: 0,
    evicted: 0,
    short: false,
    large: Large::NONE,
    is_large: false,
};

#[derive(Clone, Copy)]
struct Speed {
    device: u64,
    /// Bytes a second. 0: not measured.
    bytes: u64,
}

/// Zeroes are an empty table, but for the descriptor.
pub(crate) struct Prefetch {
    watches: [Watch; WATCHES],
    used: usize,
    load: Load,
    /// Address space to read to. 0: none.
    untouchable: usize,
    looked_ns: u64,
    due_ns: u64,
    waiting: Waiting,
    /// The program's /proc/PID/stat, schedstat and io, or −1.
    stat: i32,
    schedstat: i32,
    io: i32,
    /// At the last look.
    faults: Faults,
    speeds: [Speed; DEVICES],
    next_speed: usize,
    /// The file that was loaded last: what else is read of it is loaded at once.
    loaded: FileKey,
    /// A load's last page, and the bytes that were under way with it.
    last_page: usize,
    under_way: usize,
    ended: Account,
}

/// What a watch leaves to the next one of the same file: a program may read it in pieces.
#[derive(Clone, Copy)]
struct Account {
    file: FileKey,
    whole: u64,
    waited_ns: u64,
}

impl Prefetch {
    /// In a forked child the extents are its parent's.
    pub(crate) fn begin(&mut self, forked: bool) {
        (self.stat, self.schedstat, self.io) = (-1, -1, -1);
        self.load = NO_LOAD;
        if !forked {
            self.used = 0;
        }
    }

    pub(crate) fn note(&mut self, extent: Extent) {
        let fresh = Watch { extent, new: true, ..NOTHING };
        let used = self.used;
        if let Some(watch) = self.watches.iter_mut().take(used).find(|watch| watch.extent == extent) {
            *watch = fresh;
        } else if let Some(slot) = self.watches.get_mut(used) {
            *slot = fresh;
            self.used += 1;
        }
        self.due_ns = 0;
    }

    /// What was asked for since the last call: of which file, offset and bytes.
    pub(crate) fn take_asked(&mut self) -> Option<(TargetId, u64, usize)> {
        self.load.take_asked()
    }

    pub(crate) fn moved(&mut self, from: usize, len: usize, to: usize) {
        let used = self.used;
        for watch in self.watches.iter_mut().take(used) {
            if from <= watch.extent.addr && watch.extent.end() <= from + len {
                watch.extent.addr = watch.extent.addr - from + to;
            }
        }
        self.load = NO_LOAD;
    }

    /// Milliseconds to the next look; `None`: nothing is watched.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        (self.used > 0).then(|| self.due_ns.saturating_sub(task::now_ns()).div_ceil(MS))
    }

    fn remove(&mut self, at: usize, watch: Watch) {
        if self.load.extent == watch.extent {
            self.load = NO_LOAD;
        }
        if !watch.new {
            let Watch { file, whole, waited_ns, .. } = watch;
            self.ended = Account { file, whole, waited_ns };
        }
        self.used = self.used.saturating_sub(1);
        let last = self.watches.get(self.used).copied();
        if let (Some(slot), Some(last)) = (self.watches.get_mut(at), last) {
            *slot = last;
        }
    }

    fn speed(&self, device: u64) -> Option<u64> {
        let known = self.speeds.iter().find(|speed| speed.bytes > 0 && speed.device == device);
        known.map(|speed| speed.bytes)
    }

    fn learn_speed(&mut self, device: u64, bytes: u64) -> u64 {
        let bytes = bytes.max(1);
        let known = self.speeds.iter_mut().find(|speed| speed.bytes > 0 && speed.device == device);
        if let Some(speed) = known {
            speed.bytes = (speed.bytes + bytes) / 2;
            return speed.bytes;
        }
        if let Some(speed) = self.speeds.get_mut(self.next_speed) {
            *speed = Speed { device, bytes };
            self.next_speed = (self.next_speed + 1) % DEVICES;
        }
        bytes
    }

    fn read(&mut self, program: i32, now_ns: u64) -> Reading {
        if self.stat < 0 {
            let open = |name| processes::open(&ProcPath::new(program, name, None), 0).unwrap_or(-1);
            (self.stat, self.schedstat, self.io) = (open("stat"), open("schedstat"), open("io"));
        }
        let (stuck, [minor, major], threads) = processes::stuck_faults_and_threads(self.stat);
        self.faults = Faults { major, minor, ..Faults::default() };
        Reading { now_ns, busy_ns: processes::busy_ns(self.schedstat), faults: minor + major, stuck, threads }
    }
}

/// Decides for each watched read whether it is loaded now. Does nothing before the next look is due. `idle`: no request is waiting.
pub(crate) fn look(
    prefetch: &mut Prefetch,
    map: &mut Map,
    tables: &mut PageTables,
    files: &Files,
    program: i32,
    idle: bool,
) {
    if prefetch.used == 0 {
        return;
    }
    let now = task::now_ns();
    if now < if idle { prefetch.due_ns } else { prefetch.looked_ns + MS } {
        return;
    }
    prefetch.looked_ns = now;
    let mut waited = None;
    let mut at = 0;
    while let Some(mut watch) = prefetch.watches.get(at).copied().filter(|_| at < prefetch.used) {
        let file = files.get(watch.extent.target);
        let stays = is_deferred(map, watch.extent)
            && if watch.new {
                watch.begin(prefetch, &file)
            } else {
                let waited = waited.get_or_insert_with(|| {
                    let reading = prefetch.read(program, now);
                    prefetch.waiting.since(reading)
                });
                watch.waited_ns += *waited;
                watch.go_on(prefetch, tables, &file, now) && {
                    watch.choose_faults(prefetch, map, tables, files);
                    true
                }
            };
        if !stays {
            prefetch.remove(at, watch);
        } else if let Some(slot) = prefetch.watches.get_mut(at) {
            *slot = watch;
            at += 1;
        }
    }
    if prefetch.used == 0 {
        for fd in [&mut prefetch.stat, &mut prefetch.schedstat, &mut prefetch.io] {
            file::close(core::mem::replace(fd, -1));
        }
        return;
    }
    if waited.is_none() {
        prefetch.waiting = Waiting::begin(prefetch.read(program, now));
    }
    let quiet = if prefetch.load.waits() { 0 } else { prefetch.waiting.quiet_ns(now) };
    prefetch.due_ns = now + (quiet / 16).clamp(MS, LONGEST_PAUSE_NS);
}

/// Is some of it still what was watched?
fn is_deferred(map: &mut Map, watched: Extent) -> bool {
    let delta = watched.offset.wrapping_sub(watched.addr as u64);
    map.view()
        .overlapping(watched.addr, watched.len)
        .any(|row| row.is_mapped() && row.stands_at(watched.target, delta))
}

impl Watch {
    /// False: what was looked at is in the page cache.
    fn begin(&mut self, prefetch: &Prefetch, file: &File) -> bool {
        if residency::is_all_loaded(self.extent) {
            return false;
        }
        let Survey { missing, evicted, .. } = Survey::of(self.extent, file);
        let before = prefetch.ended;
        *self = Watch { new: false, file: file.key, whole: missing, rest: missing, evicted, ..*self };
        if before.file == file.key {
            (self.whole, self.waited_ns) = (self.whole + before.whole, before.waited_ns);
        }
        missing > 0
    }

    /// False: there is nothing left to do.
    fn go_on(&mut self, prefetch: &mut Prefetch, tables: &mut PageTables, file: &File, now: u64) -> bool {
        if prefetch.load.extent.len > 0 {
            return prefetch.load.extent != self.extent || self.load(prefetch, tables, file, now);
        }
        if self.short {
            return true;
        }
        let known = prefetch.speed(file.key.dev);
        let speed = known.unwrap_or(FASTEST);
        let eager = prefetch.loaded == file.key;
        let mut some = 0;
        if !eager {
            if self.waited_ns < cold::patience_ns(self.whole, speed).max(self.look_ns) {
                return true;
            }
            match self.is_due(speed, file) {
                Some(parts) => some = parts,
                None => return self.rest > 0,
            }
        }
        if prefetch.under_way >= 64 << 20 && !is_loaded(prefetch.last_page) {
            return true;
        }
        if prefetch.untouchable == 0 {
            prefetch.untouchable = memory::reserve(MOST_READ).unwrap_or(0);
        }
        prefetch.load = Load::new(self.extent, prefetch.untouchable, some, file, now, room());
        match known {
            Some(speed) => prefetch.load.go_deep(speed),
            None => prefetch.load.sure = eager,
        }
        self.load(prefetch, tables, file, now)
    }

    /// `None`: the program has not waited long enough for a load. Else a bit for each part of the read that has pages in the page cache.
    fn is_due(&mut self, speed: u64, file: &File) -> Option<u32> {
        let Survey { missing: rest, evicted, some } = Survey::of(self.extent, file);
        self.rest = rest;
        self.waited_ns = self.waited_ns.min(cold::waited_for(self.whole.saturating_sub(rest) / PAGE as u64));
        self.look_ns = self.waited_ns + cold::patience_ns(self.whole, speed) / 4;
        if evicted.saturating_sub(self.evicted) * PAGE as u64 > self.whole / 16 {
            // Pages loaded ahead would evict pages that the program uses.
            self.short = true;
        } else if cold::should_load(self.waited_ns, self.whole, rest, speed) {
            return Some(some);
        }
        None
    }

    fn load(&mut self, prefetch: &mut Prefetch, tables: &mut PageTables, file: &File, now: u64) -> bool {
        let mut load = core::mem::replace(&mut prefetch.load, NO_LOAD);
        let used = load.used;
        load.go_on(file, tables, now);
        if load.done == 0 {
            load.waited_ns = self.waited_ns;
        }
        if let Some(bytes) = load.measure(now) {
            let speed = prefetch.learn_speed(file.key.dev, bytes);
            if !load.sure && cold::loads_well(load.waited_ns, self.whole.saturating_sub(self.rest), speed) {
                return true;
            }
            load.go_deep(speed);
        }
        if load.asked == load.route.steps {
            let before = if is_loaded(prefetch.last_page) { 0 } else { prefetch.under_way };
            prefetch.under_way = before + (load.asked - load.done) * load.step;
            prefetch.last_page = self.extent.end() - PAGE;
            prefetch.loaded = file.key;
            return false;
        }
        if load.used > used || load.done <= load.used + 1 {
            load.used_waited_ns = self.waited_ns;
        }
        let waited_ns = self.waited_ns.saturating_sub(load.used_waited_ns);
        self.short = load.is_short() && (waited_ns > LEFT_NS || now - load.progress_ns > GIVE_UP_NS);
        if self.short {
            return true;
        }
        if now - load.progress_ns > GIVE_UP_NS {
            return false;
        }
        prefetch.load = load;
        true
    }

    /// Tells the kernel how much a fault is to load, once nothing is loaded ahead any more.
    fn choose_faults(&mut self, prefetch: &Prefetch, map: &mut Map, tables: &PageTables, files: &Files) {
        if !self.short {
            return;
        }
        let faults =
            Faults { bytes: processes::fetched(prefetch.io), waited_ns: self.waited_ns, ..prefetch.faults };
        let speed = prefetch.speed(self.file.dev).unwrap_or(FASTEST);
        let is_large = self.large.decide(faults, speed);
        if core::mem::replace(&mut self.is_large, is_large) == is_large {
            return;
        }
        let advice = match is_large {
            true => [libc::MADV_RANDOM, libc::MADV_HUGEPAGE],
            false => [libc::MADV_NORMAL, libc::MADV_NOHUGEPAGE],
        };
        let Extent { addr, len, .. } = self.extent;
        for row in map.view().overlapping(addr, len) {
            if row.is_mapped() && mappings::is_ours(tables, files, row) {
                for advice in advice {
                    // SAFETY: the advice changes no contents.
                    let _ = unsafe { memory::advise(row.addr, row.len, advice) };
                }
            }
        }
    }
}
