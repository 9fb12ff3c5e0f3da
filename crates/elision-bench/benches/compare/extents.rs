//! Very many small pieces, and very many files: does the time for one depend on how many there are?
//!
//! Small pieces are not worth deferring, so the threshold is set to one page here. What counts is not the speed beside std but
//! that it stays what it is from row to row.

use crate::program::ordinary;
use elision_bench::{Bench, Lap, PAGE, Result, Rng, Samples, Table, check_bytes, speed, time};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::ops::DerefMut;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

/// Bytes of a piece, and of a file of many. Two pages, since of every write the first page is written always.
const PIECE: usize = 2 * PAGE;

/// What each piece goes through: read, look at it, alter it, write it, another process opens its file for writing, drop it.
const STEPS: usize = 6;

const PEERS: [&str; 2] = ["elision", "std"];

pub fn run(bench: &Bench) -> Result {
    let (pieces, files): (&[usize], &[usize]) = match bench.smoke {
        true => (&[10, 200], &[10, 200]),
        false => (&[10, 1_000, 10_000, 100_000], &[10, 1_000, 10_000]),
    };
    let heads = ["", "peer", "deferred", "read", "look", "alter", "write", "another opens", "drop"];
    let mut table = Table::new(&[&heads[..], &["all: speed, std = 1"]].concat());
    for &count in pieces {
        let path = bench.path("pieces");
        make_pieces(&path, count)?;
        compare(bench, &mut table, "pieces", count, &path)?;
        std::fs::remove_file(path)?;
    }
    table.print("Many pieces of 8 KiB of one file that is open for writing: time for each");

    let mut table = Table::new(&[&heads[..], &["all: speed, std = 1"]].concat());
    for &count in files {
        let dir = bench.path("files");
        std::fs::create_dir(&dir)?;
        for at in 0..count {
            std::fs::write(name(&dir, at), contents(at))?;
        }
        compare(bench, &mut table, "files", count, &dir)?;
        std::fs::remove_dir_all(dir)?;
    }
    table.print("Many files of 8 KiB, each read as a whole: time for each");
    println!(
        "\nMappings allowed by vm.max_map_count: {}; descriptors that the helper may have: {}. What is more than they \
         allow is declined, that is, read traditionally.",
        std::fs::read_to_string("/proc/sys/vm/max_map_count")?.trim(),
        descriptors()?
    );
    Ok(())
}

/// A row for each peer, with medians of what their children say.
fn compare(bench: &Bench, table: &mut Table, what: &str, count: usize, path: &Path) -> Result {
    let mut samples: [Samples<STEPS>; 2] = Default::default();
    let mut deferred = [0; 2];
    // Many of them are a median of their own.
    for _ in 0..bench.rounds.min(30_000 / count).max(1) {
        for (peer, name) in PEERS.iter().enumerate() {
            let mut command = ordinary(&std::env::current_exe()?);
            command.args(["--child", "extents", what, name, &count.to_string()]).arg(path);
            let output = command.output()?;
            if !output.status.success() {
                let error = String::from_utf8_lossy(&output.stderr);
                return Err(format!("{count} {what}, {name}: {}, {error}", output.status).into());
            }
            let numbers = String::from_utf8(output.stdout)?;
            let mut numbers = numbers.split_whitespace();
            deferred[peer] = numbers.next().ok_or("no answer")?.parse()?;
            let mut seconds = [0.0; STEPS];
            for (seconds, number) in seconds.iter_mut().zip(numbers) {
                *seconds = number.parse::<f64>()? / count as f64;
            }
            samples[peer].push(seconds);
        }
    }
    for (peer, name) in PEERS.iter().enumerate() {
        let mut row = vec![count.to_string(), (*name).to_owned(), deferred[peer].to_string()];
        row.extend((0..STEPS).map(|step| match samples[peer].step(step) {
            // Not done to files.
            0.0 => "–".into(),
            seconds => time(seconds),
        }));
        row.push(speed(samples[peer].total(), samples[1].total()));
        table.row(row);
    }
    Ok(())
}

/// In a child, which has done nothing else yet: `[pieces or files, peer, how many, path]`. Prints how many were deferred, and the
/// seconds that each step took for all of them.
pub fn child(arguments: &[String]) -> Result {
    let [what, peer, count, path] = arguments else {
        return Err("pieces or files, peer, count, path".into());
    };
    let (count, path) = (count.parse()?, Path::new(path));
    elision::set_min_bytes(PAGE);
    // A helper, and malloc, that have been at work already.
    let warm = path.with_extension("warm");
    std::fs::write(&warm, contents(0))?;
    drop(elision::read(&warm)?);
    std::fs::remove_file(&warm)?;
    let before = elision::stats::snapshot().deferred_bytes;
    let seconds = match (what.as_str(), peer.as_str()) {
        ("pieces", "elision") => {
            let file = elision::File::open_with(OpenOptions::new().read(true).write(true), path)?;
            let segment = elision::Segment::reserve(count * PIECE)?;
            pieces(
                count,
                path,
                Pieces {
                    read: |offset| {
                        let mut buffer = segment.buffer(PIECE)?;
                        buffer.read_at(0, PIECE, &file, offset)?;
                        Ok(buffer)
                    },
                    write: |buffer: &mut elision::Buffer, offset| buffer.write_at(0, PIECE, &file, offset),
                },
            )
        }
        ("pieces", "std") => {
            let file = OpenOptions::new().read(true).write(true).open(path)?;
            pieces(
                count,
                path,
                Pieces {
                    read: |offset| {
                        let mut buffer = vec![0; PIECE];
                        file.read_exact_at(&mut buffer, offset)?;
                        Ok(buffer)
                    },
                    write: |buffer: &mut Vec<u8>, offset| file.write_all_at(buffer, offset),
                },
            )
        }
        ("files", "elision") => files(count, path, |path| elision::read(path)),
        ("files", "std") => files(count, path, |path| std::fs::read(path)),
        _ => Err("no such peer".into()),
    }?;
    let deferred = (elision::stats::snapshot().deferred_bytes - before) as usize / PIECE;
    println!("{deferred} {}", seconds.map(|seconds| seconds.to_string()).join(" "));
    Ok(())
}

struct Pieces<R, W> {
    read: R,
    write: W,
}

fn pieces<M: DerefMut<Target = [u8]>>(
    count: usize,
    path: &Path,
    peer: Pieces<impl Fn(u64) -> io::Result<M>, impl Fn(&mut M, u64) -> io::Result<()>>,
) -> Result<[f64; STEPS]> {
    // From the last to the first, so that no piece continues its neighbour in memory: those would become one.
    let offset = |at: usize| ((count - 1 - at) * PIECE) as u64;
    let mut other = Other::start(std::slice::from_ref(&path.to_path_buf()))?;
    let mut all = Vec::with_capacity(count);
    let mut lap = Lap::start();
    for at in 0..count {
        all.push((peer.read)(offset(at))?);
    }
    let read = lap.lap();
    for (at, piece) in all.iter().enumerate() {
        check_bytes("a piece", &piece[..8], &stamp(count - 1 - at), 0)?;
    }
    let look = lap.lap();
    for piece in &mut all {
        piece[8] = 1;
    }
    let alter = lap.lap();
    for (at, piece) in all.iter_mut().enumerate() {
        (peer.write)(piece, offset(at))?;
    }
    let write = lap.lap();
    let opened = other.open()?;
    lap.lap();
    drop_shuffled(all);
    let dropped = lap.lap();
    // What was written is there, and nothing else has changed.
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut piece = [0; PIECE];
    for at in 0..count {
        file.read_exact_at(&mut piece, (at * PIECE) as u64)?;
        let mut expected = contents(at);
        expected[8] = 1;
        check_bytes("the file", &piece, &expected, at * PIECE)?;
        file.write_all_at(&[0], (at * PIECE) as u64 + 8)?;
    }
    Ok([read, look, alter, write, opened, dropped])
}

fn files<M: DerefMut<Target = [u8]>>(
    count: usize,
    dir: &Path,
    read: impl Fn(&Path) -> io::Result<M>,
) -> Result<[f64; STEPS]> {
    let paths: Vec<PathBuf> = (0..count).map(|at| name(dir, at)).collect();
    let mut other = Other::start(&paths)?;
    let mut all = Vec::with_capacity(count);
    let mut lap = Lap::start();
    for path in &paths {
        all.push(read(path)?);
    }
    let reading = lap.lap();
    for (at, file) in all.iter().enumerate() {
        check_bytes("a file", &file[..8], &stamp(at), 0)?;
    }
    let look = lap.lap();
    for file in &mut all {
        file[8] = 1;
    }
    let alter = lap.lap();
    let opened = other.open()?;
    for (at, file) in all.iter().enumerate() {
        let mut expected = contents(at);
        expected[8] = 1;
        check_bytes("a file", file, &expected, 0)?;
    }
    lap.lap();
    drop_shuffled(all);
    let dropped = lap.lap();
    Ok([reading, look, alter, 0.0, opened, dropped])
}

/// In no order that anybody could profit from.
fn drop_shuffled<M>(mut all: Vec<M>) {
    let mut random = Rng(3);
    while !all.is_empty() {
        let at = random.number() as usize % all.len();
        drop(all.swap_remove(at));
    }
}

/// A process that opens files for writing when it is told to.
pub struct Other {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Other {
    pub fn start(paths: &[PathBuf]) -> Result<Other> {
        let mut command = ordinary(&std::env::current_exe()?);
        command.args(["--child", "open"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut to = child.stdin.take().ok_or("no input")?;
        let from = BufReader::new(child.stdout.take().ok_or("no output")?);
        for path in paths {
            writeln!(to, "{}", path.to_str().ok_or("a path that is not text")?)?;
        }
        Ok(Other { child, to, from })
    }

    /// Has it open all of them, one by one. Says how long that took.
    pub fn open(&mut self) -> Result<f64> {
        self.to.write_all(b"\n")?;
        let mut answer = String::new();
        self.from.read_line(&mut answer)?;
        if !self.child.wait()?.success() {
            return Err("the other process could not open a file".into());
        }
        Ok(answer.trim().parse()?)
    }
}

/// The other process.
pub fn other() -> Result {
    let paths: io::Result<Vec<String>> =
        io::stdin().lines().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty())).collect();
    let mut lap = Lap::start();
    for path in paths? {
        OpenOptions::new().write(true).open(path)?;
    }
    println!("{}", lap.lap());
    Ok(())
}

fn name(dir: &Path, at: usize) -> PathBuf {
    dir.join(at.to_string())
}

fn stamp(at: usize) -> [u8; 8] {
    (at as u64 + 1).to_le_bytes()
}

fn contents(at: usize) -> [u8; PIECE] {
    let mut piece = [0; PIECE];
    piece[..8].copy_from_slice(&stamp(at));
    piece
}

fn make_pieces(path: &Path, count: usize) -> io::Result<()> {
    let mut file = io::BufWriter::with_capacity(1 << 20, File::create(path)?);
    for at in 0..count {
        file.write_all(&contents(at))?;
    }
    file.flush()?;
    file.get_ref().sync_all()
}

/// How many descriptors a process may have here, if it asks for all that it can get.
fn descriptors() -> Result<String> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).ok_or("no limit")?;
    Ok(line.split_whitespace().nth(1).unwrap_or("?").to_owned())
}
