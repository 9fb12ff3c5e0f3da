//! Reading a big file that is in the page cache: until the call returns, then looking at 1 % of its pages.

use crate::peers;
use elision_bench::{
    Bench, Lap, PAGE, Result, Rng, Samples, Table, check_bytes, check_sum, median, pause, speed, time, touch,
};
use std::ops::Deref;
use std::path::Path;
use std::process::Command;

/// Back to back as often in each round: what returns in microseconds needs more than a few samples.
const REPEATS: usize = 20;

pub fn run(bench: &Bench) -> Result {
    let contents = Rng(1).bytes(bench.size);
    let path = bench.file("read", &contents)?;
    let pages = Rng(2).pages(bench.size, 0.01);
    let case = Work { contents: &contents, pages: &pages, expected: touch(&contents, &pages) };
    let clones = peers::clones(&path)?;
    let mut warm = vec![1; bench.size];
    let mut aligned = peers::warm_aligned(bench.size)?;

    let [mut elision, mut elision_asleep, mut mapped, mut mapped_asleep]: [Samples<3>; 4] =
        Default::default();
    let [mut std_fresh, mut std_fresh_aligned, mut std_warm, mut std_aligned, mut snapshot]: [Samples<3>; 5] =
        Default::default();
    // The first time of each is to see that every byte is right, and counts as warming up.
    case.check("elision::read", elision::read(&path)?)?;
    case.check("memmap2 map_copy", peers::map_copy(&path)?)?;
    for _ in 0..bench.rounds {
        for _ in 0..REPEATS {
            elision.push(case.measure("elision::read", || elision::read(&path))?);
        }
        for _ in 0..REPEATS {
            mapped.push(case.measure("memmap2 map_copy", || peers::map_copy(&path))?);
        }
        for _ in 0..REPEATS / 2 {
            pause();
            elision_asleep.push(case.measure("elision::read", || elision::read(&path))?);
            pause();
            mapped_asleep.push(case.measure("memmap2 map_copy", || peers::map_copy(&path))?);
        }
        std_fresh.push(case.measure("std::fs::read", || std::fs::read(&path))?);
        std_warm.push(case.measure("std, warm", || peers::read_warm(&path, &mut warm).map(|()| &warm[..]))?);
        let who = "std, aligned";
        std_fresh_aligned.push(case.measure(who, || peers::read_aligned(&path))?);
        std_aligned.push(case.measure(who, || peers::read_warm(&path, &mut aligned).map(|()| &aligned[..]))?);
        if clones {
            snapshot.push(case.measure("mmap-snapshot", || mmap_snapshot::Mmap::open(&path))?);
        }
    }
    case.check("std, warm", &warm[..])?;
    case.check("std, aligned", &aligned[..])?;
    let first = first_reads(bench, &path)?;

    let mut table = Table::new(&[
        "peer",
        "call returns",
        "touch 1 %",
        "drop",
        "call + touch",
        "call: speed, memmap2 = 1",
        "touch: speed, memmap2 = 1",
        "call + touch: speed, memmap2 = 1",
        "call + touch: speed, std = 1",
    ]);
    let mut row = |name: &str, samples: &Samples<3>, mapped: &Samples<3>| {
        table.row([
            name.to_owned(),
            time(samples.step(0)),
            time(samples.step(1)),
            time(samples.step(2)),
            time(samples.first(2)),
            speed(samples.step(0), mapped.step(0)),
            speed(samples.step(1), mapped.step(1)),
            speed(samples.first(2), mapped.first(2)),
            speed(samples.first(2), std_fresh.first(2)),
        ]);
    };
    row("elision::read", &elision, &mapped);
    row("memmap2 map_copy", &mapped, &mapped);
    row("elision::read, after a pause", &elision_asleep, &mapped_asleep);
    row("memmap2 map_copy, after a pause", &mapped_asleep, &mapped_asleep);
    row("std::fs::read (fresh memory)", &std_fresh, &mapped);
    row("std, fresh memory, page aligned", &std_fresh_aligned, &mapped);
    row("std, warm Vec", &std_warm, &mapped);
    row("std, warm memory, page aligned", &std_aligned, &mapped);
    if snapshot.any() {
        row("mmap-snapshot", &snapshot, &mapped);
    }
    table.print(&format!("Read {}, touch 1 % of the pages", elision_bench::bytes(bench.size as u64)));
    println!(
        "\nThe first deferred read of a process starts the helper, and takes {} ({} to create a mapping in the same way).",
        time(first),
        time(mapped_asleep.step(0))
    );
    if !clones {
        println!(
            "mmap-snapshot is left out: this file system cannot clone files, and without that it copies them."
        );
    }
    std::fs::remove_file(path)?;
    Ok(())
}

struct Work<'a> {
    contents: &'a [u8],
    pages: &'a [usize],
    expected: u64,
}

impl Work<'_> {
    fn measure<T: Deref<Target = [u8]>>(
        &self,
        who: &str,
        open: impl FnOnce() -> std::io::Result<T>,
    ) -> Result<[f64; 3]> {
        let mut lap = Lap::start();
        let data = open()?;
        let call = lap.lap();
        let sum = touch(&data, self.pages);
        let touched = lap.lap();
        drop(data);
        let dropped = lap.lap();
        check_sum(who, sum, self.expected)?;
        Ok([call, touched, dropped])
    }

    fn check(&self, who: &str, data: impl Deref<Target = [u8]>) -> Result {
        check_bytes(who, &data, self.contents, 0)
    }
}

/// Seconds that the first read of a process takes.
fn first_reads(bench: &Bench, path: &Path) -> Result<f64> {
    let mut seconds = Vec::new();
    for _ in 0..bench.rounds {
        let output =
            Command::new(std::env::current_exe()?).args(["--child", "first-read"]).arg(path).output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        seconds.push(String::from_utf8(output.stdout)?.trim().parse()?);
    }
    Ok(median(seconds))
}

/// In a child: reads a file, and prints how many seconds that took.
pub fn child(path: &Path) -> Result {
    let mut lap = Lap::start();
    let data = elision::read(path)?;
    let seconds = lap.lap();
    if data.get(PAGE).is_none() {
        return Err("short".into());
    }
    println!("{seconds}");
    Ok(())
}
