//! Saving the same memory to the same file again and again, little altered in between.

use crate::peers;
use elision_bench::{Bench, Lap, Result, Rng, Table, alter, bytes, check_file, median, settle, speed, time};
use std::path::Path;

const SAVES: usize = 10;

struct Saved {
    name: &'static str,
    first: f64,
    later: f64,
    total: f64,
    written: u64,
}

pub fn run(bench: &Bench) -> Result {
    let contents = Rng(5).bytes(bench.size);
    let pages: Vec<Vec<usize>> = (0..SAVES as u64 - 1)
        .map(|save| {
            let mut pages = Rng(save).pages(bench.size, 0.01);
            pages.sort_unstable();
            pages
        })
        .collect();
    let mut expected = contents.clone();
    for (pages, value) in pages.iter().zip(1..) {
        alter(&mut expected, pages, value);
    }
    let check = |name: &str, path: &Path| -> Result {
        check_file(name, path, &expected)?;
        settle(path)?;
        Ok(std::fs::remove_file(path)?)
    };

    let path = bench.path("checkpoint");
    let mut memory = elision::Buffer::new(bench.size)?;
    memory.copy_from_slice(&contents);
    let before = elision::stats::snapshot();
    let elision = save(
        "elision::write",
        &pages,
        &mut memory,
        |memory, pages, value| alter(memory, pages, value),
        |memory| Ok(elision::write(&path, memory)?),
    )?;
    let after = elision::stats::snapshot();
    drop(memory);
    check("elision::write", &path)?;

    let mut memory = contents.clone();
    let whole = save(
        "std::fs::write",
        &pages,
        &mut memory,
        |memory, pages, value| alter(memory, pages, value),
        |memory| Ok(std::fs::write(&path, memory)?),
    )?;
    drop(memory);
    check("std::fs::write", &path)?;

    let mut memory = contents.clone();
    let in_place = save(
        "std, in place",
        &pages,
        &mut memory,
        |memory, pages, value| alter(memory, pages, value),
        |memory| Ok(peers::write_in_place(&path, memory)?),
    )?;
    drop(memory);
    check("std, in place", &path)?;

    let mut table = Table::new(&[
        "peer",
        "bytes written",
        "first save",
        "alter + save, later",
        "ten saves",
        "ten saves: speed, std::fs::write = 1",
        "later saves: speed, std in place = 1",
    ]);
    for saved in [&elision, &whole, &in_place] {
        table.row([
            saved.name.to_owned(),
            bytes(saved.written),
            time(saved.first),
            time(saved.later),
            time(saved.total),
            speed(saved.total, whole.total),
            speed(saved.later, in_place.later),
        ]);
    }
    let title =
        format!("Save {} {SAVES} times, 1 % of the pages altered in between", bytes(bench.size as u64));
    table.print(&title);
    println!(
        "\nBytes written are the kernel's account of the process (wchar). The library's own: {} written, {} elided.",
        bytes(after.written_bytes - before.written_bytes),
        bytes(after.elided_bytes - before.elided_bytes)
    );
    Ok(())
}

fn save<M>(
    name: &'static str,
    pages: &[Vec<usize>],
    memory: &mut M,
    alter: impl Fn(&mut M, &[usize], u64),
    mut write: impl FnMut(&mut M) -> Result,
) -> Result<Saved> {
    let written = bytes_written()?;
    let mut lap = Lap::start();
    write(memory)?;
    let first = lap.lap();
    let mut later = Vec::new();
    for (pages, value) in pages.iter().zip(1..) {
        alter(memory, pages, value);
        write(memory)?;
        later.push(lap.lap());
    }
    let total = first + later.iter().sum::<f64>();
    Ok(Saved { name, first, later: median(later), total, written: bytes_written()? - written })
}

/// Bytes that this process has handed to write and its kin.
fn bytes_written() -> Result<u64> {
    let account = std::fs::read_to_string("/proc/self/io")?;
    let line = account.lines().find_map(|line| line.strip_prefix("wchar: ")).ok_or("no wchar")?;
    Ok(line.trim().parse()?)
}
