//! Small calls under the drop-in: what it costs where it does nothing.
#![allow(unsafe_code)] // Calls libc as a C program does, through the symbols that the drop-in stands in for.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Table, median};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

const CALLS: [&str; 5] = ["read", "pread", "write", "pwrite", "malloc + free"];

/// Bytes of each transfer.
const SMALL: usize = 64;

/// Transfers until the end of the small file: calls are timed in batches of as many.
const BATCH: usize = 4096;

pub fn run(bench: &Bench) -> Result {
    let small = bench.file("calls", &vec![7; SMALL * BATCH])?;
    let big = bench.file("held", &Rng(6).bytes(bench.size.min(64 << 20)))?;
    let library = drop_in()?;
    let batches = if bench.smoke { 2 } else { 100 };
    let mut seconds: [[Vec<f64>; CALLS.len()]; 4] = Default::default();
    for _ in 0..bench.rounds {
        for (variant, seconds) in seconds.iter_mut().enumerate() {
            let mut command = ordinary(&std::env::current_exe()?);
            command.args(["--child", "calls"]).arg(&small).arg(batches.to_string());
            if variant > 0 {
                command.env("LD_PRELOAD", &library);
            }
            match variant {
                1 => drop(command.env("ELISION", "off")),
                3 => drop(command.arg(&big)),
                _ => {}
            }
            let output = command.output()?;
            if !output.status.success() {
                return Err(String::from_utf8_lossy(&output.stderr).into());
            }
            for (line, seconds) in String::from_utf8(output.stdout)?.lines().zip(seconds) {
                seconds.push(line.parse()?);
            }
        }
    }
    let nanoseconds = seconds.map(|variant| variant.map(|seconds| median(seconds) * 1e9));
    let mut table = Table::new(&[
        "64 bytes",
        "without",
        "drop-in, ELISION=off",
        "drop-in",
        "difference",
        "drop-in, a file being edited",
        "difference",
    ]);
    let [without, off, with, held] = nanoseconds;
    for (call, name) in CALLS.iter().enumerate() {
        table.row([
            (*name).to_owned(),
            format!("{:.1} ns", without[call]),
            format!("{:.1} ns", off[call]),
            format!("{:.1} ns", with[call]),
            format!("{:+.1} ns", with[call] - without[call]),
            format!("{:.1} ns", held[call]),
            format!("{:+.1} ns", held[call] - without[call]),
        ]);
    }
    table.print("Calls below the threshold, with and without the drop-in");
    std::fs::remove_file(small)?;
    std::fs::remove_file(big)?;
    Ok(())
}

/// In a child: `[batches, file to hold]`; prints seconds per call, one line each.
pub fn child(path: &Path, arguments: &[String]) -> Result {
    let batches: usize = arguments.first().ok_or("how many batches?")?.parse()?;
    // A file opened for reading and writing, read as a whole and kept: the drop-in now guards it.
    let held = match arguments.get(1) {
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
    for call in calls {
        let mut seconds = Vec::with_capacity(batches);
        for _ in 0..batches {
            // SAFETY: moves the position of a file of ours.
            unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
            let begun = Instant::now();
            let good = (0..BATCH).fold(true, |good, at| call(at) & good);
            seconds.push(begun.elapsed().as_secs_f64() / BATCH as f64);
            if !good {
                return Err("a call came back short".into());
            }
        }
        println!("{}", median(seconds));
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
