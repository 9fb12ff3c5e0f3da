//! Copies on file systems that share blocks: the processor time and time of each, the bytes that reach the device, and the time that
//! the copy's next reader takes.

use crate::cost::Account;
use crate::peers;
use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, Result, Rng, Table, bytes, check_file, median, settle, time};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What is run, and whether it leaves an edited file.
const WORK: [(&str, &[&str], bool); 5] = [
    ("cp --reflink=never", &["cp", "--reflink=never", "a", "out"], false),
    ("cp --reflink=always", &["cp", "--reflink=always", "a", "out"], false),
    ("one read, one write", &["--child", "cost", "read, write to a new file"], false),
    ("dd bs=4M", &["dd", "if=a", "of=out", "bs=4M", "status=none"], false),
    ("1 % altered, written to a new file", &["--child", "cost", "read, edit, write to a new file"], true),
];

const WAYS: [(&str, Option<&str>); 3] =
    [("without", None), ("drop-in, ELISION_SHARE=off", Some("off")), ("drop-in", Some("on"))];

const MEASURES: usize = 6;

pub fn run(bench: &Bench) -> Result {
    let size = if bench.smoke { 12 << 20 } else { 128 << 20 };
    let directory = bench.path("share");
    fs::create_dir(&directory)?;
    let contents = Rng(34).bytes(size);
    let a = bench.file("share/a", &contents)?;
    if !peers::clones(&a)? {
        println!(
            "\nShare: skipped: files share no blocks here. Set ELISION_BENCH_DIR to a directory on XFS or btrfs."
        );
        return Ok(());
    }
    let (account, device) = (Account::new(), device_of(&directory)?);
    let mut peers = Vec::new();
    for (name, line, edits) in WORK {
        let ways = if name.starts_with("cp") { &WAYS[..1] } else { &WAYS };
        peers.extend(ways.iter().map(|&(way, shares)| (name, way, line, shares, edits, Vec::new())));
    }
    for _ in 0..bench.rounds {
        for (name, _, line, shares, edits, rounds) in &mut peers {
            rounds.push(measure(&directory, &account, device.as_deref(), line, *shares)?);
            if !*edits {
                check_file(name, &directory.join("out"), &contents)?;
            }
        }
    }
    let mut table = Table::new(&[
        "what",
        "how",
        "processor time",
        "time",
        "with fsync",
        "written to the device",
        "then read by the next",
        "from the device",
    ]);
    for (name, way, _, _, _, rounds) in peers {
        let of = |which: usize| median(rounds.iter().map(|round: &[f64; MEASURES]| round[which]).collect());
        let mut cells = vec![name.to_owned(), way.to_owned()];
        cells.extend((0..MEASURES).map(|i| if i == 3 || i == 5 { bytes(of(i) as u64) } else { time(of(i)) }));
        table.row(cells);
    }
    table.print(&format!(
        "A copy of {} that is in the page cache, medians of {} rounds",
        bytes(size as u64),
        bench.rounds
    ));
    Ok(())
}

fn measure(
    directory: &Path,
    account: &Account,
    device: Option<&Path>,
    line: &[&str],
    shares: Option<&str>,
) -> Result<[f64; MEASURES]> {
    let out = directory.join("out");
    let _ = fs::remove_file(&out);
    settle(&directory.join("a"))?;
    // Also what the last round has removed.
    rustix::fs::syncfs(File::open(directory)?)?;
    let own = line[0] == "--child";
    let mut command = ordinary(&if own { std::env::current_exe()? } else { PathBuf::from(line[0]) });
    command.args(&line[usize::from(!own)..]).current_dir(directory);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(shares) = shares {
        command.env("LD_PRELOAD", drop_in()?).env("ELISION_SHARE", shares);
    }
    let before = transferred(device);
    let begun = Instant::now();
    let processor = ran(account, command)?;
    let took = begun.elapsed().as_secs_f64();
    let mut file = File::open(&out)?;
    file.sync_all()?;
    let synced = begun.elapsed().as_secs_f64();
    rustix::fs::syncfs(&file)?;
    let written = transferred(device);
    let begun = Instant::now();
    let mut piece = vec![0; 1 << 20];
    while file.read(&mut piece)? > 0 {}
    let read = begun.elapsed().as_secs_f64();
    Ok([processor, took, synced, written[1] - before[1], read, transferred(device)[0] - written[0]])
}

fn ran(account: &Account, command: Command) -> Result<f64> {
    let (status, [processor, _], output) = account.run(command)?;
    if !status.success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&output)).into());
    }
    Ok(processor)
}

/// The counters of the device below a directory. (btrfs has no device number of its own.)
fn device_of(directory: &Path) -> Result<Option<PathBuf>> {
    let directory = directory.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mounts = mounts.lines().filter_map(|line| line.split_once(' '));
    let below = mounts.filter(|(_, rest)| directory.starts_with(rest.split(' ').next().unwrap_or("")));
    let source = below.max_by_key(|(_, rest)| rest.find(' ')).map(|(source, _)| source);
    let Some(number) = source.and_then(|source| fs::metadata(source).ok()).map(|found| found.rdev()) else {
        return Ok(None);
    };
    Ok(Some(format!("/sys/dev/block/{}:{}/stat", libc::major(number), libc::minor(number)).into()))
}

/// Bytes read and written.
fn transferred(device: Option<&Path>) -> [f64; 2] {
    let text = device.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    [2, 6].map(|at| numbers.get(at).map_or(0.0, |sectors| sectors * 512.0))
}
