//! The doctor's scratch file, and what a child does with it: an ordinary program that reads, alters and saves.
//!
//! Only std's `File` is used. The child is started with the drop-in, as `elision run` starts a program.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempPath;

use super::step::HOLDING;

const PAGE: usize = 4096;
/// The size of the scratch file: above the default threshold.
pub const SIZE: usize = (2 * elision_core::settings::DEFAULT_MIN_BYTES).next_multiple_of(1 << 20);
/// At most this much of a user's file is read.
const MOST: u64 = 64 << 20;
/// A size below every threshold that the doctor sets.
const SMALL: usize = 2048;
/// The byte that [`Step::Save`] alters.
const ALTERED: usize = SIZE / 2 + 100;

/// Makes an empty scratch file. No process has it open.
pub fn make(dir: &Path) -> io::Result<TempPath> {
    Ok(tempfile::Builder::new().prefix(".elision-doctor-").tempfile_in(dir)?.into_temp_path())
}

/// A page of the scratch file, different from all others.
fn page(number: usize) -> [u8; PAGE] {
    let mut page = [number as u8; PAGE];
    page[..8].copy_from_slice(&number.to_le_bytes());
    page
}

pub fn fill(path: &Path) -> Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    (0..SIZE / PAGE).try_for_each(|number| Ok(file.write_all(&page(number))?))
}

/// Is the scratch file as one save should have left it?
pub fn is_as_saved(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let mut found = [0; PAGE];
    for number in 0..SIZE / PAGE {
        file.read_exact_at(&mut found, (number * PAGE) as u64)?;
        let mut expected = page(number);
        if number == ALTERED / PAGE {
            alter(&mut expected[ALTERED % PAGE]);
        }
        if found != expected {
            return Ok(false);
        }
    }
    Ok(file.metadata()?.len() == SIZE as u64)
}

fn alter(byte: &mut u8) {
    *byte = !*byte;
}

fn open(path: &Path, writable: bool) -> Result<File> {
    // O_NONBLOCK: do not wait for another process's lease. It does not affect reads of regular files.
    let mut options = OpenOptions::new();
    Ok(options.read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path)?)
}

/// Reads the whole file, normally in one call.
fn read_all(file: &mut File) -> Result<Vec<u8>> {
    let mut data = vec![0; file.metadata()?.len().min(MOST) as usize];
    file.read_exact(&mut data).context("the file became shorter")?;
    Ok(data)
}

pub fn read(path: &Path, compare: bool) -> Result<()> {
    const PLACES: usize = 16;
    let mut file = open(path, false)?;
    let data = read_all(&mut file)?;
    for place in data.chunks(data.len().div_ceil(PLACES).max(1)) {
        let at = place.as_ptr().addr() - data.as_ptr().addr();
        let mut expected = [0; SMALL];
        let part = &mut expected[..place.len().min(SMALL)];
        file.read_exact_at(part, at as u64)?;
        ensure!(!compare || *part == place[..part.len()], "wrong bytes at {at}");
    }
    Ok(())
}

pub fn save(path: &Path) -> Result<()> {
    let mut file = open(path, true)?;
    let mut data = read_all(&mut file)?;
    alter(&mut data[ALTERED]);
    file.seek(SeekFrom::Start(0))?;
    Ok(file.write_all(&data)?)
}

pub fn save_again(path: &Path) -> Result<()> {
    let mut file = open(path, true)?;
    let data = copy(&file)?;
    for _ in 0..4 {
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&data)?;
    }
    Ok(())
}

pub fn reopen(path: &Path) -> Result<()> {
    let mut data = read_all(&mut open(path, false)?)?;
    alter(&mut data[ALTERED]);
    Ok(open(path, true)?.write_all(&data)?)
}

pub fn keep(path: &Path) -> Result<()> {
    let mut file = open(path, false)?;
    let expected = copy(&file)?;
    let data = read_all(&mut file)?;
    println!("{HOLDING}");
    // The input ends when the file has been changed.
    io::stdin().read_to_end(&mut Vec::new())?;
    ensure!(data == expected, "the buffer changed with the file");
    Ok(())
}

/// The contents of the file, read in small pieces.
fn copy(file: &File) -> Result<Vec<u8>> {
    let mut data = vec![0; file.metadata()?.len() as usize];
    for (number, part) in data.chunks_mut(SMALL).enumerate() {
        file.read_exact_at(part, (number * SMALL) as u64)?;
    }
    Ok(data)
}

/// In the doctor: truncates the file and writes to it, which breaks leases. Retries as long as `wait` returns true; false if the lease was
/// not released.
pub fn change(path: &Path, mut wait: impl FnMut() -> bool) -> io::Result<bool> {
    // O_NONBLOCK: the kernel asks the holder, and the open does not wait for fs.lease-break-time.
    let mut options = OpenOptions::new();
    options.write(true).truncate(true).custom_flags(libc::O_NONBLOCK);
    loop {
        match options.open(path) {
            Ok(mut file) => return file.write_all(&[0xff; 3 * PAGE]).map(|()| true),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if !wait() => return Ok(false),
            Err(_) => {}
        }
    }
}
