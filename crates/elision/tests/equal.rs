//! Writes over a file of bytes that it has already, out of memory that nothing is known of.
#![allow(unsafe_code)] // Room set aside, and what is in the page cache.

mod common;

use common::{Dice, PAGE, bytes, difference, directory};
use elision::Buffer;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

crate::roles!(play);

const MIB: usize = 1 << 20;

fn play(_: &str, _: &[String]) {}

/// A file of these bytes that is on its device and in the page cache; and a helper.
fn file(dir: &Path, name: &str, content: &[u8]) -> std::path::PathBuf {
    elision::set_min_bytes(MIB / 8);
    let path = dir.join(name);
    fs::write(&path, content).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let first = dir.join("first");
    fs::write(&first, vec![1; 2 * MIB]).unwrap();
    drop(elision::read(&first).unwrap());
    path
}

/// Saves, and says how many bytes were left out.
fn elided(path: &Path, contents: impl elision::Contents) -> usize {
    let before = elision::stats::snapshot().elided_bytes;
    elision::write(path, contents).unwrap();
    (elision::stats::snapshot().elided_bytes - before) as usize
}

fn compares(dir: &Path) -> bool {
    // (Of a file in memory nothing is gained.)
    common::defers(dir) && common::remembers(dir)
}

#[test]
fn what_the_file_has_is_not_written() {
    let dir = directory();
    // No fragment: a fragment is always written, and moves the times.
    let mut content = bytes(1, 8 * MIB);
    let path = file(dir.path(), "file", &content);
    let times = |path: &Path| {
        let metadata = fs::metadata(path).unwrap();
        ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()))
    };
    // As it is; with a page, and some pages, changed; and out of a buffer, of which the next save knows.
    for round in 0..6 {
        if round > 0 {
            content[round * 100 * PAGE + PAGE - 1] ^= 1;
            content[1500 * PAGE..1510 * PAGE].fill(round as u8);
        }
        let before = times(&path);
        let left_out = match round % 3 {
            0 => elided(&path, &content),
            1 => elided(&path, Buffer::try_from(&content[..]).unwrap()),
            _ => {
                let mut buffer = Buffer::try_from(&content[..]).unwrap();
                elided(&path, &mut buffer)
            }
        };
        let least = if compares(dir.path()) { 7 * MIB } else { 0 };
        assert!(left_out >= least, "round {round}: {left_out}");
        assert_eq!(difference(&fs::read(&path).unwrap(), &content), None, "round {round}");
        let after = times(&path);
        assert!(after.0 > before.0 && after.1 > before.1, "round {round}: {before:?} {after:?}");
    }
    let mut buffer = Buffer::try_from(&content[..]).unwrap();
    // All of it equal, from a page boundary on: the first page is written all the same.
    let before = times(&path);
    assert!(elided(&path, &mut buffer) >= 7 * MIB || !compares(dir.path()));
    assert!(times(&path).0 > before.0, "the time has not moved");
    buffer[9 * PAGE] ^= 1;
    content[9 * PAGE] ^= 1;
    let left_out = elided(&path, &mut buffer);
    assert!(left_out >= 8 * MIB - 3 * PAGE || !common::defers(dir.path()), "{left_out}");
    assert_eq!(difference(&fs::read(&path).unwrap(), &content), None);
}

#[test]
fn whatever_differs_is_written() {
    let dir = directory();
    let mut content = bytes(2, 3 * MIB + 5);
    let mut dice = Dice(5);
    let (mut path, mut total) = (file(dir.path(), "0", &content), 0);
    for round in 0..200 {
        if round % 20 == 0 {
            path = file(dir.path(), &round.to_string(), &content);
        }
        for _ in 0..dice.below(7) {
            let at = dice.below(content.len());
            let len = [1, 1, 700, 9 * PAGE, 100 * PAGE][dice.below(5)].min(content.len() - at);
            content[at..at + len].iter_mut().for_each(|byte| *byte ^= 0x21);
        }
        // At any place in its page.
        let skip = dice.below(3) * 24;
        let mut memory = vec![0; skip];
        memory.extend_from_slice(&content);
        total += elided(&path, &memory[skip..]);
        assert_eq!(difference(&fs::read(&path).unwrap(), &content), None, "round {round}");
    }
    assert!(total > 50 * MIB || !compares(dir.path()), "{total}");
}

/// Holes are filled and room is written to, as by any write.
#[test]
fn zeroes_over_nothing_are_written() {
    let dir = directory();
    let content = vec![0; 4 * MIB];
    let path = file(dir.path(), "file", b"");
    for prepare in ["hole", "room", "hole at the end"] {
        let file = fs::File::create(&path).unwrap();
        match prepare {
            "hole" => file.set_len(4 * MIB as u64).unwrap(),
            // SAFETY: no memory is involved.
            "room" => unsafe {
                if libc::fallocate(file.as_raw_fd(), 0, 0, 4 << 20) != 0 {
                    continue;
                }
            },
            _ => {
                file.write_all_at(&content[..3 * MIB], 0).unwrap();
                file.set_len(4 * MIB as u64).unwrap();
            }
        }
        drop(file);
        // All of it is in the page cache.
        assert!(fs::read(&path).unwrap() == content);
        assert_eq!(elided(&path, &content), 0, "{prepare}");
        let file = fs::File::open(&path).unwrap();
        file.sync_all().unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 4 * MIB as u64, "{prepare}");
        let hole = elision_sys::file::has_hole(file.as_raw_fd(), 0, 4 << 20);
        assert!(hole != Some(true), "{prepare}");
    }
}

/// What is not in the page cache is written, not read.
#[test]
fn nothing_is_read_from_the_device() {
    let dir = directory();
    if !compares(dir.path()) {
        return;
    }
    let content = bytes(3, 8 * MIB);
    let path = file(dir.path(), "file", &content);
    let open = fs::File::open(&path).unwrap();
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::posix_fadvise(open.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    drop(open);
    let read = || {
        let text = fs::read_to_string("/proc/self/io").unwrap();
        text.lines().find_map(|line| line.strip_prefix("read_bytes: ")).unwrap().parse::<usize>().unwrap()
    };
    let before = read();
    assert_eq!(elided(&path, &content), 0);
    assert!(read() - before < MIB, "{} bytes were read", read() - before);
}

/// Memory that may not be looked at: the errors of a write.
#[test]
fn what_cannot_be_read_is_an_error() {
    let dir = directory();
    let content = bytes(4, 8 * MIB);
    let path = file(dir.path(), "file", &content);
    // SAFETY: memory of this test alone; the slice is only handed to the kernel.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            content.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        memory.cast::<u8>().copy_from(content.as_ptr(), content.len());
        libc::mprotect(memory.byte_add(5 * MIB), MIB, libc::PROT_NONE);
        let slice = std::slice::from_raw_parts(memory.cast::<u8>(), content.len());
        let error = elision::write(&path, slice).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        libc::munmap(memory, content.len());
    }
    assert_eq!(difference(&fs::read(&path).unwrap(), &content), None);
}
