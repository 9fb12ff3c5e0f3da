//! Processors that are scarce: one, a part of one, a low priority, busy neighbours. From the first read to the last use.
#![allow(unsafe_code)] // Sets a processor and a priority, and joins a group, between fork and exec.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Table, alter, bytes, median, settle, sum, time};
use std::fs::{self, File, OpenOptions};
use std::hint::spin_loop;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// What the child process does with each file. The name of the use is passed to the child.
const USES: [&str; 4] = ["touch 1 % of the pages", "sum", "edit in place", "a writer wants the file"];

const FILES: usize = 8;

#[derive(Clone, Copy, Default)]
struct Setting {
    name: &'static str,
    one_processor: bool,
    nice: i32,
    /// Busy threads beside.
    busy: usize,
    /// Hundredths of a processor.
    quota: Option<u32>,
}

const ALONE: Setting = Setting { name: "", one_processor: false, nice: 0, busy: 0, quota: None };
const SETTINGS: [Setting; 6] = [
    Setting { name: "nothing", ..ALONE },
    Setting { name: "one processor", one_processor: true, ..ALONE },
    Setting { name: "nice 19", nice: 19, ..ALONE },
    Setting { name: "8 busy threads", busy: 8, ..ALONE },
    Setting { name: "half a processor", quota: Some(50), ..ALONE },
    Setting { name: "a tenth of a processor", quota: Some(10), ..ALONE },
];

pub fn run(bench: &Bench) -> Result {
    let (size, rounds) = if bench.smoke { (8 << 20, 1) } else { (16 << 20, bench.rounds) };
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|at| bench.file(&format!("contention{at}"), &Rng(at as u64 + 1).bytes(size)))
        .collect::<io::Result<_>>()?;
    let mut rows = Vec::new();
    for setting in SETTINGS {
        let group = match setting.quota.map(Group::new).transpose() {
            Ok(group) => group,
            Err(error) => {
                println!("\nContention, {}: skipped: {error}", setting.name);
                continue;
            }
        };
        for what in USES {
            let mut seconds: [Vec<f64>; 2] = Default::default();
            for _ in 0..rounds {
                let mut sums = Vec::new();
                for (peer, seconds) in seconds.iter_mut().enumerate() {
                    paths.iter().try_for_each(|path| settle(path))?;
                    let (took, found) = once(what, setting, group.as_ref(), peer == 1, &paths)
                        .map_err(|error| format!("{what}, {}: {error}", setting.name))?;
                    seconds.push(took);
                    sums.push(found);
                }
                if sums[0] != sums[1] {
                    return Err(format!("{what}, {}: wrong bytes", setting.name).into());
                }
            }
            let least = |peer: usize| seconds[peer].iter().copied().fold(f64::INFINITY, f64::min);
            let least = least(1) / least(0);
            let [plain, under] = seconds.map(median);
            let ratio = under / plain;
            let cells = [
                what.to_owned(),
                setting.name.to_owned(),
                format!("{ratio:.2}"),
                format!("{least:.2}"),
                time(under),
                time(plain),
            ];
            rows.push((ratio, cells));
        }
    }
    let mut table = Table::new(&[
        "what is done",
        "what is scarce",
        "plain = 1",
        "the least, plain = 1",
        "drop-in",
        "plain",
    ]);
    table.rows_losing_first(rows);
    table.print(&format!("Scarce processors: {FILES} files of {} under the drop-in", bytes(size as u64)));
    paths.iter().try_for_each(fs::remove_file)?;
    Ok(())
}

/// Seconds, and the sum of what was read.
fn once(
    what: &str,
    setting: Setting,
    group: Option<&Group>,
    under: bool,
    paths: &[PathBuf],
) -> Result<(f64, u64)> {
    let mut command = ordinary(&std::env::current_exe()?);
    command.args(["--child", "contention", what]).args(paths).stdout(Stdio::piped());
    if under {
        command.env("LD_PRELOAD", drop_in()?);
    }
    let mut door = match group {
        Some(group) => Some(OpenOptions::new().write(true).open(group.0.join("cgroup.procs"))?),
        None => None,
    };
    let limit = move || {
        if setting.one_processor {
            // SAFETY: a set of processors, the first allowed one of which is kept.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::sched_getaffinity(0, size_of_val(&set), &raw mut set);
                let first = (0..libc::CPU_SETSIZE as usize).find(|&at| libc::CPU_ISSET(at, &set));
                libc::CPU_ZERO(&mut set);
                libc::CPU_SET(first.unwrap_or(0), &mut set);
                libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
            }
        }
        // SAFETY: plain numbers.
        unsafe { libc::nice(setting.nice) };
        door.as_mut().map_or(Ok(()), |door| door.write_all(b"0"))
    };
    // SAFETY: only system calls.
    unsafe { command.pre_exec(limit) };
    let done = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        for _ in 0..setting.busy {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    spin_loop();
                }
            });
        }
        let output = command.output();
        done.store(true, Relaxed);
        output
    })?;
    let text = String::from_utf8(output.stdout)?;
    let (seconds, sum) = text.trim().split_once(' ').ok_or("the child failed")?;
    Ok((seconds.parse()?, sum.parse()?))
}

/// `USE FILE…`.
pub fn child(arguments: &[String]) -> Result {
    let (what, paths) = arguments.split_first().ok_or("no use")?;
    let mut writer = match what.contains("writer") {
        true => Some(Writer::start()?),
        false => None,
    };
    let edits = what.contains("edit");
    let mut found = 0u64;
    let begun = Instant::now();
    for path in paths {
        let mut file = OpenOptions::new().read(true).write(edits).open(path)?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        let pages: Vec<usize> = (0..data.len() / PAGE).step_by(100).collect();
        if let Some(writer) = &mut writer {
            writer.write(path)?;
        }
        if edits {
            alter(&mut data, &pages, found);
            file.write_all_at(&data, 0)?;
        }
        found += match what.contains("touch") {
            true => pages.iter().map(|page| u64::from(data[page * PAGE])).sum(),
            false => sum(&data) >> 8,
        };
    }
    println!("{} {found}", begun.elapsed().as_secs_f64());
    Ok(())
}

/// Another process, without the drop-in. It writes a byte that is there already.
struct Writer {
    to: std::process::ChildStdin,
    from: BufReader<std::process::ChildStdout>,
}

impl Writer {
    fn start() -> Result<Writer> {
        let mut command = ordinary(&std::env::current_exe()?);
        let mut child =
            command.args(["--child", "writer"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let to = child.stdin.take().ok_or("no input")?;
        let from = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Writer { to, from })
    }

    fn write(&mut self, path: &str) -> Result {
        writeln!(self.to, "{path}")?;
        self.from.read_line(&mut String::new())?;
        Ok(())
    }
}

/// The writer.
pub fn writer() -> Result {
    for path in io::stdin().lines() {
        let file: File = OpenOptions::new().read(true).write(true).open(path?)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, 0)?;
        file.write_all_at(&byte, 0)?;
        println!("written");
    }
    Ok(())
}

/// A control group with so many hundredths of a processor.
struct Group(PathBuf);

impl Group {
    fn new(hundredths: u32) -> io::Result<Group> {
        let name = format!("elision-bench-quota-{}", std::process::id());
        let quota = hundredths * 1_000;
        let one = Path::new("/sys/fs/cgroup/cpu").join(&name);
        if fs::create_dir(&one).is_ok() {
            let group = Group(one);
            fs::write(group.0.join("cpu.cfs_quota_us"), quota.to_string())?;
            return Ok(group);
        }
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpu")?;
        let two = Path::new("/sys/fs/cgroup").join(&name);
        fs::create_dir(&two)?;
        let group = Group(two);
        fs::write(group.0.join("cpu.max"), format!("{quota} 100000"))?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let begun = Instant::now();
        while fs::remove_dir(&self.0).is_err() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
