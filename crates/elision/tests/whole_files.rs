//! `elision::read` of whole files, and what others do to these files.
#![allow(unsafe_code)] // Signals and forks.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory, eventually, helpers};
use elision::{Buffer, PageState};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::time::{Duration, Instant};

crate::roles!(play);

fn play(_: &str, _: &[String]) {
    common::play_other();
}

const MIB: usize = 1 << 20;

/// A place with a file in it, and the helper running. `None`: nothing is deferred here.
struct Place {
    dir: common::Directory,
    path: PathBuf,
    content: Vec<u8>,
    other: Part,
    helper: i32,
}

fn place(len: usize) -> Option<Place> {
    let dir = directory();
    if !common::defers(dir.path()) {
        return None;
    }
    let other = Part::start("other", &[]);
    let first = dir.path().join("first");
    fs::write(&first, bytes(1, 2 * MIB)).unwrap();
    drop(elision::read(&first).unwrap());
    let helper = helper();
    let (path, content) = (dir.path().join("data"), bytes(2, len));
    fs::write(&path, &content).unwrap();
    Some(Place { dir, path, content, other, helper })
}

/// The helper of this process.
fn helper() -> i32 {
    *helpers(std::process::id() as i32).first().expect("no helper was started")
}

fn state_of(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('X')
}

fn signal(pid: i32, number: i32) {
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

/// Would an open for writing find a lease? Asked without waiting for it.
fn leased(path: &Path) -> bool {
    match fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => false,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => true,
        Err(error) => panic!("{error}"),
    }
}

fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(how) = difference(got, expected) {
        panic!("{how}");
    }
}

fn states(buffer: &Buffer) -> Vec<PageState> {
    buffer.ranges().into_iter().map(|(_, state)| state).collect()
}

/// Whatever others do to the file, and however the helper has to find it.
#[test]
fn bytes_stay_what_they_were() {
    type Prepare = fn(&Place);
    let prepare: [(Prepare, &str); 3] = [
        (|_| (), "data"),
        (|place| fs::rename(&place.path, place.dir.path().join("moved")).unwrap(), "moved"),
        // The name that the mapping is known by is gone, and the file has another.
        (
            |place| {
                fs::hard_link(&place.path, place.dir.path().join("linked")).unwrap();
                fs::remove_file(&place.path).unwrap();
            },
            "linked",
        ),
    ];
    for (prepare, name) in prepare {
        for which in 0..4 {
            let Some(mut place) = place(8 * MIB + 700) else { return };
            let mut buffer = elision::read(&place.path).unwrap();
            let second = elision::read(&place.path).unwrap();
            prepare(&place);
            let at = 3 * MIB + 5;
            buffer[at] = 1;
            place.content[at] = 1;
            let path = place.dir.path().join(name);
            let len = 4 * MIB;
            let change = match which {
                0 => Foreign::Write { path, offset: MIB as u64, len, seed: 9 },
                1 => Foreign::Truncate { path, len: 5 },
                2 => Foreign::Rewrite { path, len, seed: 9 },
                _ => Foreign::Append { path, len, seed: 9 },
            };
            place.other.ask(&change).unwrap();
            assert_same(&buffer, &place.content);
            place.content[at] = bytes(2, at + 1)[at];
            assert_same(&second, &place.content);
            elision_core::client::memory::validate().unwrap();
            place.other.finish();
        }
    }
}

/// The helper is killed. Another gives the buffers memory of their own, and nothing is lost.
#[test]
fn a_killed_helper_leaves_no_lease() {
    let Some(mut place) = place(8 * MIB) else { return };
    let buffer = elision::read(&place.path).unwrap();
    signal(place.helper, libc::SIGKILL);
    eventually("it is gone", || matches!(state_of(place.helper), 'X' | 'Z'));
    drop(elision::read(place.dir.path().join("first")).unwrap());
    assert_ne!(helper(), place.helper);
    let begun = Instant::now();
    place.other.ask(&Foreign::Truncate { path: place.path.clone(), len: 0 }).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "a lease was left: {:?}", begun.elapsed());
    assert_same(&buffer, &place.content);
    place.other.finish();
}

/// A buffer leaves no descriptor in the program, and no lease behind: once it has gone, the helper gives the lease up by itself.
#[test]
fn a_lease_ends_with_its_buffer() {
    // Kept, so that no file gets the inode of another; and of different sizes: the first was wanted by others.
    let mut kept = Vec::new();
    for len in [4 * MIB, 8 * MIB + 1, 17 * MIB - 1] {
        let Some(place) = place(len) else { return };
        let before = elision::stats::snapshot().deferred_bytes;
        let descriptors = common::descriptors();
        let buffer = elision::read(&place.path).unwrap();
        assert!(elision::stats::snapshot().deferred_bytes - before >= (len / PAGE * PAGE) as u64);
        assert_eq!(common::descriptors(), descriptors);
        assert_same(&buffer, &place.content);
        assert!(leased(&place.path));
        drop(buffer);
        eventually("the lease has ended", || !leased(&place.path));
        place.other.finish();
        kept.push(place.dir);
    }
}

/// Threads read while another process writes: each buffer stays what it was when the call returned.
#[test]
fn reads_race_with_changes() {
    const READERS: usize = 3;
    const CHANGES: u64 = 150;
    let Some(mut place) = place(MIB) else { return };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut kept: Vec<(Buffer, Vec<u8>)> = Vec::new();
                    let mut deferred = 0;
                    while !done.load(Acquire) {
                        let buffer = elision::read(&place.path).unwrap();
                        let copy = buffer.to_vec();
                        deferred += usize::from(
                            kept.len().is_multiple_of(4) && states(&buffer) != [PageState::Plain],
                        );
                        kept.push((buffer, copy));
                        if kept.len() == 24 {
                            for (buffer, copy) in kept.drain(..) {
                                assert_same(&buffer, &copy);
                            }
                        }
                    }
                    for (buffer, copy) in kept {
                        assert_same(&buffer, &copy);
                    }
                    deferred
                })
            })
            .collect();
        for seed in 0..CHANGES {
            let path = place.path.clone();
            let change = match seed % 3 {
                0 => Foreign::Rewrite { path, len: MIB + 10 * seed as usize, seed },
                1 => Foreign::Write { path, offset: 0, len: MIB, seed },
                _ => Foreign::Truncate { path, len: MIB as u64 },
            };
            place.other.ask(&change).unwrap();
        }
        done.store(true, Release);
        let deferred: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(deferred > 0, "nothing was deferred in all this");
    });
    assert_eq!(elision_core::client::memory::validate(), Ok(0));
    place.other.finish();
}

/// A thread reads while another forks. A child that had one of its descriptors would hold the lease, and have nobody who
/// gives it up: a writer would wait for lease-break-time.
#[test]
fn forks_race_with_reads() {
    const FORKS: usize = 40;
    let Some(mut place) = place(MIB) else { return };
    let done = AtomicBool::new(false);
    let name = place.path.to_str().unwrap().to_owned();
    let mut children = Vec::new();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Acquire) {
                let buffer = elision::read(&place.path).unwrap();
                assert_eq!(buffer[..64], place.content[..64]);
            }
        });
        for _ in 0..FORKS {
            // SAFETY: the child makes system calls only, and ends by a signal.
            let child = unsafe { libc::fork() };
            if child == 0 {
                loop {
                    // SAFETY: as above.
                    unsafe { libc::pause() };
                }
            }
            assert!(child > 0);
            children.push(child);
        }
        done.store(true, Release);
        reader.join().unwrap();
    });
    for &child in &children {
        for entry in fs::read_dir(format!("/proc/{child}/fd")).unwrap().flatten() {
            // (Between open and fork a descriptor may be copied. It has no lease.)
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let fdinfo = format!("/proc/{child}/fdinfo/{}", entry.file_name().to_str().unwrap());
            let leased = fs::read_to_string(fdinfo).unwrap_or_default().contains("LEASE");
            assert!(target.to_str() != Some(&name) || !leased, "a child holds a leased descriptor");
        }
    }
    let begun = Instant::now();
    place.other.ask(&Foreign::Rewrite { path: place.path.clone(), len: 5, seed: 5 }).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "a lease was left: {:?}", begun.elapsed());
    for child in children {
        signal(child, libc::SIGKILL);
        // SAFETY: a null status is allowed.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    place.other.finish();
}

/// A buffer that outgrows its place takes its pages along, unread.
#[test]
fn a_buffer_that_moves_stays_deferred() {
    let Some(mut place) = place(8 * MIB + 100) else { return };
    let mut buffer = elision::read(&place.path).unwrap();
    buffer[5 * PAGE] = 77;
    place.content[5 * PAGE] = 77;
    let before = buffer.as_ptr();
    buffer.resize(100 * MIB).unwrap();
    place.content.resize(100 * MIB, 0);
    assert_ne!(buffer.as_ptr(), before, "there was no room beside it");
    let states = states(&buffer);
    assert!(states.contains(&PageState::Deferred) && states.contains(&PageState::Altered), "{states:?}");
    assert!(elision::stats::snapshot().loaded_bytes < MIB as u64);
    place.other.ask(&Foreign::Truncate { path: place.path.clone(), len: 0 }).unwrap();
    assert_same(&buffer, &place.content);
    // What was cut off does not come back.
    buffer.resize(5 * PAGE + 1).unwrap();
    buffer.resize(6 * PAGE).unwrap();
    place.content.truncate(5 * PAGE + 1);
    place.content.resize(6 * PAGE, 0);
    assert_same(&buffer, &place.content);
    drop(buffer);
    assert_eq!(elision_core::client::memory::validate(), Ok(0));
    place.other.finish();
}

/// A file that somebody has open for writing is read as ever, and no lease is left on it.
#[test]
fn a_file_that_is_being_written_is_read_traditionally() {
    let Some(mut place) = place(4 * MIB) else { return };
    place.other.ask(&Foreign::Hold { path: place.path.clone(), write: true }).unwrap();
    let buffer = elision::read(&place.path).unwrap();
    assert_eq!(states(&buffer), [PageState::Plain]);
    assert!(!leased(&place.path));
    place.other.ask(&Foreign::WriteHeld { offset: 0, len: PAGE, seed: 4 }).unwrap();
    assert_same(&buffer, &place.content);
    place.other.finish();
}

/// A memory file that is sealed needs no lease, by path or taken over, though it was opened for writing.
#[test]
fn a_sealed_memory_file_is_deferred() {
    use std::os::fd::{AsRawFd, FromRawFd};
    let content = bytes(3, 12 * MIB + 5);
    // SAFETY: a C string; the kernel just made the descriptor.
    let file =
        unsafe { fs::File::from_raw_fd(libc::memfd_create(c"file".as_ptr(), libc::MFD_ALLOW_SEALING)) };
    std::io::Write::write_all(&mut &file, &content).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let deferred = || elision::stats::snapshot().deferred_bytes;
    let before = deferred();
    assert_eq!(difference(&elision::read(&path).unwrap(), &content), None);
    assert_eq!(deferred(), before, "it could be changed");
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
    // SAFETY: no memory.
    assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
    let mut buffer = elision::read(&path).unwrap();
    buffer[5 * MIB] ^= 1;
    let other = elision::File::from(file).read(0, content.len()).unwrap();
    assert!(deferred() >= before + 24 * MIB as u64);
    drop(std::process::Command::new("true").status());
    assert_eq!(difference(&other, &content), None);
    buffer[5 * MIB] ^= 1;
    assert_eq!(difference(&buffer, &content), None);
    assert_eq!(elision::stats::snapshot().materialised_bytes, 0);
}
