//! Reading a file, altering a share of its pages, writing it back.

use crate::peers;
use elision_bench::{Bench, Lap, Result, Rng, Samples, Table, alter, bytes, check_file, settle, speed, time};
use std::os::unix::fs::FileExt;
use std::path::Path;

type Peer = (&'static str, fn(&Path, &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]>);

const PEERS: [Peer; 6] = [
    ("elision::edit, elision::write", elision_edit),
    ("std: read, write in place", std_in_place),
    ("std::fs::read, std::fs::write", std_whole),
    ("std, page aligned: read, write in place", std_aligned),
    ("memmap2 map_mut (shared)", mapped),
    ("elision::read, elision::write", elision_read),
];

pub fn run(bench: &Bench) -> Result {
    let contents = Rng(3).bytes(bench.size);
    // The last peer has a file of its own: the library learns of each file whether deferring pays, and there it does not.
    let mut files = [
        (bench.file("edit", &contents)?, contents.clone()),
        (bench.file("read-and-write", &contents)?, contents),
    ];
    let mut table = Table::new(&[
        "altered",
        "peer",
        "read",
        "alter",
        "write",
        "drop",
        "total",
        "speed, std in place = 1",
        "speed, aligned = 1",
        "speed, memmap2 = 1",
    ]);
    let mut value = 0;
    for (label, share) in [("0 %", 0.0), ("0.1 %", 0.001), ("1 %", 0.01), ("10 %", 0.1), ("100 %", 1.0)] {
        let mut pages = Rng(4).pages(bench.size, share);
        pages.sort_unstable();
        let mut samples: [Samples<4>; PEERS.len()] = Default::default();
        for _ in 0..bench.rounds.min(3) {
            for (number, ((who, peer), samples)) in PEERS.iter().zip(&mut samples).enumerate() {
                let (path, contents) = &mut files[usize::from(number == PEERS.len() - 1)];
                value += 0x1_0000_0001;
                settle(path)?;
                samples.push(peer(path, &mut |data| alter(data, &pages, value))?);
                alter(contents, &pages, value);
                check_file(who, path, contents)?;
            }
        }
        let aligned = samples[3].total();
        let (std, memmap) = (samples[1].total(), samples[4].total());
        for ((who, _), samples) in PEERS.iter().zip(&samples) {
            let steps = (0..4).map(|step| time(samples.step(step)));
            let total = samples.total();
            let mut row = vec![label.to_owned(), (*who).to_owned()];
            row.extend(steps);
            row.extend([time(total), speed(total, std), speed(total, aligned), speed(total, memmap)]);
            table.row(row);
        }
    }
    table.print(&format!("Read {}, alter a share of the pages, write it back", bytes(bench.size as u64)));
    for (path, _) in files {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Times read, alter, write, drop.
fn four<T>(
    read: impl FnOnce() -> std::io::Result<T>,
    alter: impl FnOnce(&mut T),
    write: impl FnOnce(&mut T) -> std::io::Result<()>,
) -> Result<[f64; 4]> {
    let mut lap = Lap::start();
    let mut data = read()?;
    let read = lap.lap();
    alter(&mut data);
    let altered = lap.lap();
    write(&mut data)?;
    let written = lap.lap();
    drop(data);
    Ok([read, altered, written, lap.lap()])
}

fn elision_edit(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(|| elision::edit(path), |data| alter(data), |data| elision::write(path, data))
}

/// Opening the file for writing, which the save does, lets go of the read lease: all is loaded first.
fn elision_read(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(|| elision::read(path), |data| alter(data), |data| elision::write(path, data))
}

fn std_in_place(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(|| peers::read_to_edit(path), |(_, data)| alter(data), |(file, data)| file.write_all_at(data, 0))
}

fn std_aligned(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(
        || peers::read_to_edit_aligned(path),
        |(_, data)| alter(data),
        |(file, data)| file.write_all_at(data, 0),
    )
}

fn std_whole(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(|| std::fs::read(path), |data| alter(data), |data| std::fs::write(path, data))
}

/// Not the same thing: the file changes as it is edited, and the bytes are not the program's own.
fn mapped(path: &Path, alter: &mut dyn FnMut(&mut [u8])) -> Result<[f64; 4]> {
    four(|| peers::map_shared(path), |data| alter(data), |_| Ok(()))
}
