//! Files that are not in the page cache, on devices of so many requests and bytes a second: from the open to the last use.
//!
//! Only for root, since it makes the devices. Each use of the bytes runs in a process of its own, which is throttled.
#![allow(unsafe_code)] // Asks which pages of a mapping are in memory.

#[path = "../../../elision/tests/common/device.rs"]
mod device;

use crate::extents::Other;
use crate::peers;
use crate::program::{drop_in, ordinary};
use device::{Device, Speed};
use elision_bench::{Bench, PAGE, Result, Rng, Table, bytes, check_sum, median, sum, time, touch};
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::DerefMut;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What is done with the bytes. The child knows each by its name.
const USES: [&str; 12] = [
    "in order",
    "stores to 5 % of the pages",
    "a writer wants the file",
    "the first 1 %",
    "0.1 % of the pages at random",
    "1 % at random",
    "10 % at random",
    "backwards",
    "every 64th page, 64 times over",
    "copy",
    "two threads, one backwards",
    "two files, every 64th page",
];

/// Uses in the short form.
const FEW: usize = 3;

/// Title, name in the child, and whether the child is under the drop-in. The others are compared with the first.
const PEERS: [(&str, &str, bool); 3] =
    [("plain", "std", false), ("elision::read", "elision", false), ("drop-in", "std", true)];

/// Requests a second, MB a second, KiB of read-ahead.
const SPEEDS: [(u64, u64, u64); 6] = [
    (1000, 125, 128),
    (1000, 1000, 128),
    (200, 125, 128),
    (200, 1000, 128),
    (16_000, 1000, 128),
    (1000, 125, 4096),
];

/// In the short form.
const FAST: (u64, u64, u64) = (1000, 1000, 128);

fn speed((requests, megabytes, read_ahead_kib): (u64, u64, u64)) -> Speed {
    Speed { requests, bytes: megabytes * 1_000_000, read_ahead_kib }
}

pub fn run(bench: &Bench) -> Result {
    let (size, rounds) = if bench.smoke { (16 << 20, 1) } else { (256 << 20, 3) };
    let contents = Rng(21).bytes(size);
    let bare = [bench.file("cold0", &contents)?, bench.file("cold1", &contents)?];
    let within = bare[0].parent().ok_or("no directory")?;
    let device =
        Device::new(within, 2 * size as u64).and_then(|device| device.limit(speed(FAST)).map(|()| device));
    let device = match device {
        Ok(device) => device,
        Err(reason) => {
            println!("\nCold files: skipped: {reason}");
            return Ok(());
        }
    };
    let files = ["cold0", "cold1"].map(|name| device.path().join(name));
    for path in &files {
        std::fs::write(path, &contents)?;
    }
    drop(contents);
    let copy = bench.path("copy");
    let cold = Cold { device: &device, throttled: true, files: &files, copy: &copy, rounds, uses: &USES };
    if bench.smoke {
        return Cold { uses: &USES[..FEW], ..cold }.table(&title(FAST), size);
    }
    for of in SPEEDS {
        device.limit(speed(of))?;
        cold.table(&title(of), size)?;
    }
    if let Err(reason) = cold.make_cold(&bare[0]) {
        println!("\nCold files on the bare disk: skipped: {reason}");
        return Ok(());
    }
    Cold { throttled: false, files: &bare, ..cold }.table("the bare disk", size)
}

fn title((requests, megabytes, read_ahead): (u64, u64, u64)) -> String {
    format!("{requests} requests/s, {megabytes} MB/s, read-ahead {}", bytes(read_ahead << 10))
}

/// One table.
#[derive(Clone, Copy)]
struct Cold<'a> {
    device: &'a Device,
    /// The files are on the device.
    throttled: bool,
    files: &'a [PathBuf; 2],
    copy: &'a Path,
    rounds: usize,
    uses: &'a [&'static str],
}

impl Cold<'_> {
    fn table(&self, device: &str, size: usize) -> Result {
        let mut rows = Vec::new();
        for what in self.uses {
            let [mut seconds, mut fetched]: [[Vec<f64>; PEERS.len()]; 2] = Default::default();
            let mut expected = None;
            for _ in 0..self.rounds {
                for (at, (title, name, preload)) in PEERS.into_iter().enumerate() {
                    let done = self.once(name, preload, what);
                    let done = done.map_err(|error| format!("{title}, {what}, {device}: {error}"))?;
                    check_sum(title, done.sum, *expected.get_or_insert(done.sum))?;
                    seconds[at].push(done.seconds);
                    fetched[at].push(done.fetched);
                }
            }
            let [seconds, fetched] = [seconds, fetched].map(|peers| peers.map(median));
            for (at, (title, ..)) in PEERS.iter().enumerate().skip(1) {
                let kept = seconds[at] <= 1.15 * seconds[0] + 0.02;
                let ratio = seconds[at] / seconds[0];
                let cells = [
                    (*what).to_owned(),
                    (*title).to_owned(),
                    format!("{ratio:.2}"),
                    if kept { "yes".into() } else { "no".into() },
                    time(seconds[at]),
                    time(seconds[0]),
                    format!("{:.1} %", fetched[at] * 100.0),
                    format!("{:.1} %", fetched[0] * 100.0),
                ];
                rows.push((ratio, cells));
            }
        }
        let mut table = Table::new(&[
            "use",
            "peer",
            "time, plain = 1",
            "at most 1.15 × plain + 20 ms",
            "time",
            "plain",
            "fetched",
            "plain: fetched",
        ]);
        table.rows_losing_first(rows);
        table.print(&format!(
            "Cold files of {}: {device}; medians of {} rounds",
            bytes(size as u64),
            self.rounds
        ));
        Ok(())
    }

    fn once(&self, peer: &str, preload: bool, what: &str) -> Result<Done> {
        for path in self.files {
            self.make_cold(path)?;
        }
        let mut command = ordinary(&std::env::current_exe()?);
        command.args(["--child", "cold", peer, what]).args(self.files).arg(self.copy);
        if preload {
            command.env("LD_PRELOAD", drop_in()?);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let joined = if self.throttled { self.device.join(child.id()) } else { Ok(()) };
        if joined.is_ok() {
            child.stdin.take().ok_or("no input")?.write_all(b"\n")?;
        }
        let output = child.wait_with_output()?;
        joined?;
        if !output.status.success() {
            return Err(format!("{}, {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        }
        let used = if what.starts_with("two files") { &self.files[..] } else { &self.files[..1] };
        let shares: Vec<f64> = used.iter().map(|path| in_memory(path)).collect::<io::Result<_>>()?;
        let answer = String::from_utf8(output.stdout)?;
        let (seconds, sum) = answer.trim().split_once(' ').ok_or("no answer")?;
        Ok(Done {
            seconds: seconds.parse()?,
            sum: sum.parse()?,
            fetched: shares.iter().sum::<f64>() / shares.len() as f64,
        })
    }

    /// Nothing of the file is in the page cache afterwards: waits for what is still being loaded.
    fn make_cold(&self, path: &Path) -> Result {
        let file = File::open(path)?;
        for _ in 0..500 {
            self.device.make_cold(&file)?;
            if in_memory(path)? == 0.0 {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the file stays in the page cache; is ELISION_BENCH_DIR on a disk?".into())
    }
}

struct Done {
    seconds: f64,
    /// Of what was looked at.
    sum: u64,
    /// Share of the file.
    fetched: f64,
}

/// The share of the file that is in the page cache.
fn in_memory(path: &Path) -> io::Result<f64> {
    let map = peers::map_copy(path)?;
    let mut pages = vec![0u8; map.len().div_ceil(PAGE)];
    // SAFETY: the mapping is as long as that, and there is a byte for each of its pages.
    if unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.iter().filter(|&page| page & 1 != 0).count() as f64 / pages.len() as f64)
}

/// In a child: `[peer, use, file, another file, where a copy goes]`. Begins when there is input, and prints the seconds and the sum.
pub fn child(arguments: &[String]) -> Result {
    let [peer, what, files @ .., copy] = arguments else { return Err("peer, use, files, copy".into()) };
    let [first, second] = files else { return Err("two files".into()) };
    let paths = [first, second, copy].map(Path::new);
    let (seconds, sum) = match peer.as_str() {
        "elision" => work(what, paths, |path| elision::read(path), |path, data| elision::write(path, data)),
        "std" => work(what, paths, |path| std::fs::read(path), |path, data| std::fs::write(path, data)),
        _ => Err("no such peer".into()),
    }?;
    println!("{seconds} {sum}");
    Ok(())
}

fn work<M: DerefMut<Target = [u8]>>(
    what: &str,
    [path, other, copy]: [&Path; 3],
    read: impl Fn(&Path) -> io::Result<M>,
    write: impl Fn(&Path, &mut M) -> io::Result<()>,
) -> Result<(f64, u64)> {
    let len = std::fs::metadata(path)?.len() as usize;
    let mut random = Rng(12);
    let pages: Vec<usize> = match what {
        "0.1 % of the pages at random" => random.pages(len, 0.001),
        "1 % at random" => random.pages(len, 0.01),
        "10 % at random" => random.pages(len, 0.1),
        "stores to 5 % of the pages" => random.pages(len, 0.05),
        "backwards" => (0..len / PAGE).rev().collect(),
        "every 64th page, 64 times over" | "two files, every 64th page" => {
            (0..64).flat_map(|first| (first..len / PAGE).step_by(64)).collect()
        }
        _ => Vec::new(),
    };
    let mut writer = None;
    if what == "a writer wants the file" {
        writer = Some(Other::start(&[path.to_owned()])?);
    }
    io::stdin().read_exact(&mut [0])?;

    let begun = Instant::now();
    let mut data = read(path)?;
    let mut seen = match what {
        "in order" => sum(&data),
        "the first 1 %" => sum(&data[..len / 100]),
        "stores to 5 % of the pages" => {
            pages.iter().for_each(|&page| data[page * PAGE + page * 8 % PAGE] ^= 0x55);
            0
        }
        "a writer wants the file" => {
            writer.take().ok_or("no writer")?.open()?;
            0
        }
        "copy" => {
            write(copy, &mut data)?;
            0
        }
        "two threads, one backwards" => {
            let (low, high) = data.split_at(len / 2);
            std::thread::scope(|scope| {
                let low = scope.spawn(|| sum(low));
                sum_backwards(high) + low.join().unwrap_or(0)
            })
        }
        "two files, every 64th page" => {
            let other = read(other)?;
            pages.iter().map(|page| touch(&data, &[*page]) + touch(&other, &[*page])).sum()
        }
        _ if !pages.is_empty() => touch(&data, &pages),
        _ => return Err("no such use".into()),
    };
    let seconds = begun.elapsed().as_secs_f64();

    match what {
        "stores to 5 % of the pages" => seen = touch(&data, &pages),
        "a writer wants the file" => seen = sum(&data),
        "copy" => {
            seen = peers::sum_in_pieces(copy)?;
            std::fs::remove_file(copy)?;
        }
        _ => {}
    }
    Ok((seconds, seen))
}

fn sum_backwards(data: &[u8]) -> u64 {
    data.rchunks(PAGE).map(sum).sum()
}
