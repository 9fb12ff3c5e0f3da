//! Small calls under the drop-in: what it costs where it does nothing.
//!
//! The differences are smaller than what a machine's clock does from one second to the next. So the processes with and without
//! are there at the same time, on one processor, take turns of a fraction of a millisecond, and are compared turn by turn.
#![allow(unsafe_code)] // Calls libc as a C program does, through the symbols that the drop-in stands in for.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Table, median};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

const CALLS: [&str; 5] = ["read", "pread", "write", "pwrite", "malloc + free"];

/// Bytes of each transfer.
const SMALL: usize = 64;

/// Transfers until the end of the small file: as many are a turn.
const BATCH: usize = 512;

/// What a process is like.
struct Variant {
    name: &'static str,
    /// The process that it is compared with.
    beside: Option<usize>,
    preload: bool,
    off: bool,
    /// A big file is being edited by the same process.
    editing: bool,
    /// It has another thread, which sleeps.
    threads: bool,
}

const PLAIN: Variant =
    Variant { name: "without", beside: None, preload: false, off: false, editing: false, threads: false };

const VARIANTS: [Variant; 6] = [
    PLAIN,
    Variant { name: "drop-in, ELISION=off", beside: Some(0), preload: true, off: true, ..PLAIN },
    Variant { name: "drop-in", beside: Some(0), preload: true, ..PLAIN },
    Variant { name: "drop-in, a file being edited", beside: Some(0), preload: true, editing: true, ..PLAIN },
    Variant { name: "two threads, without", threads: true, ..PLAIN },
    Variant { name: "two threads, drop-in", beside: Some(4), preload: true, threads: true, ..PLAIN },
];

/// A process that takes turns.
struct Process {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    small: PathBuf,
}

impl Process {
    fn start(bench: &Bench, at: usize, variant: &Variant, library: &Path, big: &Path) -> Result<Process> {
        let small = bench.file(&format!("calls-{at}"), &[7; SMALL * BATCH])?;
        let mut command = ordinary(&std::env::current_exe()?);
        command.args(["--child", "calls"]).arg(&small);
        if variant.preload {
            command.env("LD_PRELOAD", library);
        }
        if variant.off {
            command.env("ELISION", "off");
        }
        if variant.threads {
            command.arg("threads");
        }
        if variant.editing {
            command.arg(big);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ask = child.stdin.take().ok_or("no way to ask")?;
        let answers = BufReader::new(child.stdout.take().ok_or("no answers")?);
        Ok(Process { child, ask, answers, small })
    }

    /// Seconds for a call of one kind, in one turn.
    fn turn(&mut self, call: usize) -> Result<f64> {
        writeln!(self.ask, "{call}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().parse().map_err(|_| "a process came to an early end")?)
    }

    fn finish(self) -> Result {
        let Process { mut child, ask, small, .. } = self;
        drop(ask);
        let status = child.wait()?;
        std::fs::remove_file(small)?;
        if status.success() { Ok(()) } else { Err(format!("a process ended with {status}").into()) }
    }
}

pub fn run(bench: &Bench) -> Result {
    let big = bench.file("held", &Rng(6).bytes(bench.size.min(64 << 20)))?;
    let library = drop_in()?;
    // Of two processes that are alike one may be slower by tens of nanoseconds for as long as it lives, so there are many.
    let (generations, turns) = if bench.smoke { (2, 3) } else { (25, 80) };
    let mut seconds: [[Vec<f64>; VARIANTS.len()]; CALLS.len()] = Default::default();
    for _ in 0..generations {
        let start = |(at, variant): (usize, &Variant)| Process::start(bench, at, variant, &library, &big);
        let mut processes = VARIANTS.iter().enumerate().map(start).collect::<Result<Vec<_>>>()?;
        for (call, seconds) in seconds.iter_mut().enumerate() {
            for turn in 0..turns {
                for at in 0..VARIANTS.len() {
                    // (Nobody is always the one after the same other.)
                    let at = (at + turn) % VARIANTS.len();
                    seconds[at].push(processes[at].turn(call)?);
                }
            }
        }
        for process in processes {
            process.finish()?;
        }
    }
    let mut table = Table::new(&["64 bytes", "process", "median", "difference, turn by turn"]);
    for (name, seconds) in CALLS.iter().zip(&seconds) {
        for (at, variant) in VARIANTS.iter().enumerate() {
            let beside = variant.beside.map(|other| {
                let pairs = seconds[at].iter().zip(&seconds[other]);
                median(pairs.map(|(with, without)| with - without).collect())
            });
            table.row([
                (*name).to_owned(),
                variant.name.to_owned(),
                format!("{:.1} ns", median(seconds[at].clone()) * 1e9),
                beside.map_or(String::new(), |more| format!("{:+.1} ns", more * 1e9)),
            ]);
        }
    }
    table.print(&format!(
        "Calls below the threshold, with and without the drop-in: {generations} times new processes, {turns} turns of {BATCH} calls each"
    ));
    std::fs::remove_file(big)?;
    Ok(())
}

/// In a child: perhaps "threads", perhaps a file to be edited. Each line of its input names a kind of call; prints seconds
/// per call.
pub fn child(path: &Path, arguments: &[String]) -> Result {
    stay_on_one_processor();
    let (threads, held): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| *argument == "threads");
    if !threads.is_empty() {
        std::thread::spawn(std::thread::park);
    }
    // A file opened for reading and writing, read as a whole and kept: the drop-in now guards it.
    let held = match held.first() {
        Some(path) => {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            let mut data = vec![0; file.metadata()?.len() as usize];
            file.read_exact(&mut data)?;
            Some((file, data))
        }
        None => None,
    };
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let fd = file.as_raw_fd();
    let mut small = [0u8; SMALL];
    let into = small.as_mut_ptr().cast::<c_void>();
    // SAFETY: (all of them) `small` has SMALL bytes and outlives the calls, and the descriptor is open.
    let calls: [&dyn Fn(usize) -> bool; CALLS.len()] = [
        &|_| unsafe { libc::read(fd, into, SMALL) == SMALL as isize },
        // SAFETY: as above.
        &|at| unsafe { libc::pread(fd, into, SMALL, (at * SMALL) as i64) == SMALL as isize },
        // SAFETY: as above.
        &|_| unsafe { libc::write(fd, into, SMALL) == SMALL as isize },
        // SAFETY: as above.
        &|at| unsafe { libc::pwrite(fd, into, SMALL, (at * SMALL) as i64) == SMALL as isize },
        // SAFETY: what was allocated is freed, once.
        &|_| unsafe {
            let block = black_box(libc::malloc(SMALL));
            libc::free(block);
            !block.is_null()
        },
    ];
    // (The bytes to be written are the file's.)
    if !calls[1](0) {
        return Err("nothing to read".into());
    }
    for line in std::io::stdin().lines() {
        let call = calls.get(line?.parse::<usize>()?).ok_or("no such call")?;
        let mut seconds = 0.0;
        // The second time counts: another process was here before.
        for _ in 0..2 {
            // SAFETY: moves the position of a file of ours.
            unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
            let begun = Instant::now();
            let good = (0..BATCH).fold(true, |good, at| call(at) & good);
            seconds = begun.elapsed().as_secs_f64() / BATCH as f64;
            if !good {
                return Err("a call came back short".into());
            }
        }
        println!("{seconds}");
    }
    if black_box(small) != [7; SMALL] {
        return Err("wrong bytes read".into());
    }
    let mut all = Vec::new();
    File::open(path)?.read_to_end(&mut all)?;
    if all != [7; SMALL * BATCH] {
        return Err("wrong bytes written".into());
    }
    if let Some((_, data)) = held
        && data.len() < PAGE
    {
        return Err("nothing was held".into());
    }
    Ok(())
}

/// The same one for all, where that can be had: no two are alike.
fn stay_on_one_processor() {
    // SAFETY: the sets are ours, and their size is given.
    unsafe {
        let mut all: libc::cpu_set_t = std::mem::zeroed();
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of_val(&all), &mut all);
        if let Some(last) = (0..libc::CPU_SETSIZE as usize).rev().find(|&cpu| libc::CPU_ISSET(cpu, &all)) {
            libc::CPU_SET(last, &mut one);
            libc::sched_setaffinity(0, size_of_val(&one), &one);
        }
    }
}
