//! Saves of whole files beside std's: time, and processor time of program and helper together.
#![allow(unsafe_code)] // Asks for processor time, and drops a file from the page cache.

use crate::peers;
use elision_bench::{Bench, Result, Rng, Table, alter, bytes, check_file, median, settle, speed, time};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Instant;

type Work = fn(&Path, &mut dyn FnMut(&mut [u8])) -> Result;

/// A peer, and the peer that it is compared with.
const PEERS: [(&str, Work, usize); 5] = [
    ("elision::read, elision::write", read_write, 1),
    ("std::fs::read, std::fs::write", std_whole, 1),
    ("elision::read, elision::write_atomic", read_replace, 3),
    ("std: read, new file, rename", std_replace, 3),
    ("elision::edit, elision::write", edit_write, 1),
];

const SHARES: [(&str, f64); 5] = [("0 %", 0.0), ("1 %", 0.01), ("10 %", 0.1), ("50 %", 0.5), ("100 %", 1.0)];

fn read_write(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut data = elision::read(path)?;
    alter(&mut data);
    Ok(elision::write(path, &mut data)?)
}

fn edit_write(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut data = elision::edit(path)?;
    alter(&mut data);
    Ok(elision::write(path, &mut data)?)
}

fn read_replace(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut data = elision::read(path)?;
    alter(&mut data);
    Ok(elision::write_atomic(path, &mut data)?)
}

fn std_replace(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut data = fs::read(path)?;
    alter(&mut data);
    let new = path.with_extension("new");
    fs::write(&new, &data)?;
    Ok(fs::rename(new, path)?)
}

fn std_whole(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result {
    let mut data = fs::read(path)?;
    alter(&mut data);
    Ok(fs::write(path, &data)?)
}

pub fn run(bench: &Bench) -> Result {
    let size = bench.size / 8;
    let mut heads = vec!["altered", "file", "peer", "time", "processor time", "the first round"];
    heads.extend(["speed, std the same way = 1", "processor time: speed, std = 1"]);
    let mut table = Table::new(&heads);
    let mut value = 0;
    for (file, cold) in [("hot", false), ("cold", true)] {
        for (label, share) in SHARES {
            let mut contents = Rng(3).bytes(size);
            let mut pages = Rng(4).pages(size, share);
            pages.sort_unstable();
            let mut seconds: [[Vec<f64>; 2]; PEERS.len()] = Default::default();
            let files: Vec<_> = (0..PEERS.len())
                .map(|peer| bench.file(&format!("saves-{peer}"), &contents))
                .collect::<std::io::Result<_>>()?;
            for _ in 0..bench.rounds.min(3) {
                value += 0x1_0000_0001;
                alter(&mut contents, &pages, value);
                for (((who, work, _), path), seconds) in PEERS.iter().zip(&files).zip(&mut seconds) {
                    settle(path)?;
                    if cold {
                        forget(path)?;
                    }
                    let (processor, begun) = (processor_time()?, Instant::now());
                    work(path, &mut |data| alter(data, &pages, value))?;
                    seconds[0].push(begun.elapsed().as_secs_f64());
                    elision_bench::pause();
                    seconds[1].push(processor_time()? - processor);
                    check_file(who, path, &contents)?;
                }
            }
            let [times, processor] =
                [0, 1].map(|which| seconds.each_ref().map(|of| median(of[which].clone())));
            for (peer, (who, _, other)) in PEERS.iter().enumerate() {
                let first = seconds[peer][0][0];
                table.row([
                    label.to_owned(),
                    file.to_owned(),
                    (*who).to_owned(),
                    time(times[peer]),
                    time(processor[peer]),
                    time(first),
                    speed(times[peer], times[*other]),
                    speed(processor[peer], processor[*other]),
                ]);
            }
            files.iter().try_for_each(fs::remove_file)?;
        }
    }
    table.print(&format!("Read {}, alter a share of the pages, save", bytes(size as u64)));
    Ok(())
}

/// Out of memory that nothing is known of, over a file that has most of it, or nothing. A new file each time: what is learned counts for a file.
pub fn rewrite(bench: &Bench) -> Result {
    let mut table = Table::new(&[
        "size",
        "pages that differ",
        "write",
        "with fsync",
        "processor time",
        "write: speed, std in place = 1",
        "with fsync: speed",
        "processor time: speed",
    ]);
    drop(elision::read(bench.file("first", &Rng(1).bytes(8 << 20))?)?);
    for size in [bench.size / 256, bench.size / 64, bench.size / 8] {
        for (label, share) in
            [("none", 0.0), ("1 %", 0.01), ("10 %", 0.1), ("50 %", 0.5), ("all, in the last byte", 1.0)]
        {
            let old = Rng(6).bytes(size);
            let mut new = memmap2::MmapMut::map_anon(size)?;
            new.copy_from_slice(&old);
            for page in Rng(7).pages(size, share) {
                new[page * elision_bench::PAGE + elision_bench::PAGE - 1] ^= 1;
            }
            let mut seconds: [[Vec<f64>; 3]; 2] = Default::default();
            for round in 0..2 * bench.rounds {
                // Who is first takes turns.
                for peer in [round % 2, 1 - round % 2] {
                    let path = bench.file(&format!("fresh-{round}-{peer}"), &old)?;
                    let (processor, begun) = (processor_time()?, Instant::now());
                    match peer {
                        0 => elision::write(&path, &new[..])?,
                        _ => peers::write_in_place(&path, &new)?,
                    }
                    seconds[peer][0].push(begun.elapsed().as_secs_f64());
                    File::open(&path)?.sync_all()?;
                    seconds[peer][1].push(begun.elapsed().as_secs_f64());
                    elision_bench::pause();
                    seconds[peer][2].push(processor_time()? - processor);
                    check_file("a write over a file", &path, &new)?;
                    // Its inode's number must not come again at once.
                    fs::rename(&path, path.with_extension("old"))?;
                }
            }
            let [ours, std] = seconds.each_ref().map(|of| of.each_ref().map(|of| median(of.clone())));
            let mut row = vec![bytes(size as u64), label.to_owned()];
            row.extend(ours.map(time));
            row.extend([0, 1, 2].map(|which| speed(ours[which], std[which])));
            table.row(row);
            for round in 0..2 * bench.rounds {
                for peer in 0..2 {
                    fs::remove_file(bench.path(&format!("fresh-{round}-{peer}.old")))?;
                }
            }
        }
    }
    table.print("Write over a file out of fresh memory");
    Ok(())
}

/// Drops the file from the page cache.
fn forget(path: &Path) -> Result {
    let file = File::open(path)?;
    // SAFETY: no memory is involved.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        _ => Err("the page cache keeps the file".into()),
    }
}

/// Of this process and its helper, in seconds.
fn processor_time() -> Result<f64> {
    // SAFETY: all zeroes is a value of this struct of integers, which the kernel fills.
    let own = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let mut sum = seconds(own.ru_utime) + seconds(own.ru_stime);
    for supervisor in children(std::process::id())? {
        for helper in children(supervisor)? {
            let account = fs::read_to_string(format!("/proc/{helper}/schedstat"))?;
            sum += account.split(' ').next().unwrap_or("0").parse::<f64>()? / 1e9;
        }
    }
    Ok(sum)
}

fn children(of: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent == Some(of) {
            found.push(pid);
        }
    }
    Ok(found)
}
