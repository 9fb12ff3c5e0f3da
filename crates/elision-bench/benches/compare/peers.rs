//! The peers that are not one call.
#![allow(unsafe_code)] // Memory maps, of files that only this bench uses; and malloc's settings.

use elision_bench::Result;
use memmap2::MmapMut;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Makes sure that what std allocates afresh is fresh memory. Otherwise malloc, once it has seen a big block freed, keeps
/// blocks of up to 32 MiB for the next time, and what is called fresh would be warm.
pub fn keep_memory_fresh() {
    // SAFETY: sets a number, before there is a second thread.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

/// memmap2: a private mapping, into which one may store without changing the file. The nearest thing to a buffer.
pub fn map_copy(path: &Path) -> io::Result<MmapMut> {
    let file = File::open(path)?;
    // SAFETY: nobody else changes the file while it is mapped: the peers take turns.
    unsafe { memmap2::MmapOptions::new().map_copy(&file) }
}

/// memmap2: a shared mapping; stores are changes of the file.
pub fn map_shared(path: &Path) -> io::Result<MmapMut> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: as above.
    unsafe { MmapMut::map_mut(&file) }
}

/// std: reads a whole file into memory that is there already.
pub fn read_warm(path: &Path, buffer: &mut [u8]) -> io::Result<()> {
    File::open(path)?.read_exact(buffer)
}

/// std: reads a whole file into fresh memory that begins at a page boundary. A big Vec begins 16 bytes behind one, at
/// which some processors copy several times slower.
pub fn read_aligned(path: &Path) -> io::Result<MmapMut> {
    let mut file = File::open(path)?;
    let mut data = MmapMut::map_anon(file.metadata()?.len() as usize)?;
    file.read_exact(&mut data)?;
    Ok(data)
}

/// Memory that begins at a page boundary, every page of it touched.
pub fn warm_aligned(len: usize) -> io::Result<MmapMut> {
    let mut data = MmapMut::map_anon(len)?;
    data.fill(1);
    Ok(data)
}

/// std: a file opened for reading and writing, and all of its bytes in fresh memory at a page boundary.
pub fn read_to_edit_aligned(path: &Path) -> io::Result<(File, MmapMut)> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut data = MmapMut::map_anon(file.metadata()?.len() as usize)?;
    file.read_exact(&mut data)?;
    Ok((file, data))
}

/// std: a file opened for reading and writing, and all of its bytes in fresh memory.
pub fn read_to_edit(path: &Path) -> io::Result<(File, Vec<u8>)> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut data = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut data)?;
    Ok((file, data))
}

/// std: writes over a file as it is, which keeps its blocks and pages.
pub fn write_in_place(path: &Path, data: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(data, 0)
}

/// std: the sum of a file's bytes through a small buffer that stays in the processor's cache.
pub fn sum_in_pieces(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut piece = vec![0; 128 << 10];
    let mut sum = 0;
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(sum),
            got => sum += elision_bench::sum(&piece[..got]),
        }
    }
}

/// Can files be cloned (FICLONE) where this one is?
pub fn clones(path: &Path) -> Result<bool> {
    let copy = path.with_extension("clone");
    let cloned = rustix::fs::ioctl_ficlone(File::create(&copy)?, File::open(path)?);
    std::fs::remove_file(copy)?;
    Ok(cloned.is_ok())
}
