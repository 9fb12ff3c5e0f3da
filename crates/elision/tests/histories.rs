//! Random histories against a naive model: what plain `read` and `write` into plain vectors would have done.
//!
//! A history has up to three files, four buffers (of their own, or side by side in one segment), three open
//! handles, a real other process that changes files, and forked children that live on for a while. Its steps come
//! from proptest, so a failing one shrinks. After most steps (not all: looking at a buffer loads it, and looking
//! at a file breaks its write lease) everything is compared.
//!
//! `PROPTEST_CASES` says how many; otherwise [`CASES`], or as many as there is time for.
//!
//! The same are played by several threads at once while somebody kills their helper again and again ([`while_the_helper_is_killed`]).
#![allow(unsafe_code)] // fork, and pipes to the children: there is no safe way to have them.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory};
use elision::{Buffer, File, PageState, Segment};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

crate::roles!(play);

fn play(_: &str, _: &[String]) {
    common::play_other();
}

/// Histories in a normal run, in each place.
const CASES: u32 = 750;

/// The same of each of [`THREADS`] while the helper is killed.
const CASES_WITH_KILLS: u32 = 24;
const THREADS: usize = 3;

const FILES: usize = 3;
const BUFFERS: usize = 4;
const HANDLES: usize = 3;

// ------------------------------------------------------------------------------------------------- steps

/// A length or position: proptest shrinks it towards 0, and half of them are at or near page boundaries.
fn place(pages: usize) -> impl Strategy<Value = usize> {
    let near = prop_oneof![6 => Just(0isize), 1 => Just(-1isize), 1 => Just(1isize), 1 => Just(100isize)];
    prop_oneof![
        3 => (0..=pages, near).prop_map(|(page, near)| (page * PAGE).saturating_add_signed(near)),
        1 => 0..=pages * PAGE,
    ]
}

fn file_len() -> impl Strategy<Value = usize> {
    prop_oneof![4 => place(8), 2 => place(40), 1 => 0..PAGE]
}

/// Content; zero now and then, so that different places are equal.
fn seed() -> impl Strategy<Value = u64> {
    prop_oneof![1 => Just(0u64), 6 => 1..1u64 << 40]
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, usize),
    Truncate(usize),
    Rewrite(usize),
    Append(usize),
    Replace(usize),
    Recreate(usize),
    Mode(u32),
    Hold(bool),
    WriteHeld(usize, usize),
    LetGo,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (place(12), place(4)).prop_map(|(at, len)| Change::Write(at, len)),
        3 => file_len().prop_map(Change::Truncate),
        2 => file_len().prop_map(Change::Rewrite),
        1 => place(4).prop_map(Change::Append),
        1 => file_len().prop_map(Change::Replace),
        1 => file_len().prop_map(Change::Recreate),
        1 => (0..0o100u32).prop_map(|mode| Change::Mode(mode | 0o600)),
        1 => any::<bool>().prop_map(Change::Hold),
        1 => (place(12), place(4)).prop_map(|(at, len)| Change::WriteHeld(at, len)),
        2 => Just(Change::LetGo),
    ]
}

#[derive(Clone, Debug)]
enum Step {
    /// `elision::read` or `elision::edit`.
    Read {
        file: usize,
        buffer: usize,
        edit: bool,
    },
    /// A handle of our own.
    Open {
        handle: usize,
        file: usize,
        write: bool,
    },
    Close {
        handle: usize,
    },
    /// `Buffer::new` or `Segment::buffer`.
    New {
        buffer: usize,
        len: usize,
        shared: bool,
    },
    /// `Buffer::try_clone`.
    Clone {
        from: usize,
        to: usize,
    },
    Drop {
        buffer: usize,
    },
    /// `Buffer::close`.
    LetGo {
        buffer: usize,
    },
    Resize {
        buffer: usize,
        len: usize,
    },
    /// `io::Write` for `Buffer`.
    Append {
        buffer: usize,
        len: usize,
        seed: u64,
    },
    /// `Buffer::read_at`; `cut` makes two reads of it that meet there.
    ReadAt {
        buffer: usize,
        handle: usize,
        at: usize,
        len: usize,
        offset: usize,
        cut: Option<usize>,
    },
    /// Reads the file that was read into the buffer before, to the same place or shifted by whole pages.
    Again {
        buffer: usize,
        handle: usize,
        shift: usize,
    },
    Store {
        buffer: usize,
        at: usize,
        len: usize,
        seed: u64,
    },
    /// `Buffer::write_at`.
    WriteAt {
        buffer: usize,
        handle: usize,
        at: usize,
        len: usize,
        offset: usize,
    },
    /// `File::write`.
    WriteAll {
        buffer: usize,
        handle: usize,
        offset: usize,
    },
    /// Writes the buffer to where it came from, if a handle can.
    Back {
        buffer: usize,
    },
    /// `elision::write`.
    Save {
        buffer: usize,
        file: usize,
    },
    SetLen {
        handle: usize,
        len: usize,
    },
    Load {
        buffer: usize,
        at: usize,
        len: usize,
    },
    Unload {
        buffer: usize,
        at: usize,
        len: usize,
    },
    Other {
        file: usize,
        change: Change,
        seed: u64,
    },
    /// The child checks, stores, and lives on until `Reap` or the end.
    Fork {
        store: usize,
        seed: u64,
        soon: bool,
    },
    Reap,
    /// Starts another program.
    Spawn,
    /// Compare a file with the model, by our own `std::fs::read` or by the other process.
    Look {
        file: usize,
        other: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let f = || 0..FILES;
    let b = || 0..BUFFERS;
    let h = || 0..HANDLES;
    prop_oneof![
        6 => (f(), b(), any::<bool>()).prop_map(|(file, buffer, edit)| Step::Read { file, buffer, edit }),
        4 => (h(), f(), any::<bool>()).prop_map(|(handle, file, write)| Step::Open { handle, file, write }),
        2 => h().prop_map(|handle| Step::Close { handle }),
        3 => (b(), file_len(), any::<bool>()).prop_map(|(buffer, len, shared)| Step::New { buffer, len, shared }),
        3 => (b(), b()).prop_map(|(from, to)| Step::Clone { from, to }),
        1 => b().prop_map(|buffer| Step::Drop { buffer }),
        1 => b().prop_map(|buffer| Step::LetGo { buffer }),
        3 => (b(), file_len()).prop_map(|(buffer, len)| Step::Resize { buffer, len }),
        2 => (b(), place(4), seed()).prop_map(|(buffer, len, seed)| Step::Append { buffer, len, seed }),
        9 => (b(), h(), place(8), place(16), place(8), prop::option::of(place(8)), any::<bool>()).prop_map(
            |(buffer, handle, at, len, offset, cut, congruent)| {
                let offset = if congruent { offset / PAGE * PAGE + at % PAGE } else { offset };
                Step::ReadAt { buffer, handle, at, len, offset, cut }
            }
        ),
        2 => (b(), h(), 0..3usize).prop_map(|(buffer, handle, shift)| Step::Again { buffer, handle, shift }),
        8 => (b(), place(16), prop_oneof![2 => Just(1usize), 2 => Just(PAGE), 2 => place(6), 1 => Just(usize::MAX)],
            seed()).prop_map(|(buffer, at, len, seed)| Step::Store { buffer, at, len, seed }),
        5 => (b(), h(), place(8), place(16), place(8)).prop_map(
            |(buffer, handle, at, len, offset)| Step::WriteAt { buffer, handle, at, len, offset }),
        2 => (b(), h(), place(8)).prop_map(|(buffer, handle, offset)| Step::WriteAll { buffer, handle, offset }),
        7 => b().prop_map(|buffer| Step::Back { buffer }),
        4 => (b(), f()).prop_map(|(buffer, file)| Step::Save { buffer, file }),
        2 => (h(), file_len()).prop_map(|(handle, len)| Step::SetLen { handle, len }),
        1 => (b(), place(8), place(8)).prop_map(|(buffer, at, len)| Step::Load { buffer, at, len }),
        2 => (b(), place(8), place(8)).prop_map(|(buffer, at, len)| Step::Unload { buffer, at, len }),
        8 => (f(), change(), seed()).prop_map(|(file, change, seed)| Step::Other { file, change, seed }),
        1 => (place(8), seed(), any::<bool>()).prop_map(|(store, seed, soon)| Step::Fork { store, seed, soon }),
        1 => Just(Step::Reap),
        1 => Just(Step::Spawn),
        2 => (f(), any::<bool>()).prop_map(|(file, other)| Step::Look { file, other }),
    ]
}

/// A step, and whether buffers and page states are compared after it.
type Checked = (Step, bool, bool);

fn history() -> impl Strategy<Value = (Vec<(usize, u64)>, Vec<Checked>)> {
    let checked = (step(), prop::bool::weighted(0.6), prop::bool::weighted(0.6));
    (prop::collection::vec((file_len(), seed()), FILES..=FILES), prop::collection::vec(checked, 1..=30))
}

// ------------------------------------------------------------------------------------------------- model

type Result<T = ()> = std::result::Result<T, String>;

/// A file as the model knows it. A path may come to mean another one.
struct Inode {
    bytes: Vec<u8>,
    /// Rises with every change.
    version: u64,
}

impl Inode {
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.version += 1;
            let end = offset + bytes.len();
            self.bytes.resize(self.bytes.len().max(end), 0);
            self.bytes[offset..end].copy_from_slice(bytes);
        }
    }
}

/// Bytes of a file that a page may stand for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Candidate {
    inode: usize,
    offset: usize,
    version: u64,
}

struct Slot {
    buffer: Buffer,
    model: Vec<u8>,
    /// For each page: what was read into it or written from it since the last store into it.
    candidates: Vec<Vec<Candidate>>,
    /// The last transfer: inode, position in the buffer, in the file, length.
    last: Option<(usize, usize, usize, usize)>,
}

impl Slot {
    fn new(buffer: Buffer) -> Slot {
        let mut slot = Slot { model: vec![0; buffer.len()], buffer, candidates: Vec::new(), last: None };
        slot.fit();
        slot
    }

    /// As many lists of candidates as there are pages.
    fn fit(&mut self) {
        self.candidates.resize(self.model.len().div_ceil(PAGE), Vec::new());
    }

    fn pages(&self, at: usize, len: usize) -> std::ops::Range<usize> {
        if len == 0 { 0..0 } else { at / PAGE..(at + len).div_ceil(PAGE) }
    }

    fn stored(&mut self, at: usize, len: usize) {
        for page in self.pages(at, len) {
            self.candidates[page].clear();
        }
    }

    fn transferred(&mut self, at: usize, len: usize, inode: usize, version: u64, offset: usize) {
        for page in self.pages(at, len) {
            if let Some(offset) = (offset + page * PAGE).checked_sub(at) {
                self.candidates[page].push(Candidate { inode, offset, version });
            }
        }
        self.last = Some((inode, at, offset, len));
    }

    /// A range that is within the buffer.
    fn clip(&self, at: usize, len: usize) -> (usize, usize) {
        let at = at.min(self.model.len());
        (at, len.min(self.model.len() - at))
    }

    fn check(&self) -> Result {
        difference(&self.buffer, &self.model).map_or(Ok(()), Err)
    }

    /// What the buffer says of its pages against what can be true.
    fn check_states(&self, inodes: &[Inode]) -> Result {
        let ranges = self.buffer.ranges();
        let mut end = 0;
        for (range, state) in &ranges {
            if range.start != end || range.is_empty() {
                return Err(format!("ranges are not in order: {ranges:?}"));
            }
            end = range.end;
            if matches!(state, PageState::Plain | PageState::Altered) {
                continue;
            }
            for page in self.pages(range.start, range.len()) {
                let from = page * PAGE;
                let part = &self.model[from..self.model.len().min(from + PAGE)];
                let known = &self.candidates[page];
                let equal = known.iter().any(|candidate| {
                    inodes[candidate.inode]
                        .bytes
                        .get(candidate.offset..candidate.offset + PAGE)
                        .is_some_and(|there| there[..part.len()] == *part)
                });
                // A tracked extent may outlive its guard: until the file is used again nobody asks whether it changed.
                let stale = *state == PageState::Tracked
                    && known.iter().any(|candidate| candidate.version != inodes[candidate.inode].version);
                if !equal && !stale {
                    return Err(format!("page {page} is said to be {state:?}, but equals none of {known:?}"));
                }
            }
        }
        if end != self.model.len() {
            return Err(format!("ranges end at {end}, the buffer at {}", self.model.len()));
        }
        Ok(())
    }
}

struct Handle {
    file: File,
    inode: usize,
    write: bool,
}

/// A forked child that waits to be told to check and go.
struct Kid {
    pid: i32,
    go: i32,
}

impl Kid {
    fn reap(self) -> Result {
        let mut status = 0;
        // (Not by closing the pipe alone: the child of another thread may have it, too.)
        let byte = 0u8;
        // SAFETY: a child and a descriptor of ours.
        unsafe {
            libc::write(self.go, (&raw const byte).cast(), 1);
            libc::close(self.go);
            while libc::waitpid(self.pid, &mut status, 0) < 0 {}
        }
        std::mem::forget(self);
        if status == 0 { Ok(()) } else { Err(format!("the forked child ended with status {status:#x}")) }
    }
}

impl Drop for Kid {
    fn drop(&mut self) {
        // SAFETY: as above; the history has failed already.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::close(self.go);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

struct World<'a> {
    other: &'a RefCell<Part>,
    paths: Vec<PathBuf>,
    /// Which inode a path means.
    names: Vec<usize>,
    inodes: Vec<Inode>,
    held: Option<(usize, bool)>,
    handles: [Option<Handle>; HANDLES],
    slots: [Option<Slot>; BUFFERS],
    segment: Segment,
    kids: Vec<Kid>,
    /// Bytes offered to writes in all.
    offered: &'a RefCell<u64>,
    dir: common::Directory,
    /// No other history is played at the same time.
    alone: bool,
}

fn io<T>(what: &str, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| format!("{what}: {error}"))
}

impl World<'_> {
    fn ask(&self, command: Foreign) -> Result<Vec<u8>> {
        io("the other process", self.other.borrow_mut().ask(&command))
    }

    /// An inode by a new handle, opened for the purpose where there is none.
    fn handle(&mut self, at: usize, write: bool) -> Result<usize> {
        let at = match self.handles.iter().position(|h| h.as_ref().is_some_and(|h| h.write || !write)) {
            Some(any) => match &self.handles[at] {
                Some(h) if h.write || !write => at,
                _ => any,
            },
            None => {
                self.open(at, at % FILES, write)?;
                at
            }
        };
        Ok(at)
    }

    fn open(&mut self, at: usize, file: usize, write: bool) -> Result {
        self.handles[at] = None;
        let opened = File::open_with(OpenOptions::new().read(true).write(write), &self.paths[file]);
        self.handles[at] = Some(Handle { file: io("open", opened)?, inode: self.names[file], write });
        Ok(())
    }

    /// A buffer; made by reading a file where there is none.
    fn slot(&mut self, at: usize) -> Result {
        if self.slots[at].is_none() {
            self.step(&Step::Read { file: at % FILES, buffer: at, edit: false })?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result {
        match *step {
            Step::Read { file, buffer, edit } => {
                self.slots[buffer] = None;
                let path = &self.paths[file];
                let got = io("read", if edit { elision::edit(path) } else { elision::read(path) })?;
                let inode = self.names[file];
                let known = &self.inodes[inode];
                let mut slot = Slot::new(got);
                slot.model = known.bytes.clone();
                slot.fit();
                slot.transferred(0, known.bytes.len(), inode, known.version, 0);
                self.slots[buffer] = Some(slot);
            }
            Step::Open { handle, file, write } => self.open(handle, file, write)?,
            Step::Close { handle } => self.handles[handle] = None,
            Step::New { buffer, len, shared } => {
                self.slots[buffer] = None;
                let made = if shared { self.segment.buffer(len) } else { Buffer::new(len) };
                self.slots[buffer] = Some(Slot::new(io("new", made)?));
            }
            Step::Clone { from, to } => {
                self.slot(from)?;
                let Some(slot) = &self.slots[from] else { return Ok(()) };
                let buffer = io("clone", slot.buffer.try_clone())?;
                let (model, candidates) = (slot.model.clone(), slot.candidates.clone());
                self.slots[to] = Some(Slot { buffer, model, candidates, last: slot.last });
            }
            Step::Drop { buffer } => self.slots[buffer] = None,
            Step::LetGo { buffer } => {
                if let Some(slot) = &mut self.slots[buffer] {
                    slot.buffer.close();
                }
            }
            Step::Resize { buffer, len } => {
                self.slot(buffer)?;
                let Some(slot) = &mut self.slots[buffer] else { return Ok(()) };
                let before = slot.model.len();
                io("resize", slot.buffer.resize(len))?;
                slot.model.resize(len, 0);
                slot.fit();
                if len < before && !len.is_multiple_of(PAGE) {
                    // What was cut off is zeroed.
                    slot.stored(len - 1, 1);
                }
            }
            Step::Append { buffer, len, seed } => {
                self.slot(buffer)?;
                let Some(slot) = &mut self.slots[buffer] else { return Ok(()) };
                let (content, end) = (bytes(seed, len), slot.model.len());
                io("append", slot.buffer.write_all(&content))?;
                slot.model.extend(content);
                slot.fit();
                slot.stored(end, len);
            }
            Step::ReadAt { buffer, handle, at, len, offset, cut } => {
                self.slot(buffer)?;
                let handle = self.handle(handle, false)?;
                let Some(slot) = &self.slots[buffer] else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                let cut = cut.unwrap_or(len).min(len);
                self.read_at(buffer, handle, at, cut, offset)?;
                self.read_at(buffer, handle, at + cut, len - cut, offset + cut)?;
            }
            Step::Again { buffer, handle, shift } => {
                self.slot(buffer)?;
                let handle = self.handle(handle, false)?;
                let Some(slot) = &self.slots[buffer] else { return Ok(()) };
                let Some((_, at, offset, len)) = slot.last else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                self.read_at(buffer, handle, at, len, offset + shift * PAGE)?;
            }
            Step::Store { buffer, at, len, seed } => {
                self.slot(buffer)?;
                let Some(slot) = &mut self.slots[buffer] else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                let content = bytes(seed, len);
                slot.buffer[at..at + len].copy_from_slice(&content);
                slot.model[at..at + len].copy_from_slice(&content);
                slot.stored(at, len);
            }
            Step::WriteAt { buffer, handle, at, len, offset } => {
                self.slot(buffer)?;
                let handle = self.handle(handle, true)?;
                let Some(slot) = &self.slots[buffer] else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                self.write_at(buffer, handle, at, len, offset)?;
            }
            Step::WriteAll { buffer, handle, offset } => {
                self.slot(buffer)?;
                let handle = self.handle(handle, true)?;
                let (Some(slot), Some(handle)) = (&mut self.slots[buffer], &self.handles[handle]) else {
                    return Ok(());
                };
                io("write", handle.file.write(offset as u64, &mut slot.buffer))?;
                let known = &mut self.inodes[handle.inode];
                known.put(offset, &slot.model);
                let len = slot.model.len();
                *self.offered.borrow_mut() += len as u64;
                slot.transferred(0, len, handle.inode, known.version, offset);
            }
            Step::Back { buffer } => {
                self.slot(buffer)?;
                let Some(slot) = &self.slots[buffer] else { return Ok(()) };
                let Some((inode, at, offset, len)) = slot.last else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                let open =
                    self.handles.iter().position(|h| h.as_ref().is_some_and(|h| h.inode == inode && h.write));
                let handle = match open {
                    Some(handle) => handle,
                    None => {
                        let Some(file) = self.names.iter().position(|&name| name == inode) else {
                            return Ok(());
                        };
                        self.open(0, file, true)?;
                        0
                    }
                };
                self.write_at(buffer, handle, at, len, offset)?;
            }
            Step::Save { buffer, file } => {
                self.slot(buffer)?;
                let Some(slot) = &mut self.slots[buffer] else { return Ok(()) };
                io("save", elision::write(&self.paths[file], &mut slot.buffer))?;
                let inode = self.names[file];
                let known = &mut self.inodes[inode];
                known.bytes.clone_from(&slot.model);
                known.version += 1;
                let len = slot.model.len();
                *self.offered.borrow_mut() += len as u64;
                slot.transferred(0, len, inode, known.version, 0);
            }
            Step::SetLen { handle, len } => {
                let handle = self.handle(handle, true)?;
                let Some(handle) = &self.handles[handle] else { return Ok(()) };
                io("set_len", handle.file.set_len(len as u64))?;
                self.inodes[handle.inode].bytes.resize(len, 0);
                self.inodes[handle.inode].version += 1;
            }
            Step::Load { buffer, at, len } => {
                self.slot(buffer)?;
                let Some(slot) = &self.slots[buffer] else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                io("load", slot.buffer.load(at..at + len))?;
            }
            Step::Unload { buffer, at, len } => {
                self.slot(buffer)?;
                let Some(slot) = &mut self.slots[buffer] else { return Ok(()) };
                let (at, len) = slot.clip(at, len);
                if io("unload", slot.buffer.unload(at..at + len))? > len {
                    return Err("more was unloaded than asked for".into());
                }
            }
            Step::Other { file, ref change, seed } => self.change(file, change, seed)?,
            Step::Fork { store, seed, soon } => {
                self.fork(store, seed)?;
                if soon && let Some(kid) = self.kids.pop() {
                    kid.reap()?;
                }
            }
            Step::Reap => {
                for kid in self.kids.drain(..) {
                    kid.reap()?;
                }
            }
            Step::Spawn => {
                let status = io("spawn", std::process::Command::new("true").status())?;
                if !status.success() {
                    return Err(format!("another program ended with {status}"));
                }
            }
            Step::Look { file, other } => self.look(file, other)?,
        }
        Ok(())
    }

    fn read_at(&mut self, buffer: usize, handle: usize, at: usize, len: usize, offset: usize) -> Result {
        let (Some(slot), Some(handle)) = (&mut self.slots[buffer], &self.handles[handle]) else {
            return Ok(());
        };
        let got = io("read_at", slot.buffer.read_at(at, len, &handle.file, offset as u64))?;
        let known = &self.inodes[handle.inode];
        let there = known.bytes.get(offset..).unwrap_or(&[]);
        let there = &there[..there.len().min(len)];
        if got != there.len() {
            return Err(format!("read_at gives {got} bytes instead of {}", there.len()));
        }
        slot.model[at..at + got].copy_from_slice(there);
        // A page wholly overwritten is what was read; others are that, too, if their rest is the file's.
        for page in at.div_ceil(PAGE)..(at + got) / PAGE {
            slot.candidates[page].clear();
        }
        slot.transferred(at, got, handle.inode, known.version, offset);
        Ok(())
    }

    fn write_at(&mut self, buffer: usize, handle: usize, at: usize, len: usize, offset: usize) -> Result {
        let (Some(slot), Some(handle)) = (&mut self.slots[buffer], &self.handles[handle]) else {
            return Ok(());
        };
        io("write_at", slot.buffer.write_at(at, len, &handle.file, offset as u64))?;
        let known = &mut self.inodes[handle.inode];
        known.put(offset, &slot.model[at..at + len]);
        *self.offered.borrow_mut() += len as u64;
        slot.transferred(at, len, handle.inode, known.version, offset);
        Ok(())
    }

    fn change(&mut self, file: usize, change: &Change, seed: u64) -> Result {
        let path = self.paths[file].clone();
        let inode = self.names[file];
        let fresh = self.inodes.len();
        let command = match *change {
            Change::Write(at, len) => {
                self.inodes[inode].put(at, &bytes(seed, len));
                Foreign::Write { path, offset: at as u64, len, seed }
            }
            Change::Truncate(len) => {
                self.inodes[inode].bytes.resize(len, 0);
                Foreign::Truncate { path, len: len as u64 }
            }
            Change::Rewrite(len) => {
                self.inodes[inode].bytes = bytes(seed, len);
                Foreign::Rewrite { path, len, seed }
            }
            Change::Append(len) => {
                let end = self.inodes[inode].bytes.len();
                self.inodes[inode].put(end, &bytes(seed, len));
                Foreign::Append { path, len, seed }
            }
            Change::Replace(len) | Change::Recreate(len) => {
                self.inodes.push(Inode { bytes: bytes(seed, len), version: 0 });
                self.names[file] = fresh;
                match change {
                    Change::Replace(_) => Foreign::Replace { path, len, seed },
                    _ => Foreign::Recreate { path, len, seed },
                }
            }
            Change::Mode(mode) => Foreign::Mode { path, mode },
            Change::Hold(write) => {
                self.held = Some((inode, write));
                Foreign::Hold { path, write }
            }
            Change::WriteHeld(at, len) => {
                let Some((held, true)) = self.held else { return Ok(()) };
                self.inodes[held].put(at, &bytes(seed, len));
                self.inodes[held].version += 1;
                Foreign::WriteHeld { offset: at as u64, len, seed }
            }
            Change::LetGo => {
                self.held = None;
                Foreign::LetGo
            }
        };
        self.inodes[inode].version += 1;
        self.ask(command).map(drop)
    }

    fn look(&self, file: usize, other: bool) -> Result {
        let path = self.paths[file].clone();
        let got = if other { self.ask(Foreign::Read { path })? } else { io("look", std::fs::read(path))? };
        let expected = &self.inodes[self.names[file]].bytes;
        difference(&got, expected).map_or(Ok(()), |how| Err(format!("file {file}: {how}")))
    }

    fn check(&self) -> Result {
        for (i, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot {
                slot.check().map_err(|how| format!("buffer {i}: {how}"))?;
            }
        }
        Ok(())
    }

    fn check_states(&self) -> Result {
        elision_core::client::memory::validate()?;
        for (i, slot) in self.slots.iter().enumerate() {
            if let Some(slot) = slot {
                slot.check_states(&self.inodes).map_err(|how| format!("buffer {i}: {how}"))?;
            }
        }
        Ok(())
    }

    /// A child that has this model of its buffers, stores into them, and checks them when it is told to go.
    fn fork(&mut self, store: usize, seed: u64) -> Result {
        let mut go = [0; 2];
        let mut ready = [0; 2];
        // SAFETY: arrays of two. The child calls nothing but code that works after a fork (the harness's other
        // thread waits; the allocator takes care of itself) and ends with _exit.
        let pid = unsafe {
            assert_eq!(libc::pipe2(go.as_mut_ptr(), libc::O_CLOEXEC), 0);
            assert_eq!(libc::pipe2(ready.as_mut_ptr(), libc::O_CLOEXEC), 0);
            libc::fork()
        };
        if pid == 0 {
            // SAFETY: our own descriptors.
            unsafe { libc::close(go[1]) };
            for kid in &self.kids {
                // Or an older child would never see the end of its pipe.
                // SAFETY: as above.
                unsafe { libc::close(kid.go) };
            }
            let good = self.child(store, seed, ready[1], go[0]);
            if let Err(how) = &good {
                eprintln!("in a forked child: {how}");
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(good.is_err())) };
        }
        let mut byte = 0u8;
        // SAFETY: our own descriptors and one byte.
        let told = unsafe {
            libc::close(go[0]);
            libc::close(ready[1]);
            let told = libc::read(ready[0], (&raw mut byte).cast(), 1);
            libc::close(ready[0]);
            told
        };
        let kid = Kid { pid, go: go[1] };
        if told != 1 {
            kid.reap()?;
            return Err("the forked child ended early".into());
        }
        self.kids.push(kid);
        Ok(())
    }

    fn child(&mut self, store: usize, seed: u64, ready: i32, go: i32) -> Result {
        if seed.is_multiple_of(2) {
            self.check()?;
        }
        for (i, slot) in self.slots.iter_mut().enumerate() {
            if let Some(slot) = slot
                && i % 2 == (seed % 2) as usize
            {
                let (at, len) = slot.clip(store, PAGE + 1);
                let content = bytes(seed, len);
                slot.buffer[at..at + len].copy_from_slice(&content);
                slot.model[at..at + len].copy_from_slice(&content);
            }
        }
        let mut byte = 0u8;
        // SAFETY: our own descriptors and one byte.
        unsafe {
            libc::write(ready, (&raw const byte).cast(), 1);
            libc::read(go, (&raw mut byte).cast(), 1);
        }
        self.check()
    }

    /// The end of a history: everything is compared.
    fn end(mut self) -> Result {
        self.check_states()?;
        self.check()?;
        for kid in self.kids.drain(..) {
            kid.reap()?;
        }
        for file in 0..FILES {
            self.look(file, file % 2 == 0)?;
        }
        // What no name leads to any more is seen through the handles.
        for handle in self.handles.iter().flatten() {
            let known = &self.inodes[handle.inode].bytes;
            let got = io("read", handle.file.read(0, usize::MAX))?;
            if let Some(how) = difference(&got, known) {
                return Err(format!("by its handle: {how}"));
            }
        }
        self.check()?;
        self.change(0, &Change::LetGo, 0)?;
        let dir = self.dir.path().to_owned();
        let alone = self.alone;
        drop(self);
        match elision_core::client::memory::validate()? {
            _ if !alone => (),
            0 => (),
            left => return Err(format!("{left} extents of buffers that are gone")),
        }
        if dir.exists() { Err("the directory is still there".into()) } else { Ok(()) }
    }
}

/// Plays a history. Says after which step it went wrong.
fn play_history(
    other: &RefCell<Part>,
    offered: &RefCell<u64>,
    files: &[(usize, u64)],
    steps: &[Checked],
    alone: bool,
) -> Result {
    let dir = directory();
    let paths: Vec<PathBuf> = (0..FILES).map(|i| dir.path().join(format!("file{i}"))).collect();
    let mut inodes = Vec::new();
    for (path, &(len, seed)) in paths.iter().zip(files) {
        let content = bytes(seed, len);
        io("create", common::create(path, &content))?;
        inodes.push(Inode { bytes: content, version: 0 });
    }
    let mut world = World {
        other,
        paths,
        names: (0..FILES).collect(),
        inodes,
        held: None,
        handles: Default::default(),
        slots: Default::default(),
        segment: Segment::reserve(64 << 20).map_err(|error| error.to_string())?,
        kids: Vec::new(),
        offered,
        dir,
        alone,
    };
    for (i, (step, contents, states)) in steps.iter().enumerate() {
        let after = |how| format!("after step {i}, {step:?}: {how}");
        world.step(step).map_err(after)?;
        if *states {
            world.check_states().map_err(after)?;
        }
        if *contents {
            world.check().map_err(after)?;
        }
    }
    world.end().map_err(|how| format!("at the end: {how}"))
}

#[test]
fn random_histories_agree_with_plain_read_and_write() {
    elision::set_min_bytes(PAGE);
    let other = RefCell::new(Part::start("other", &[]));
    let offered = RefCell::new(0);
    let before = common::descriptors();
    let played = common::in_ample_time(CASES, |cases| {
        let config = Config {
            cases,
            max_shrink_iters: 4000,
            // No file is looked for that is not there.
            failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
                "proptest-regressions/histories.txt",
            ))),
            ..Config::default()
        };
        let failed = TestRunner::new(config).run(&history(), |(files, steps)| {
            play_history(&other, &offered, &files, &steps, true).map_err(TestCaseError::fail)
        });
        if let Err(error) = failed {
            // After a failure the other process may hold a file still.
            panic!("{error}");
        }
    });
    assert_eq!(common::descriptors(), before, "descriptors left open");
    let stats = elision::stats::snapshot();
    println!("{played} histories: {stats:?}");
    assert!(stats.deferred_bytes >= stats.loaded_bytes + stats.materialised_bytes, "{stats:?}");
    assert!(stats.elided_bytes + stats.written_bytes <= *offered.borrow(), "{stats:?} of {offered:?}");
    if common::defers_reads(directory().path()) {
        // Or all of this has tested nothing.
        assert!(stats.deferred_bytes > u64::from(played) * PAGE as u64, "{stats:?}");
        assert!(stats.materialised_bytes > 0, "{stats:?}");
    }
    if common::lower().is_none() && common::defers(directory().path()) {
        // Where nothing is remembered of a file that was let go, there is less to elide: mostly half a page a case, a sixth at times.
        let share = if common::remembers(directory().path()) { 1 } else { 20 };
        assert!(stats.elided_bytes > u64::from(played) * PAGE as u64 / share, "{stats:?}");
    }
    other.into_inner().finish();
}

/// Who waits longer waits for a lease that nobody gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// The helper of this process, if there is one, and its parent.
fn helper() -> Option<(i32, i32)> {
    let parent = child("self", "elision-watch")?;
    Some((child(&parent, "elision")?.parse().ok()?, parent.parse().ok()?))
}

/// The last child of this name of any thread of the process. (There may be remains of others. By the kernel's own list, since a walk through
/// /proc, as in `common`, takes so long that a helper would never be killed while it starts.)
fn child(process: &str, name: &str) -> Option<String> {
    let of_thread = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).ok();
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).ok()?.flatten();
    let children: String = tasks.filter_map(of_thread).collect();
    let called = |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(children.split_whitespace().rfind(|pid| called(pid).trim_end() == name)?.to_owned())
}

/// Whatever the helper was at when it was killed, nobody notices: neither who asked it for something, nor another thread, nor a forked
/// child, nor who waits for the file. (If its parent is killed as well, somebody has to look whether it is still there. A program's next
/// call would do.)
#[test]
fn while_the_helper_is_killed() {
    elision::set_min_bytes(PAGE);
    if !common::defers_reads(directory().path()) {
        return;
    }
    let done = AtomicBool::new(false);
    let (played, kills) = std::thread::scope(|scope| {
        let killer = scope.spawn(|| {
            let (mut kills, mut word) = (0, 0x2545_F491_4F6C_DD1Du64);
            while !done.load(Relaxed) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                // Often so soon that the next one has not yet seen to what the last one has left.
                std::thread::sleep(Duration::from_micros(
                    word % if word >> 62 == 0 { 1_000 } else { 30_000 },
                ));
                let both = word & 1 << 40 != 0;
                if let Some((pid, parent)) = helper() {
                    // SAFETY: a child of this process, and its child.
                    unsafe {
                        if both {
                            libc::kill(parent, libc::SIGKILL);
                        }
                        kills += i32::from(libc::kill(pid, libc::SIGKILL) == 0);
                    }
                }
                let begun = Instant::now();
                while both && begun.elapsed() < Duration::from_millis(2) {
                    elision_core::client::life::look_after();
                    std::thread::yield_now();
                }
            }
            kills
        });
        let play = || {
            let other = RefCell::new(Part::start("other", &[]));
            let offered = RefCell::new(0);
            let mut failed = Ok(());
            let played = common::in_ample_time(CASES_WITH_KILLS, |cases| {
                let config =
                    Config { cases, max_shrink_iters: 0, failure_persistence: None, ..Config::default() };
                let result = TestRunner::new(config).run(&history(), |(files, steps)| {
                    let begun = Instant::now();
                    let played = play_history(&other, &offered, &files, &steps, false);
                    played.map_err(TestCaseError::fail)?;
                    let took = begun.elapsed();
                    prop_assert!(took < PATIENCE, "somebody waited: {took:?} for {files:?} {steps:?}");
                    Ok(())
                });
                failed =
                    std::mem::replace(&mut failed, Ok(())).and(result.map_err(|error| error.to_string()));
            });
            other.into_inner().finish();
            failed.map(|()| played)
        };
        let players: Vec<_> = (0..THREADS).map(|_| scope.spawn(play)).collect();
        let played: Vec<_> = players.into_iter().map(|player| player.join()).collect();
        done.store(true, Relaxed);
        let played = played.into_iter().map(|result| match result.expect("a thread panicked") {
            Ok(played) => played,
            Err(how) => panic!("{how}"),
        });
        (played.sum::<u32>(), killer.join().unwrap())
    });
    println!("{played} histories, {kills} kills");
    assert!(kills > 0);
}

/// Two reads that meet anywhere inside a page make one extent of it, in either order.
#[test]
fn adjacent_reads_coalesce() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers_reads(dir.path()) {
        return;
    }
    let path = dir.path().join("data");
    let content = bytes(7, 10 * PAGE + 700);
    common::create(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    for cut in [3 * PAGE + 1, 3 * PAGE + 2048, 4 * PAGE - 1, 4 * PAGE, 2 * PAGE + 5] {
        for backwards in [false, true] {
            let mut buffer = Buffer::new(content.len()).unwrap();
            let mut parts = [(0, cut), (cut, content.len() - cut)];
            if backwards {
                parts.reverse();
            }
            for (at, len) in parts {
                assert_eq!(buffer.read_at(at, len, &file, at as u64).unwrap(), len);
            }
            // Comparing a page to take it in loads nothing; the tail is a fragment.
            let states = buffer.ranges();
            assert_eq!(states[0], (0..10 * PAGE, PageState::Deferred), "cut {cut}: {states:?}");
            assert!(difference(&buffer, &content).is_none());
            // A store in between keeps the page apart.
            let mut buffer = Buffer::new(content.len()).unwrap();
            let [(at, len), (other_at, other_len)] = parts;
            buffer.read_at(at, len, &file, at as u64).unwrap();
            let altered = if backwards { cut } else { cut - 1 };
            buffer[altered] ^= 1;
            buffer.read_at(other_at, other_len, &file, other_at as u64).unwrap();
            let mut expected = content.clone();
            expected[altered] ^= 1;
            assert!(difference(&buffer, &expected).is_none());
            let page = altered / PAGE;
            let state = buffer.ranges().into_iter().find(|(range, _)| range.contains(&altered)).unwrap();
            assert!(
                matches!(state.1, PageState::Plain | PageState::Altered),
                "page {page} of cut {cut}: {state:?}"
            );
        }
    }
}

/// What a written buffer's pages are: those written and not stored into are associated, the others are not.
#[test]
fn states_follow_stores_and_writes() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let path = dir.path().join("data");
    common::create(&path, bytes(9, 16 * PAGE)).unwrap();
    let state = |buffer: &Buffer, page: usize| {
        buffer.ranges().into_iter().find(|(range, _)| range.contains(&(page * PAGE))).unwrap().1
    };
    let mut buffer = elision::edit(&path).unwrap();
    assert_eq!(buffer.ranges(), [(0..16 * PAGE, PageState::Deferred)]);
    let _ = std::hint::black_box(buffer[5 * PAGE]);
    buffer[3 * PAGE] ^= 1;
    assert_eq!(state(&buffer, 3), PageState::Altered);
    assert_eq!(state(&buffer, 5), PageState::Loaded);
    assert_eq!(buffer.unload(0..16 * PAGE).unwrap() % PAGE, 0);
    assert_eq!(state(&buffer, 5), PageState::Deferred);
    elision::write(&path, &mut buffer).unwrap();
    assert_eq!(state(&buffer, 3), PageState::Tracked);
    assert_eq!(state(&buffer, 5), PageState::Deferred);
    buffer[3 * PAGE + 9] ^= 1;
    assert_eq!(state(&buffer, 3), PageState::Altered);
    let before = elision::stats::snapshot();
    elision::write(&path, &mut buffer).unwrap();
    let after = elision::stats::snapshot();
    // The altered page, and the last one, which is written always.
    assert_eq!(after.written_bytes - before.written_bytes, 2 * PAGE as u64);
    assert_eq!(after.elided_bytes - before.elided_bytes, 14 * PAGE as u64);
    assert!(difference(&std::fs::read(&path).unwrap(), &buffer).is_none());
}
