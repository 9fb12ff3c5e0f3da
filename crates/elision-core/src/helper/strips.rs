//! What became of each file's pages: cells, and lines that tell of them (see [`crate::helper::journal`]).

use crate::extent::{self, Kind, TargetId};
use crate::helper::files::{File, Files};
use crate::helper::map::Map;
use crate::helper::page_tables::{PageTables, SOMEWHERE, facts};
use crate::stats::{LINE, putting};
use crate::transfer::PAGE;
use elision_sys::file::{self, FileKey, ProcPath, decimal};
use elision_sys::task;

pub(crate) const CELLS: usize = 128;

/// Files beyond these have no strip.
const STRIPS: usize = 32;

/// Milliseconds between two looks: twice as many after each [`LINES`], so that a long run has few lines, too.
const EVERY_MS: u64 = 20;
const LINES: u32 = 200;

/// The state of a cell: no page of it stands for the file.
const NOTHING: u8 = b'.';

/// What was done with a cell.
pub(crate) const ELIDED: u8 = 1;
pub(crate) const WRITTEN: u8 = 2;
pub(crate) const MATERIALISED: u8 = 4;
pub(crate) const AHEAD: u8 = 8;

#[derive(Clone, Copy)]
struct Strip {
    key: FileKey,
    size: u64,
    named: bool,
    states: [u8; CELLS],
    did: [u8; CELLS],
}

/// Zeroes are an empty one.
pub(crate) struct Journal {
    /// Where lines go, and of which program; −1: nowhere.
    fd: i32,
    program: i32,
    strips: [Strip; STRIPS],
    used: usize,
    lines: u32,
    looked_ms: u64,
}

impl Journal {
    pub(crate) fn begin(&mut self, fd: i32, program: i32) {
        (self.fd, self.program, self.used, self.lines, self.looked_ms) = (fd, program, 0, 0, 0);
    }

    pub(crate) fn is_on(&self) -> bool {
        self.fd >= 0
    }

    /// When to look next.
    pub(crate) fn due_ms(&self) -> Option<u64> {
        (self.is_on() && self.used > 0)
            .then(|| self.every_ms().saturating_sub(task::ms_since(self.looked_ms)) + 1)
    }

    fn every_ms(&self) -> u64 {
        EVERY_MS << (self.lines / LINES).min(16)
    }

    /// A part of the file was deferred: it has a strip from now on.
    pub(crate) fn begin_strip(&mut self, known: &File) {
        if !self.is_on() || self.position(known.key).is_some() {
            return;
        }
        if let Some(slot) = self.strips.get_mut(self.used) {
            let size = file::stat(known.source.fd).map_or(0, |stat| stat.size);
            *slot = Strip { key: known.key, size, named: false, states: [NOTHING; CELLS], did: [0; CELLS] };
            self.used += 1;
        }
    }

    /// Notes what was done with a part of a file. Without a helper a thread of the program may call: nothing is written here.
    pub(crate) fn note(&mut self, key: FileKey, offset: u64, len: usize, did: u8) {
        let Some(at) = self.position(key).filter(|_| self.is_on() && len > 0) else { return };
        let Some(strip) = self.strips.get_mut(at) else { return };
        strip.each_cell(offset, len, |strip, cell| {
            if let Some(slot) = strip.did.get_mut(cell) {
                *slot |= did;
            }
        });
    }

    fn position(&self, key: FileKey) -> Option<usize> {
        self.strips.iter().take(self.used).position(|strip| strip.key == key)
    }
}

impl Strip {
    fn each_cell(&mut self, offset: u64, len: usize, mut act: impl FnMut(&mut Strip, usize)) {
        let page = PAGE as u64;
        let pages = self.size.div_ceil(page).max(1);
        let cell =
            |offset: u64| ((offset / page).min(pages - 1) as u128 * CELLS as u128 / pages as u128) as usize;
        for at in cell(offset)..=cell(offset + len as u64 - 1) {
            act(self, at);
        }
    }
}

impl Journal {
    /// Appends lines for what has changed, unless it is too early and there is no `force`.
    pub(crate) fn look(&mut self, map: &mut Map, tables: &mut PageTables, files: &Files, force: bool) {
        let force = force && self.lines < LINES;
        if !force && task::ms_since(self.looked_ms) < self.every_ms() {
            return;
        }
        self.looked_ms = task::now_ms();
        let used = self.used;
        for strip in self.strips.iter_mut().take(used) {
            let states = core::mem::replace(&mut strip.states, [NOTHING; CELLS]);
            if let Some(id) = files.find(strip.key) {
                if !core::mem::replace(&mut strip.named, true) {
                    strip.say_name(self.fd, self.program, files.get(id).source.fd);
                }
                strip.fill(map, tables, id);
            }
            if states != strip.states || strip.did != [0; CELLS] {
                strip.say(self.fd, self.program, self.looked_ms);
                self.lines += 1;
            }
        }
    }
}

impl Strip {
    /// The state of a cell is that of its page that has come furthest.
    fn fill(&mut self, map: &mut Map, tables: &mut PageTables, id: TargetId) {
        let mut at = 0;
        while let Some(row) = map.view().of_target(id, at).next() {
            at = row.end();
            let nowhere = if row.kind() == Kind::Mapped { b'd' } else { b'a' };
            let offset = |addr: usize| row.offset + (addr - row.addr) as u64;
            let mut cursor = row.addr;
            tables.scan_each(row.addr, row.end(), SOMEWHERE, |run| {
                let (from, to) = (run.start as usize, run.end as usize);
                let state = match extent::state(row.kind(), facts(run.categories)) {
                    extent::State::Mapped => b'l',
                    extent::State::Tracked => b't',
                    extent::State::Altered => b'a',
                };
                self.set(offset(cursor), from - cursor, nowhere);
                self.set(offset(from), to - from, state);
                cursor = to;
            });
            self.set(offset(cursor), row.end() - cursor, nowhere);
        }
    }

    fn set(&mut self, offset: u64, len: usize, state: u8) {
        let rank = |state: u8| b"dlta".iter().position(|&known| known == state);
        if len > 0 {
            self.each_cell(offset, len, |strip, cell| {
                if let Some(slot) = strip.states.get_mut(cell).filter(|slot| rank(**slot) < rank(state)) {
                    *slot = state;
                }
            });
        }
    }

    fn say(&mut self, fd: i32, program: i32, now_ms: u64) {
        let did = self.did.map(|did| b"0123456789abcdef".get(usize::from(did)).copied().unwrap_or(b'0'));
        let states = self.states;
        self.did = [0; CELLS];
        self.line(fd, program, |put| {
            put(b",\"ms\":");
            put(decimal(now_ms, &mut [0; 20]));
            put(b",\"states\":\"");
            put(&states);
            put(b"\",\"did\":\"");
            put(&did);
            put(b"\"}\n");
        });
    }

    /// Once for each file.
    fn say_name(&self, fd: i32, program: i32, of: i32) {
        let mut room = [0; 1024];
        let name = file::read_link_at(libc::AT_FDCWD, ProcPath::own(of).as_c_str(), &mut room).unwrap_or(&[]);
        self.line(fd, program, |put| {
            put(b",\"bytes\":");
            put(decimal(self.size, &mut [0; 20]));
            put(b",\"path\":\"");
            for &byte in name {
                match byte {
                    b'"' | b'\\' => put(&[b'\\', byte]),
                    b' '..=b'~' | 0x80.. => put(&[byte]),
                    _ => put(b"?"),
                }
            }
            put(b"\"}\n");
        });
    }

    fn line(&self, fd: i32, program: i32, rest: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        let (mut line, mut at) = ([0; LINE], 0);
        let mut put = putting(&mut line, &mut at);
        put(b"{\"pid\":");
        put(decimal(program.max(0) as u64, &mut [0; 20]));
        put(b",\"file\":\"");
        put(decimal(self.key.dev, &mut [0; 20]));
        put(b":");
        put(decimal(self.key.ino, &mut [0; 20]));
        put(b"\"");
        rest(&mut put);
        drop(put);
        let _ = file::write(fd, line.get(..at).unwrap_or(&[]));
    }
}
