//! `ELISION_VERBOSE=1`: a line at the first considered transfer, for each new reason to decline, when deferral ends, and
//! at the program's end the sums.

use crate::shared::control;
use crate::shared::hot::HOT;
use crate::stats::{COUNTERS, Reason};
use crate::transfer::{PAGE, Transfer};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::*};
use elision_sys::file::{decimal, write};
use elision_sys::task;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static SAID: AtomicU32 = AtomicU32::new(0);
const ACTIVE: u32 = 1 << 31;
const PHASE: u32 = 1 << 30;
const _: () = assert!(Reason::ALL.len() <= 30);

static PROGRAM: [AtomicU8; 32] = [const { AtomicU8::new(0) }; 32];

pub(crate) fn set_program(name: &[u8]) {
    for (slot, &byte) in PROGRAM.iter().take(PROGRAM.len() - 1).zip(name) {
        slot.store(byte, Relaxed);
    }
}

pub(crate) fn set_verbose(on: bool) {
    VERBOSE.store(on, Relaxed);
}

fn is_new(what: u32) -> bool {
    SAID.load(Relaxed) & what == 0 && SAID.fetch_or(what, Relaxed) & what == 0
}

pub fn decline_read(reason: Reason, len: usize) {
    COUNTERS.decline_read(reason, len);
    say_declined(reason, len);
}

pub fn decline_write(reason: Reason, len: usize) {
    COUNTERS.decline(reason);
    say_declined(reason, len);
}

fn say_declined(reason: Reason, len: usize) {
    say_active();
    if VERBOSE.load(Relaxed) && is_new(1 << reason as u32) {
        let mut digits = [0; 20];
        say(&[
            b"declined a transfer of ",
            decimal(len as u64, &mut digits),
            b" bytes: ",
            reason.name().as_bytes(),
        ]);
    }
}

/// What would have had to be different.
#[cold]
#[inline(never)] // As `write_line`.
pub(crate) fn say_phase(transfer: &Transfer, placed: bool) {
    if VERBOSE.load(Relaxed) && is_new(PHASE) {
        let (had, needed) = (transfer.addr % PAGE, transfer.offset % PAGE as u64);
        let (mut had_digits, mut needed_digits) = ([0; 20], [0; 20]);
        say(&[
            if placed { b"a buffer in a block that Elision placed begins " } else { b"a buffer begins " },
            decimal(had as u64, &mut had_digits),
            b" bytes into its page, and what is read to it ",
            decimal(needed, &mut needed_digits),
            b" bytes into a page of the file",
        ]);
    }
}

/// At the program's end, what was shared, and how much each reason has cost.
pub(crate) fn say_sums() {
    if VERBOSE.load(Relaxed) {
        let shared = COUNTERS.shared.load(Relaxed);
        if shared > 0 {
            let mut digits = [0; 20];
            say(&[
                b"shared ",
                decimal(shared, &mut digits),
                b" bytes that were written with the file that has them",
            ]);
        }
        for (reason, bytes) in Reason::ALL.iter().zip(&COUNTERS.declined_read_bytes) {
            let bytes = bytes.load(Relaxed);
            if bytes > 0 {
                let mut digits = [0; 20];
                say(&[
                    b"declined reads of ",
                    decimal(bytes, &mut digits),
                    b" bytes in all: ",
                    reason.name().as_bytes(),
                ]);
            }
        }
    }
}

pub(crate) fn say_active() {
    if VERBOSE.load(Relaxed) && is_new(ACTIVE) {
        let mut digits = [0; 20];
        let least = HOT.min_bytes.load(Relaxed);
        say(&[b"active for transfers of ", decimal(least as u64, &mut digits), b" bytes and more"]);
    }
}

pub(crate) fn say_stopped(why: &str) {
    if VERBOSE.load(Relaxed) {
        say(&[b"nothing is deferred from here on: the program uses ", why.as_bytes()]);
    }
}

pub fn unavailable() -> Reason {
    if control::possible() { Reason::Helper } else { Reason::Unavailable }
}

/// For the constructor only: later, stderr's descriptor may be another file.
pub(crate) fn say_not_understood(name: &str, value: &[u8], instead: &str) {
    say(&[
        name.as_bytes(),
        b"=",
        value.get(..100).unwrap_or(value),
        b" is not understood: ",
        instead.as_bytes(),
    ]);
}

fn say(parts: &[&[u8]]) {
    let program = PROGRAM.each_ref().map(|byte| byte.load(Relaxed));
    let program = program.split(|&byte| byte == 0).next().unwrap_or(&[]);
    let mut digits = [0; 20];
    let pid = decimal(task::pid().max(0) as u64, &mut digits);
    let mut line: [&[u8]; 12] = [b""; 12];
    let all = [program, b"[", pid, b"]: "].into_iter().chain(parts.iter().copied());
    line.iter_mut().zip(all).for_each(|(slot, part)| *slot = part);
    write_line(2, &line);
}

/// One write for each line, so that processes do not mix; long lines are cut.
#[inline(never)] // Its line is on the stack while it is written, and not longer.
pub(crate) fn write_line(fd: i32, parts: &[&[u8]]) {
    const MOST: usize = 255;
    let mut line = [b'\n'; MOST + 1];
    let all = [b"elision: ".as_slice()].into_iter().chain(parts.iter().copied()).flatten();
    let len = line.iter_mut().take(MOST).zip(all).map(|(slot, byte)| *slot = *byte).count();
    let _ = write(fd, line.get(..=len).unwrap_or(&[]));
}
