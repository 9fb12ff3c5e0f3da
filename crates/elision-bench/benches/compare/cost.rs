//! Whole programs without and under the drop-in: processor time and peak memory of all their processes, the helper included.
//!
//! For root: each run is a control group of its own. Elsewhere the kernel's account of the child has to do.
#![allow(unsafe_code)] // Joins a group between fork and exec, and waits with the kernel's account.

use crate::program::{drop_in, ordinary};
use elision_bench::{Bench, PAGE, Result, Rng, Table, alter, bytes, check_file, median, settle, sum, time};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the file `a` is, before the first round. It stays what the rounds have made of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Input {
    Random,
    Lines,
    /// An executable, and random bytes behind it.
    Program,
    /// The same, of 6 MB.
    SmallProgram,
}

/// What is run, in a directory that has `a`.
#[derive(Clone, Copy)]
enum Run {
    /// This bench's own [`work`].
    Own,
    Shell(&'static str),
    Python(&'static str),
    Node(&'static str),
    Ruby(&'static str),
    Java,
}

type Row = (&'static str, Input, Run);

const ROWS: &[Row] = &[
    ("read, write to a new file", Input::Random, Run::Own),
    ("read, edit, write to another file, rename", Input::Random, Run::Own),
    ("read, edit, write over it (O_TRUNC)", Input::Random, Run::Own),
    ("read, append, write over it (O_TRUNC)", Input::Random, Run::Own),
    ("six checkpoints, O_TRUNC", Input::Random, Run::Own),
    ("six checkpoints, in place", Input::Random, Run::Own),
    ("read, edit, save in place, three times", Input::Random, Run::Own),
    ("the same, summed after each save", Input::Random, Run::Own),
    ("save of scattered pages, O_SYNC", Input::Random, Run::Own),
    ("executable patched in place, executed at once", Input::SmallProgram, Run::Own),
    ("read, sum", Input::Random, Run::Own),
    (
        "python: edit, open(\"wb\")",
        Input::Random,
        Run::Python("b = bytearray(open('a', 'rb').read()); b[4100] ^= 1; open('a', 'wb').write(b)"),
    ),
    (
        "python: prepend",
        Input::Random,
        Run::Python("b = open('a', 'rb').read(); open('a', 'wb').write(b'0123456789abcdef' + b)"),
    ),
    (
        "python: append, header altered",
        Input::Random,
        Run::Python(
            "b = bytearray(open('a', 'rb').read()); b += b'more'; b[8] ^= 1; open('a', 'wb').write(b)",
        ),
    ),
    (
        "python: hash",
        Input::Random,
        Run::Python("import hashlib; print(hashlib.md5(open('a', 'rb').read()).hexdigest())"),
    ),
    (
        "numpy: fromfile, slice altered, tofile",
        Input::Random,
        Run::Python("import numpy; a = numpy.fromfile('a', 'u1'); a[4096:9999] += 1; a.tofile('a')"),
    ),
    (
        "numpy: slice altered, r+b",
        Input::Random,
        Run::Python(
            "import numpy; f = open('a', 'r+b'); a = numpy.fromfile(f, 'u1'); a[4096:9999] += 1; f.seek(0); f.write(a)",
        ),
    ),
    (
        "node: edit",
        Input::Random,
        Run::Node(
            "const fs = require('fs'); const b = fs.readFileSync('a'); b[5000] ^= 1; fs.writeFileSync('a', b)",
        ),
    ),
    (
        "ruby: edit",
        Input::Random,
        Run::Ruby("s = File.binread('a'); s.setbyte(5000, s.getbyte(5000) ^ 1); File.binwrite('a', s)"),
    ),
    ("java: edit, buffered write", Input::Random, Run::Java),
    ("patchelf", Input::Program, Run::Shell("patchelf --set-rpath /somewhere/else a")),
    ("ld -r -b binary", Input::Random, Run::Shell("ld -r -b binary -o out a")),
    ("dd bs=64M", Input::Random, Run::Shell("dd if=a of=out bs=64M status=none")),
    ("dd bs=4M", Input::Random, Run::Shell("dd if=a of=out bs=4M status=none")),
    ("dd bs=2M", Input::Random, Run::Shell("dd if=a of=out bs=2M status=none")),
    ("qemu-img convert", Input::Random, Run::Shell("qemu-img convert -f raw -O raw a out")),
    ("diff (32 MiB)", Input::Lines, Run::Shell("diff a b >/dev/null || true")),
    ("sort (32 MiB)", Input::Lines, Run::Shell("env LC_ALL=C sort -o out a")),
];

const JAVA: &str = "import java.io.*; import java.nio.file.*;
class Edit { public static void main(String[] a) throws Exception {
byte[] b = Files.readAllBytes(Path.of(\"a\")); b[5000] ^= 1; Files.write(Path.of(\"a\"), b); } }";

const PEERS: [&str; 2] = ["plain", "drop-in"];

/// Starts that one run of the row for executables makes.
const STARTS: usize = 40;

pub fn run(bench: &Bench) -> Result {
    let size = if bench.smoke { 12 << 20 } else { 128 << 20 };
    let account = Account::new();
    if let Account::Child(reason) = &account {
        println!("\nCost: no control groups ({reason}): the helper is not counted.");
    }
    let only = std::env::var("ELISION_BENCH_ROWS").unwrap_or_default();
    let mut rows = Vec::new();
    for row in ROWS.iter().filter(|(name, ..)| only.is_empty() || name.contains(&only)) {
        let name = row.0;
        match measure(bench, &account, row, size).map_err(|error| format!("{name}: {error}"))? {
            Err(reason) => println!("\nCost, {name}: skipped: {reason}"),
            Ok([plain, under]) => {
                let ratios =
                    [under.seconds / plain.seconds, under.least / plain.least, under.peak / plain.peak];
                let [processor, least, memory] = ratios.map(|ratio| format!("{ratio:.2}"));
                let peaks = [plain.peak, under.peak].map(|peak| format!("{:.1}", peak / f64::from(1 << 20)));
                let [plain_peak, under_peak] = peaks;
                let times = [time(under.seconds), time(plain.seconds)];
                let [under, plain] = times;
                let cells = [name.to_owned(), processor, least, memory, under, plain, under_peak, plain_peak];
                rows.push((ratios[0].max(ratios[2]), cells));
            }
        }
    }
    let mut table = Table::new(&[
        "program",
        "processor time, plain = 1",
        "the least, plain = 1",
        "peak memory, plain = 1",
        "drop-in",
        "plain",
        "drop-in, MiB",
        "plain, MiB",
    ]);
    table.rows_losing_first(rows);
    table.print(&format!(
        "Processor time and peak memory of whole programs on a file of {}, medians of {} rounds",
        bytes(size as u64),
        rounds(bench)
    ));
    Ok(())
}

fn rounds(bench: &Bench) -> usize {
    std::env::var("ELISION_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(bench.rounds)
}

#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    /// Of the round with the least.
    least: f64,
    peak: f64,
}

/// The costs of both peers, or why the row is skipped.
fn measure(
    bench: &Bench,
    account: &Account,
    &(name, input, run): &Row,
    size: usize,
) -> Result<std::result::Result<[Cost; 2], String>> {
    if let Some(missing) = missing(run) {
        return Ok(Err(format!("no {missing} here")));
    }
    let directories = PEERS.map(|peer| bench.path(&format!("cost-{peer}")));
    for directory in &directories {
        fs::create_dir(directory)?;
        prepare(directory, input, run, size)?;
    }
    let [mut seconds, mut peaks]: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..rounds(bench) {
        let mut results = Vec::new();
        for (peer, directory) in directories.iter().enumerate() {
            let _ = fs::remove_file(directory.join("out"));
            settle(&directory.join("a"))?;
            let mut command = command(name, run)?;
            command.current_dir(directory).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            if peer == 1 {
                command.env("LD_PRELOAD", drop_in()?);
            }
            let (status, [processor, memory], output) = account.run(command)?;
            if !status.success() {
                return Err(format!("{}: {status}: {}", PEERS[peer], String::from_utf8_lossy(&output)).into());
            }
            seconds[peer].push(processor);
            peaks[peer].push(memory);
            results.push((output, left(directory)?));
        }
        if results[0] != results[1] {
            return Err("other output or files than plain".into());
        }
        for file in results[0].1.keys().filter(|file| *file != "Edit.class") {
            check_file(name, &directories[1].join(file), &fs::read(directories[0].join(file))?)?;
        }
    }
    for directory in directories {
        fs::remove_dir_all(directory)?;
    }
    let of = |peer: usize| Cost {
        seconds: median(seconds[peer].clone()),
        least: seconds[peer].iter().copied().fold(f64::INFINITY, f64::min),
        peak: median(peaks[peer].clone()),
    };
    Ok(Ok([of(0), of(1)]))
}

/// The files and their lengths.
fn left(directory: &Path) -> Result<BTreeMap<String, u64>> {
    fs::read_dir(directory)?
        .map(|entry| {
            let entry = entry?;
            Ok((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()))
        })
        .collect()
}

fn missing(run: Run) -> Option<&'static str> {
    let needs = match run {
        Run::Own => return None,
        Run::Shell(line) => line.split(' ').next().unwrap_or(line),
        Run::Python(line) => {
            let probe = if line.contains("numpy") { "import numpy" } else { "" };
            let works = Command::new(PYTHON).args(["-c", probe]).stderr(Stdio::null()).status();
            return (!works.is_ok_and(|status| status.success())).then_some("python3, or numpy");
        }
        Run::Node(_) => "node",
        Run::Ruby(_) => "ruby",
        Run::Java => "javac",
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&path).any(|directory| directory.join(needs).is_file());
    (!there).then_some(needs)
}

/// Another one on PATH may be a script that starts it, and have no numpy.
const PYTHON: &str = "/usr/bin/python3";

fn command(name: &str, run: Run) -> Result<Command> {
    let with = |program: &str, arguments: &[&str]| {
        let mut command = ordinary(Path::new(program));
        command.args(arguments);
        command
    };
    Ok(match run {
        Run::Own => {
            let mut command = ordinary(&std::env::current_exe()?);
            command.args(["--child", "cost", name]);
            command
        }
        Run::Shell(line) => with("/bin/sh", &["-c", line]),
        Run::Python(line) => with(PYTHON, &["-c", line]),
        Run::Node(line) => with("node", &["-e", line]),
        Run::Ruby(line) => with("ruby", &["-e", line]),
        Run::Java => with("java", &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", ".", "Edit"]),
    })
}

fn prepare(directory: &Path, input: Input, run: Run, size: usize) -> Result {
    let mut random = Rng(33);
    let contents = match input {
        Input::Random => random.bytes(size),
        Input::Lines => {
            // To sort them takes long.
            let size = size.min(32 << 20);
            let mut text = Vec::with_capacity(size + 64);
            while text.len() < size {
                writeln!(text, "{:016x} {:016x}", random.number(), random.number())?;
            }
            text
        }
        Input::Program | Input::SmallProgram => {
            let mut program = fs::read("/bin/true")?;
            program.resize(program.len().next_multiple_of(PAGE), 0);
            program.extend(random.bytes(if input == Input::Program { size } else { 6_000_000 / 8 * 8 }));
            program
        }
    };
    let put = |name: &str, contents: &[u8]| -> Result {
        let path = directory.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(path)?;
        file.write_all(contents)?;
        Ok(file.sync_all()?)
    };
    put("a", &contents)?;
    if input == Input::Lines {
        let mut other = contents;
        let middle = other.len() / 2;
        other[middle] = b'x';
        put("b", &other)?;
    }
    if matches!(run, Run::Java) {
        fs::write(directory.join("Edit.java"), JAVA)?;
        let status = Command::new("javac").arg("Edit.java").current_dir(directory).status()?;
        if !status.success() {
            return Err("javac failed".into());
        }
    }
    Ok(())
}

/// In a child: a row of [`Run::Own`], on the file `a` of the working directory. What it prints must not depend on the drop-in.
pub fn child(row: &str) -> Result {
    let path = Path::new("a");
    let edit = |data: &mut [u8], round: u64| {
        let pages = Rng(round).pages(data.len(), 0.01);
        alter(data, &pages, round);
    };
    match row {
        "read, sum" => println!("{}", sum(&fs::read(path)?)),
        "read, write to a new file" => fs::write("out", fs::read(path)?)?,
        "read, edit, write to a new file" | "read, edit, write to another file, rename" => {
            let mut data = fs::read(path)?;
            edit(&mut data, 1);
            fs::write("out", data)?;
            if row.ends_with("rename") {
                fs::rename("out", path)?;
            }
        }
        "read, edit, write over it (O_TRUNC)" => {
            let mut data = fs::read(path)?;
            data[5000] ^= 1;
            fs::write(path, data)?;
        }
        "read, append, write over it (O_TRUNC)" => {
            let mut data = fs::read(path)?;
            data.extend_from_slice(b"more");
            fs::write(path, data)?;
        }
        "six checkpoints, O_TRUNC" => {
            let mut data = Rng(5).bytes(fs::metadata(path)?.len() as usize / 8 * 6);
            for round in 0..6 {
                edit(&mut data, round);
                fs::write("out", &data)?;
            }
        }
        "six checkpoints, in place" => {
            let mut data = Rng(5).bytes(fs::metadata(path)?.len() as usize / 8 * 6);
            let file = File::create("out")?;
            for round in 0..6 {
                edit(&mut data, round);
                file.write_all_at(&data, 0)?;
            }
        }
        "read, edit, save in place, three times" | "the same, summed after each save" => {
            let mut file = OpenOptions::new().read(true).write(true).open(path)?;
            let mut data = Vec::new();
            file.read_to_end(&mut data)?;
            for round in 0..3 {
                edit(&mut data, round);
                file.write_all_at(&data, 0)?;
                if row.contains("summed") {
                    println!("{}", sum(&data));
                }
            }
        }
        "save of scattered pages, O_SYNC" => {
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(path)?;
            let mut data = vec![0; 8 << 20];
            file.read_exact_at(&mut data, 0)?;
            data.chunks_mut(2 * PAGE).take(400).for_each(|pages| pages[PAGE] ^= 1);
            file.write_all_at(&data, 0)?;
        }
        "executable patched in place, executed at once" => {
            let program = std::env::current_dir()?.join(path);
            for round in 0..STARTS {
                let mut file = OpenOptions::new().read(true).write(true).open(path)?;
                let mut data = vec![0; file.metadata()?.len() as usize];
                file.read_exact(&mut data)?;
                let at = data.len() - 100;
                data[at] ^= 1;
                file.write_all_at(&data, 0)?;
                drop(file);
                // Every other one is executed while its bytes are still in memory.
                let kept = (round % 2 == 0).then_some(data);
                if !Command::new(&program).status()?.success() {
                    return Err("the patched program failed".into());
                }
                drop(kept);
            }
        }
        _ => return Err("no such row".into()),
    }
    Ok(())
}

/// Who counts processor time and memory.
pub enum Account {
    /// The controllers for processor time and for memory.
    One([PathBuf; 2]),
    Two(PathBuf),
    /// The kernel's account of the child, and why.
    Child(String),
}

impl Account {
    pub fn new() -> Account {
        let account = Self::groups().unwrap_or_else(|error| Account::Child(error.to_string()));
        match account.groups_of_run().and_then(|groups| Ok(groups.iter().try_for_each(fs::remove_dir)?)) {
            Ok(()) => account,
            Err(error) => Account::Child(error.to_string()),
        }
    }

    fn groups() -> Result<Account> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounts: Vec<[&str; 4]> = mounts
            .lines()
            .filter_map(|line| line.split(' ').take(4).collect::<Vec<_>>().try_into().ok())
            .collect();
        let of = |controller: &str| {
            let has = |&&[_, _, kind, options]: &&[&str; 4]| {
                kind == "cgroup" && options.split(',').any(|option| option == controller)
            };
            mounts.iter().find(has).map(|[_, at, ..]| PathBuf::from(at))
        };
        if let (Some(processor), Some(memory)) = (of("cpuacct"), of("memory")) {
            return Ok(Account::One([processor, memory]));
        }
        let two = mounts.iter().find(|[_, _, kind, _]| *kind == "cgroup2").ok_or("no control groups")?;
        let two = PathBuf::from(two[1]);
        fs::write(two.join("cgroup.subtree_control"), "+cpu +memory")?;
        Ok(Account::Two(two))
    }

    /// Makes the groups of one run.
    fn groups_of_run(&self) -> Result<Vec<PathBuf>> {
        let parents = match self {
            Account::One(parents) => &parents[..],
            Account::Two(parent) => std::slice::from_ref(parent),
            Account::Child(_) => &[],
        };
        let name = format!("elision-bench-{}", std::process::id());
        let mut groups = Vec::new();
        for group in parents.iter().map(|parent| parent.join(&name)) {
            fs::create_dir(&group)?;
            groups.push(group);
        }
        Ok(groups)
    }

    /// Runs the command to the end of all its processes: seconds and bytes, and what it printed.
    pub fn run(&self, mut command: Command) -> Result<(ExitStatus, [f64; 2], Vec<u8>)> {
        let groups = self.groups_of_run()?;
        let mut doors = Vec::new();
        for group in &groups {
            doors.push(OpenOptions::new().write(true).open(group.join("cgroup.procs"))?);
        }
        // SAFETY: only writes to open files.
        unsafe { command.pre_exec(move || doors.iter().try_for_each(|mut door| door.write_all(b"0"))) };
        let mut child = command.spawn()?;
        drop(command);
        let mut output = Vec::new();
        child.stdout.take().ok_or("no output")?.read_to_end(&mut output)?;
        child.stderr.take().ok_or("no output")?.read_to_end(&mut output)?;
        let mut status = 0;
        // SAFETY: plain numbers, which the kernel fills.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes to both.
        if unsafe { libc::wait4(child.id() as i32, &raw mut status, 0, &raw mut usage) } < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let begun = Instant::now();
        for group in &groups {
            while !fs::read_to_string(group.join("cgroup.procs"))?.is_empty() {
                if begun.elapsed() > Duration::from_secs(10) {
                    return Err("a process is left".into());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        let number = |path: PathBuf| -> Result<f64> { Ok(fs::read_to_string(path)?.trim().parse()?) };
        let used = match (self, &groups[..]) {
            (Account::One(_), [processor, memory]) => [
                number(processor.join("cpuacct.usage"))? / 1e9,
                number(memory.join("memory.max_usage_in_bytes"))?,
            ],
            (Account::Two(_), [group]) => {
                let text = fs::read_to_string(group.join("cpu.stat"))?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                [usage.ok_or("no usage_usec")?.parse::<f64>()? / 1e6, number(group.join("memory.peak"))?]
            }
            _ => {
                let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
                [seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss as f64 * 1024.0]
            }
        };
        for group in &groups {
            fs::remove_dir(group)?;
        }
        Ok((ExitStatus::from_raw(status), used, output))
    }
}
