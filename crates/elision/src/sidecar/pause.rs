//! Holding the program's threads still, unseen, for the few microseconds in which memory changes hands.
//!
//! ptrace is the only way that stops a thread in user code and in the kernel alike without a signal, an error or a trap
//! that the program could see. What it can disturb is a system call that returns EINTR when its sleep is
//! interrupted; [`task::trace_release`] hands such a call back to the kernel to go on.
//!
//! A thread inside vfork cannot be stopped before its child has gone on to exec: then the others are let go and it is
//! tried again, so that the child, which shares the memory, is never overlooked.

use super::state::State;
use crate::sys::file::{self, ProcPath};
use crate::sys::task::{self, Traced};

/// Threads that can be held at a time.
const THREADS: usize = 4096;

/// For how long the others are held while one cannot be stopped.
const PATIENCE_US: u64 = 20_000;

/// How often it is tried before giving up: some thirty seconds, below the kernel's time-out for a lease break.
const TRIES: u32 = 1000;

/// The threads held.
pub struct Pause {
    tids: [i32; THREADS],
    stopped: [bool; THREADS],
    count: usize,
    /// In a forked child that has no sidecar: the only thread is the caller, and holds itself.
    pub alone: bool,
}

impl Pause {
    fn has(&self, tid: i32) -> bool {
        self.tids.iter().take(self.count).any(|&known| known == tid)
    }

    fn add(&mut self, tid: i32) -> bool {
        let (Some(slot), Some(stopped)) = (self.tids.get_mut(self.count), self.stopped.get_mut(self.count))
        else {
            return false;
        };
        *slot = tid;
        *stopped = false;
        self.count += 1;
        true
    }

    /// Seizes every thread of `program`, those included that are made meanwhile. False: one may not be.
    fn seize_all(&mut self, program: i32) -> bool {
        loop {
            let mut fresh = 0;
            let complete = each_thread(program, |tid| {
                if self.has(tid) {
                    return true;
                }
                fresh += 1;
                match task::trace_seize(tid) {
                    Ok(()) if !self.add(tid) => {
                        // No room to remember it: it must not stay attached.
                        let _ = task::trace_interrupt(tid);
                        wait_and_release(tid);
                        false
                    }
                    Ok(()) => task::trace_interrupt(tid).is_ok() || task::trace_poll(tid) == Traced::Gone,
                    Err(_) => {
                        fresh -= 1;
                        is_dead(program, tid)
                    }
                }
            });
            if !complete {
                return false;
            }
            if fresh == 0 {
                return true;
            }
            if !self.wait_stopped() {
                return false;
            }
        }
    }

    /// Waits until every seized thread has stopped or is gone.
    fn wait_stopped(&mut self) -> bool {
        let mut waited = 0;
        for i in 0..self.count {
            while let (Some(&tid), Some(stopped)) = (self.tids.get(i), self.stopped.get_mut(i)) {
                if *stopped || tid == 0 {
                    break;
                }
                match task::trace_poll(tid) {
                    Traced::Stopped => *stopped = true,
                    Traced::Gone => {
                        if let Some(slot) = self.tids.get_mut(i) {
                            *slot = 0;
                        }
                    }
                    Traced::Running if waited >= PATIENCE_US => return false,
                    Traced::Running => {
                        // A stop takes some microseconds; the sidecar must not starve whom it waits for.
                        let nap = if waited < 200 { 5 } else { 100 };
                        task::nap_us(nap);
                        waited += nap + 50;
                    }
                }
            }
        }
        true
    }

    /// Lets all of them go; those that have not stopped yet, as soon as they do.
    fn release_all(&mut self) {
        for pass in [true, false] {
            for i in 0..self.count {
                let (Some(&tid), Some(&stopped)) = (self.tids.get(i), self.stopped.get(i)) else { continue };
                if tid == 0 || stopped != pass {
                    continue;
                }
                if stopped {
                    task::trace_release(tid);
                } else {
                    wait_and_release(tid);
                }
            }
        }
        self.count = 0;
    }
}

/// Waits for a stop that was asked for, and ends it.
fn wait_and_release(tid: i32) {
    loop {
        match task::trace_poll(tid) {
            Traced::Stopped => return task::trace_release(tid),
            Traced::Gone => return,
            Traced::Running => task::nap_us(200),
        }
    }
}

/// Calls `visit` with every thread of the process until it says false. False if it did, or the list cannot be read.
pub(super) fn each_thread(pid: i32, mut visit: impl FnMut(i32) -> bool) -> bool {
    let path = ProcPath::new(pid, "task", None);
    let Ok(directory) = file::open(path.as_c_str(), libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)
    else {
        return false;
    };
    let mut buffer = [0u8; 2048];
    let mut good = true;
    while good {
        let Ok(filled) = file::directory_entries(directory, &mut buffer) else {
            good = false;
            break;
        };
        if filled == 0 {
            break;
        }
        let mut at = 0;
        while good && at < filled {
            // struct linux_dirent64: inode 8, offset 8, record length 2, type 1, name.
            let Some(length) = buffer.get(at + 16..at + 18) else { break };
            let length = length.iter().rev().fold(0usize, |sum, &byte| sum << 8 | byte as usize);
            let name = buffer.get(at + 19..at + length).unwrap_or(&[]);
            let number = name
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .fold(0i64, |n, &b| n * 10 + i64::from(b - b'0'));
            if number > 0 {
                good = visit(number as i32);
            }
            if length == 0 {
                break;
            }
            at += length;
        }
    }
    file::close(directory);
    good
}

/// Is the thread dead, or about to be? (A main thread that ended before the others stays as a zombie.)
fn is_dead(pid: i32, tid: i32) -> bool {
    let path = ProcPath::new(pid, "task", Some(tid));
    // /proc/PID/task/TID, then "/stat".
    let base = path.as_c_str().to_bytes();
    let mut full = [0u8; 80];
    for (slot, &byte) in full.iter_mut().take(79).zip(base.iter().chain(b"/stat")) {
        *slot = byte;
    }
    let Ok(full) = core::ffi::CStr::from_bytes_until_nul(&full) else { return false };
    let Ok(fd) = file::open(full, libc::O_RDONLY | libc::O_CLOEXEC, 0) else { return true };
    let mut text = [0u8; 256];
    let filled = file::read(fd, &mut text).unwrap_or(0);
    file::close(fd);
    // The state follows the last ')' of the name.
    let text = text.get(..filled).unwrap_or(&[]);
    let state = text.iter().rposition(|&b| b == b')').and_then(|i| text.get(i + 2)).copied();
    matches!(state, None | Some(b'Z' | b'X' | b'x'))
}

impl State {
    /// Stops all of the program's threads, wherever they are. True: they are held, until [`State::resume`].
    pub(super) fn pause(&mut self) -> bool {
        if self.pause.alone {
            return true;
        }
        for _ in 0..TRIES {
            self.pause.count = 0;
            if self.pause.seize_all(self.program) {
                return true;
            }
            let refused = self.pause.count == 0;
            self.pause.release_all();
            if refused {
                return false;
            }
            task::nap_us(10_000);
        }
        false
    }

    /// Lets the program's threads go on.
    pub(super) fn resume(&mut self) {
        self.pause.release_all();
    }
}
