//! What other processes and threads may do while reads are deferred, and what the program must not notice.
//!
//! Other processes are real: this program again, with a part to play. Each test needs a process of its own.
#![allow(unsafe_code)] // Signals, forks, limits and system calls that std does not offer.

mod common;
#[path = "../../elision-preload/tests/common/image.rs"]
mod image;

use common::{
    Foreign, PAGE, Part, bytes, difference, directory, eventually, hear, helpers, say, supervisors,
};
use elision::{Buffer, File, PageState, Segment};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

crate::roles!(play);

const MIB: usize = 1 << 20;

/// Content in which every page differs, made quickly.
fn content(len: usize) -> Vec<u8> {
    let block = bytes(5, MIB);
    let mut all = Vec::with_capacity(len);
    while all.len() < len {
        all.extend_from_slice(&block[..MIB.min(len - all.len())]);
    }
    for (page, chunk) in all.chunks_mut(PAGE).enumerate() {
        let stamp = (page as u64).to_le_bytes();
        let n = chunk.len().min(8);
        chunk[..n].copy_from_slice(&stamp[..n]);
    }
    all
}

/// A new file of that content.
fn file(path: &Path, len: usize) -> Vec<u8> {
    let all = content(len);
    common::create(path, &all).unwrap();
    all
}

fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(how) = difference(got, expected) {
        panic!("{how}");
    }
}

/// Is the process gone, or dead and only waiting for its parent to notice?
fn gone(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}

fn signal(pid: i32, number: i32) {
    // SAFETY: a process of ours.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

/// Every way in which another process may change a file.
fn changes(path: &Path) -> [Foreign; 6] {
    let path = path.to_owned();
    [
        Foreign::Write { path: path.clone(), offset: 5_000, len: 3 * MIB, seed: 99 },
        Foreign::Truncate { path: path.clone(), len: 12_345 },
        Foreign::Append { path: path.clone(), len: MIB, seed: 98 },
        Foreign::Replace { path: path.clone(), len: MIB, seed: 97 },
        Foreign::Unlink { path: path.clone() },
        Foreign::Rewrite { path, len: MIB, seed: 96 },
    ]
}

// ------------------------------------------------------------------------------- the file under a deferred read

fn holds_still_under(which: usize) {
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 256 * MIB);
    let mut other = Part::start("other", &[]);
    let mut buffer = elision::read(&path).unwrap();
    if common::defers_reads(dir.path()) {
        assert_eq!(buffer.ranges(), [(0..256 * MIB, PageState::Deferred)]);
    }
    // Some pages touched, some altered, most neither.
    let mut expected = expected;
    for at in [0, 77 * MIB + 5, 256 * MIB - 1] {
        buffer[at] ^= 0xff;
        expected[at] ^= 0xff;
    }
    std::hint::black_box(buffer[100 * MIB]);
    other.ask(&changes(&path)[which]).unwrap();
    assert_same(&buffer, &expected);
    // And it is memory like any other.
    buffer[200 * MIB] ^= 1;
    expected[200 * MIB] ^= 1;
    assert_same(&buffer, &expected);
    other.finish();
}

#[test]
fn overwritten() {
    holds_still_under(0);
}

#[test]
fn truncated() {
    holds_still_under(1);
}

#[test]
fn extended() {
    holds_still_under(2);
}

#[test]
fn renamed_over() {
    holds_still_under(3);
}

#[test]
fn unlinked() {
    holds_still_under(4);
}

#[test]
fn rewritten() {
    holds_still_under(5);
}

/// The kernel waits for at most lease-break-time, then it breaks the lease by force. A program that is stopped all the
/// while must find its bytes when it goes on.
#[test]
fn changed_while_the_program_is_stopped() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for change in changes(&path) {
        file(&path, 16 * MIB);
        let mut holder = Part::start("holder", &[path.to_str().unwrap()]);
        holder.expect("ready");
        signal(holder.pid(), libc::SIGSTOP);
        let state = format!("/proc/{}/stat", holder.pid());
        eventually("stopped", || fs::read_to_string(&state).unwrap().contains(") T "));
        other.ask(&change).unwrap();
        // (Let go by its helper, it is on its way back into the same stop for a moment.)
        eventually("stopped still", || fs::read_to_string(&state).unwrap().contains(") T "));
        signal(holder.pid(), libc::SIGCONT);
        holder.say("check");
        holder.expect("same");
        holder.finish();
    }
    other.finish();
}

#[test]
fn a_killed_program_leaves_nothing() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, 16 * MIB);
    let mut other = Part::start("other", &[]);
    let mut holder = Part::start("holder", &[path.to_str().unwrap()]);
    holder.expect("ready");
    let left = helpers(holder.pid());
    if common::defers_reads(dir.path()) {
        assert_eq!(left.len(), 1);
    }
    holder.child.kill().unwrap();
    other.ask(&changes(&path)[0]).unwrap();
    holder.child.wait().unwrap();
    eventually("no helper is left", || left.iter().all(|&pid| gone(pid)));
    other.finish();
}

#[test]
fn an_exec_leaves_nothing() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, 16 * MIB);
    let mut other = Part::start("other", &[]);
    let mut holder = Part::start("execs", &[path.to_str().unwrap()]);
    holder.expect("ready");
    let left = helpers(holder.pid());
    if common::defers_reads(dir.path()) {
        assert_eq!(left.len(), 1);
    }
    holder.say("exec");
    holder.expect("another program");
    eventually("no helper is left", || left.iter().all(|&pid| gone(pid)));
    assert!(helpers(holder.pid()).is_empty());
    // A write lease is granted only where nobody holds another.
    let alone = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::fcntl(alone.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) }, 0);
    drop(alone);
    other.ask(&changes(&path)[1]).unwrap();
    holder.finish();
    other.finish();
}

/// If the helper itself is killed its leases are lost, but the program goes on.
#[test]
fn a_killed_helper_is_replaced() {
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 16 * MIB);
    let second = dir.path().join("second");
    let expected_second = file(&second, 8 * MIB);
    if !common::defers_reads(dir.path()) {
        return;
    }
    let mut other = Part::start("other", &[]);
    let first = elision::read(&path).unwrap();
    let before = helpers(std::process::id() as i32);
    assert_eq!(before.len(), 1);
    signal(before[0], libc::SIGKILL);
    eventually("it is gone", || gone(before[0]));
    // The next call finds out, and gives what was deferred memory of its own before anything else.
    let begun = Instant::now();
    let again = elision::read(&second).unwrap();
    assert_ne!(helpers(std::process::id() as i32), before);
    other.ask(&changes(&path)[1]).unwrap();
    other.ask(&changes(&second)[1]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "a lease was left: {:?}", begun.elapsed());
    assert_same(&first, &expected);
    assert_same(&again, &expected_second);
    other.finish();
}

/// If it is its parent that is killed, it goes on; and when it is killed, too, the next call has both started anew.
#[test]
fn who_starts_it_is_killed() {
    let dir = directory();
    let paths = ["data", "second", "third"].map(|name| dir.path().join(name));
    // Of different sizes: what is wanted of one tells nothing of another.
    let sizes = [8, 16, 32].map(|size| size * MIB);
    let expected = [0, 1, 2].map(|at| file(&paths[at], sizes[at]));
    if !common::defers_reads(dir.path()) {
        return;
    }
    let me = std::process::id() as i32;
    let mut other = Part::start("other", &[]);
    let first = elision::read(&paths[0]).unwrap();
    let second = elision::read(&paths[1]).unwrap();
    let (killed, left) = (supervisors(me)[0], helpers(me)[0]);
    signal(killed, libc::SIGKILL);
    eventually("it is gone", || gone(killed));
    let begun = Instant::now();
    other.ask(&changes(&paths[0])[1]).unwrap();
    let third = File::open(&paths[2]).unwrap().read(0, sizes[2]).unwrap();
    assert!(!gone(left));
    signal(left, libc::SIGKILL);
    eventually("it is gone", || gone(left));
    drop(File::open(&paths[1]).unwrap().read(0, sizes[1]).unwrap());
    assert_eq!((supervisors(me).len(), helpers(me).len()), (1, 1));
    for path in &paths[1..] {
        other.ask(&changes(path)[1]).unwrap();
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "a lease was left: {:?}", begun.elapsed());
    for (buffer, expected) in [first, second, third].iter().zip(&expected) {
        assert_same(buffer, expected);
    }
    other.finish();
}

// ------------------------------------------------------------------------------------------------- threads

/// What happens in the middle of a fork, when its handlers have been called and nothing has been copied yet.
static IN_FORK: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>> = std::sync::Mutex::new(None);

extern "C" fn in_fork() {
    if let Some(what) = IN_FORK.lock().unwrap().take() {
        what();
    }
}

/// It was taken for nobody else's, and what the child wrote was seen in what had been read before.
#[test]
fn a_file_that_is_opened_during_a_fork_is_shared() {
    // Before the library does: what is registered first is called last.
    // SAFETY: a function that may be called at any fork.
    assert_eq!(unsafe { libc::pthread_atfork(Some(in_fork), None, None) }, 0);
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 8 * MIB);
    drop(File::open(&path).unwrap());
    let (opened, file) = std::sync::mpsc::channel();
    let place = path.clone();
    *IN_FORK.lock().unwrap() = Some(Box::new(move || {
        let file = File::open_with(OpenOptions::new().read(true).write(true), &place).unwrap();
        let all = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let fd = all.into_iter().find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == place)).unwrap();
        opened.send((file, fd.file_name().to_str().unwrap().parse::<i32>().unwrap())).unwrap();
    }));
    let (wait, mut go) = std::io::pipe().unwrap();
    // SAFETY: the child makes system calls only.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    let (file, fd) = file.recv().unwrap();
    if child == 0 {
        let mut byte = [0];
        // SAFETY: pointers to locals.
        unsafe {
            libc::read(wait.as_raw_fd(), byte.as_mut_ptr().cast(), 1);
            libc::pwrite(fd, c"changed".as_ptr().cast(), 7, 4096);
            libc::_exit(0);
        }
    }
    let buffer = file.read(0, 8 * MIB).unwrap();
    go.write_all(b"x").unwrap();
    let mut status = 0;
    // SAFETY: a local.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(&fs::read(&path).unwrap()[4096..4103], b"changed");
    assert_same(&buffer, &expected);
}

/// One that waits for a device cannot be held still. To go on without it was to lose what somebody cut off.
#[test]
fn a_thread_waits_for_a_device_while_another_wants_the_file() {
    if std::env::var_os("ELISION_TEST_DIR").is_some() {
        return println!("skipped: has a file system of its own");
    }
    if !image::mounts_of_our_own() {
        return;
    }
    let Some(image) = image::Image::btrfs("noatime") else { return };
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 8 * MIB);
    if !common::defers_reads(dir.path()) {
        return;
    }
    let mut other = Part::start("other", &[]);
    let mut buffer = elision::read(&path).unwrap();
    buffer[PAGE] ^= 0xff;
    let frozen = fs::File::open(&image.root).unwrap();
    const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as _;
    const FITHAW: libc::Ioctl = 0xc004_5878_u32 as _;
    // SAFETY: no memory is involved.
    let freeze = |how| assert_eq!(unsafe { libc::ioctl(frozen.as_raw_fd(), how, 0) }, 0);
    let thread = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        freeze(FIFREEZE);
        scope.spawn(|| {
            // SAFETY: no arguments.
            thread.store(unsafe { libc::gettid() } as usize, Relaxed);
            fs::write(image.root.join("written"), b"something").unwrap();
        });
        let state = || {
            let stat = format!("/proc/self/task/{}/stat", thread.load(Relaxed));
            fs::read_to_string(stat)
                .unwrap_or_default()
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next())
        };
        eventually("it waits for the device", || state() == Some('D'));
        scope.spawn(|| {
            // Longer than is waited for any other thread. No event tells when that is over.
            std::thread::sleep(Duration::from_secs(3));
            freeze(FITHAW);
        });
        other.ask(&changes(&path)[1]).unwrap();
    });
    assert_eq!(buffer[PAGE], expected[PAGE] ^ 0xff);
    buffer[PAGE] ^= 0xff;
    assert_same(&buffer, &expected);
    other.finish();
}

/// Threads count in pages of their own while the file is being changed under them; no count may be lost.
/// (Between the copy of a page and the exchange of the mapping nobody may store.)
#[test]
fn no_store_is_lost_in_a_break() {
    const THREADS: usize = 3;
    const PAGES: usize = 700;
    const ROUNDS: u64 = 60;
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    let mut broken_while_counting = 0;
    for round in 0..ROUNDS {
        let len = THREADS * PAGES * PAGE;
        other.ask(&Foreign::Rewrite { path: path.clone(), len, seed: 1000 + round }).unwrap();
        let mut expected = bytes(1000 + round, len);
        let mut buffer = elision::read(&path).unwrap();
        let stop = AtomicBool::new(false);
        let counts = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (i, (mine, shadow)) in
                buffer.chunks_mut(PAGES * PAGE).zip(expected.chunks_mut(PAGES * PAGE)).enumerate()
            {
                let (stop, counts) = (&stop, &counts);
                scope.spawn(move || {
                    let mut random = round * 31 + i as u64 + 1;
                    while !stop.load(Relaxed) {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let page = random as usize % PAGES;
                        let at = page * PAGE + (random >> 40) as usize % (PAGE / 8) * 8;
                        for bytes in [&mut mine[at..at + 8], &mut shadow[at..at + 8]] {
                            let count = u64::from_le_bytes((&*bytes).try_into().unwrap());
                            bytes.copy_from_slice(&count.wrapping_add(1).to_le_bytes());
                        }
                        counts.fetch_add(1, Relaxed);
                    }
                });
            }
            while counts.load(Relaxed) < 50 + 40 * round as usize {
                std::thread::yield_now();
            }
            let before = counts.load(Relaxed);
            other.ask(&changes(&path)[(round % 2) as usize]).unwrap();
            broken_while_counting += usize::from(counts.load(Relaxed) > before);
            stop.store(true, Relaxed);
        });
        if let Some(how) = difference(&buffer, &expected) {
            panic!("round {round}: {how}");
        }
    }
    assert!(broken_while_counting > 0, "no thread was running in any break");
    other.finish();
}

/// What is loaded when it is asked for may have memory of its own a moment later, because somebody wants the file: to give that back
/// would be to lose it. (Pages of zeroes were seen in one of some 50,000 histories.)
#[test]
fn what_is_given_back_can_be_had_again() {
    const PAGES: usize = 2048;
    let dir = directory();
    let path = dir.path().join("data");
    let mut expected = file(&path, PAGES * PAGE);
    const ROUNDS: usize = 120;
    let (asked, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let given = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                while asked.load(Acquire) < round {
                    std::hint::spin_loop();
                }
                // No event tells of the moments that matter: some are tried.
                let begun = Instant::now();
                while begun.elapsed() < Duration::from_micros(round as u64 * 37 % 1500) {}
                drop(OpenOptions::new().write(true).open(&path).unwrap());
                done.store(round, Release);
            }
        });
        let mut given = 0;
        for round in 1..=ROUNDS {
            let mut buffer = elision::read(&path).unwrap();
            // Every second page is altered, so that it takes a while to look at all of them.
            for (page, kept) in buffer.chunks_mut(2 * PAGE).zip(expected.chunks_mut(2 * PAGE)) {
                (page[0], kept[0]) = (1, 1);
            }
            buffer.load(0..PAGES * PAGE).unwrap();
            asked.store(round, Release);
            given += buffer.unload(0..PAGES * PAGE).unwrap();
            while done.load(Acquire) < round {
                std::thread::yield_now();
            }
            if let Some(how) = difference(&buffer, &expected) {
                asked.store(ROUNDS, Release);
                return Err(how);
            }
        }
        Ok(given)
    });
    let given = given.unwrap_or_else(|how| panic!("{how}"));
    println!("{given} bytes were given back");
    assert!(given > 0 || !common::defers(dir.path()));
}

/// The program's threads are held for a moment in a break. What they are blocked in must not end early with EINTR.
#[test]
fn blocked_calls_do_not_see_a_break() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    let stop = AtomicBool::new(false);
    let calls = AtomicUsize::new(0);
    // SAFETY: descriptors of ours.
    let (epoll, socket) = unsafe {
        let mut pair = [0; 2];
        assert_eq!(
            libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr()),
            0
        );
        let timeout = libc::timeval { tv_sec: 0, tv_usec: 40_000 };
        let size = size_of::<libc::timeval>() as u32;
        assert_eq!(
            libc::setsockopt(pair[0], libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const timeout).cast(), size),
            0
        );
        (libc::epoll_create1(libc::EPOLL_CLOEXEC), pair[0])
    };
    let word = std::sync::atomic::AtomicU32::new(0);
    let brief = libc::timespec { tv_sec: 0, tv_nsec: 40_000_000 };
    // Each gives 0 or the errno it ended with.
    let errno =
        |result: i64| if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 };
    let blocked: [(&str, &(dyn Fn() -> i32 + Sync), i32); 5] = [
        (
            "epoll_wait",
            &|| {
                // SAFETY: one event of ours.
                errno(i64::from(unsafe {
                    let mut event: libc::epoll_event = std::mem::zeroed();
                    libc::epoll_wait(epoll, &mut event, 1, 40)
                }))
            },
            0,
        ),
        (
            "nanosleep",
            &|| {
                // SAFETY: a struct of ours.
                errno(i64::from(unsafe { libc::nanosleep(&brief, std::ptr::null_mut()) }))
            },
            0,
        ),
        (
            "recv",
            &|| {
                let mut byte = 0u8;
                // SAFETY: one byte of ours.
                errno(unsafe { libc::recv(socket, (&raw mut byte).cast(), 1, 0) } as i64)
            },
            libc::EAGAIN,
        ),
        (
            "futex",
            &|| {
                // SAFETY: a word and a struct of ours.
                errno(unsafe {
                    libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, 0, &raw const brief, 0, 0)
                })
            },
            libc::ETIMEDOUT,
        ),
        (
            "poll",
            &|| {
                let mut wait = libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 };
                // SAFETY: one struct of ours.
                errno(i64::from(unsafe { libc::poll(&mut wait, 1, 40) }))
            },
            0,
        ),
    ];
    std::thread::scope(|scope| {
        for (name, call, expected) in blocked {
            let (stop, calls) = (&stop, &calls);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    assert_eq!(call(), expected, "{name}");
                    calls.fetch_add(1, Relaxed);
                }
            });
        }
        for round in 0..40 {
            let expected = bytes(round + 1, MIB);
            other.ask(&Foreign::Rewrite { path: path.clone(), len: MIB, seed: round + 1 }).unwrap();
            let buffer = elision::read(&path).unwrap();
            let before = calls.load(Relaxed);
            other.ask(&Foreign::Truncate { path: path.clone(), len: 1 }).unwrap();
            assert_same(&buffer, &expected);
            // So that breaks come at every point of their waits.
            eventually("the calls go on", || calls.load(Relaxed) > before);
        }
        stop.store(true, Relaxed);
    });
    other.finish();
}

// ------------------------------------------------------------------------------------------------- processes

/// Runs `child` in a forked process; gives its pid.
fn fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child ends with _exit and uses nothing that another thread may have held.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let good = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).is_ok();
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(!good)) };
    }
    assert!(pid > 0);
    pid
}

fn wait_for(pid: i32) {
    let mut status = 0;
    // SAFETY: a child of ours.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
    assert_eq!(status, 0, "the child's status is {status:#x}");
}

#[test]
fn a_fork_keeps_its_bytes_when_the_child_goes_first() {
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 16 * MIB);
    let mut other = Part::start("other", &[]);
    let buffer = elision::read(&path).unwrap();
    wait_for(fork(|| assert_same(&buffer[..4 * MIB], &expected[..4 * MIB])));
    wait_for(fork(|| ()));
    other.ask(&changes(&path)[1]).unwrap();
    assert_same(&buffer, &expected);
    other.finish();
}

#[test]
fn a_fork_keeps_its_bytes_when_the_parent_goes_first() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for change in [0, 1, 5] {
        file(&path, 16 * MIB);
        // The parent, the child and the grandchild speak through the same pipes.
        let mut family = Part::start("family", &[path.to_str().unwrap()]);
        family.expect("grandchild ready");
        assert!(family.child.wait().unwrap().success());
        other.ask(&changes(&path)[change]).unwrap();
        family.say("check");
        family.expect("same");
        // The last of them to hold the pipe is gone, and its helper does not hold it.
        assert_eq!(family.hear(), "");
    }
    other.finish();
}

/// What the child has mapped keeps its parent's lease alive, with nobody left to answer for it. The kernel would make
/// a writer wait for the whole lease-break-time (45 s).
#[test]
fn an_orphan_does_not_hold_up_writers() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for change in [0, 1] {
        file(&path, 16 * MIB);
        let mut family = Part::start("orphan", &[path.to_str().unwrap()]);
        family.expect("child ready");
        assert!(family.child.wait().unwrap().success());
        let begun = Instant::now();
        other.ask(&changes(&path)[change]).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        family.say("check");
        family.expect("same");
    }
    other.finish();
}

/// A forked child gets leases of its own: what was deferred stays so, in every generation.
#[test]
fn a_forked_child_need_not_load() {
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 16 * MIB);
    if !common::defers_reads(dir.path()) {
        return;
    }
    let buffer = elision::read(&path).unwrap();
    wait_for(fork(|| {
        assert_eq!(buffer.ranges(), [(0..16 * MIB, PageState::Deferred)]);
        wait_for(fork(|| {
            assert_eq!(buffer.ranges(), [(0..16 * MIB, PageState::Deferred)]);
            assert_same(&buffer, &expected);
        }));
    }));
    assert_eq!(buffer.ranges(), [(0..16 * MIB, PageState::Deferred)]);
}

/// The helper, about to wake from its rest during the fork, declined what it was asked for first. (That it has woken on its own at that very moment,
/// and is at it when the fork ends, remains possible.)
#[test]
fn what_is_read_after_a_fork_is_deferred() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, 8 * MIB);
    if !common::defers_reads(dir.path()) {
        return;
    }
    let opened = File::open(&path).unwrap();
    let segment = Segment::reserve(16 * MIB).unwrap();
    for _ in 0..200 {
        // Another each time, so that none is declined for what became of the one before.
        let mut buffer = segment.buffer(8 * MIB).unwrap();
        let child = fork(|| ());
        assert_eq!(buffer.read_at(0, 8 * MIB, &opened, 0).unwrap(), 8 * MIB);
        wait_for(child);
    }
    let declined = elision::stats::snapshot().declined;
    assert!(declined.iter().all(|(_, times)| *times <= 20), "{declined:?}");
}

/// A read that is refused overwrites what was deferred there. That was taken for the program's doing, and the next reads were refused for it, which
/// overwrote what had been deferred meanwhile, and so on.
#[test]
fn one_read_that_cannot_be_deferred_does_not_end_it() {
    let dir = directory();
    let [path, wanted] = ["data", "wanted"].map(|name| dir.path().join(name));
    let expected = file(&path, 8 * MIB);
    file(&wanted, 8 * MIB);
    if !common::defers_reads(dir.path()) {
        return;
    }
    let mut other = Part::start("other", &[]);
    other.ask(&Foreign::Hold { path: wanted.clone(), write: true }).unwrap();
    let [opened, wanted] = [&path, &wanted].map(|path| File::open(path).unwrap());
    let segment = Segment::reserve(16 * MIB).unwrap();
    let mut buffer = segment.buffer(8 * MIB).unwrap();
    for round in 0..100 {
        let from = if round == 10 { &wanted } else { &opened };
        assert_eq!(buffer.read_at(0, 8 * MIB, from, 0).unwrap(), 8 * MIB);
    }
    assert_same(&buffer, &expected);
    let declined = elision::stats::snapshot().declined;
    let times: u64 = declined.iter().map(|(_, times)| times).sum();
    assert!((1..10).contains(&times), "{declined:?}");
    other.finish();
}

/// While a child is on its way to leases of its own, its parent's helper lets none go.
#[test]
fn a_break_during_a_fork_reaches_both() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for round in 0..40u64 {
        let len = 2 * MIB;
        other.ask(&Foreign::Rewrite { path: path.clone(), len, seed: round + 1 }).unwrap();
        let expected = bytes(round + 1, len);
        let buffer = elision::read(&path).unwrap();
        let command = if round % 2 == 0 {
            Foreign::Truncate { path: path.clone(), len: 0 }
        } else {
            Foreign::Write { path: path.clone(), offset: 0, len, seed: 77 }
        };
        std::thread::scope(|scope| {
            let other = &mut other;
            let asked = scope.spawn(move || other.ask(&command).unwrap());
            for _ in 0..round % 7 {
                std::thread::yield_now();
            }
            let child = fork(|| assert_same(&buffer, &expected));
            asked.join().unwrap();
            wait_for(child);
        });
        assert_same(&buffer, &expected);
    }
    other.finish();
}

/// A [`File`] that was open at a fork is open in both processes: from then on neither sees all that is written.
#[test]
fn a_child_may_write_through_a_file_it_inherited() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut expected = file(&path, 4 * MIB);
    let file = File::open_with(OpenOptions::new().read(true).write(true), &path).unwrap();
    let early = file.read(0, MIB).unwrap();
    let mut go = [0; 2];
    // SAFETY: an array of two.
    assert_eq!(unsafe { libc::pipe2(go.as_mut_ptr(), libc::O_CLOEXEC) }, 0);
    let child = fork(|| {
        let mut byte = 0u8;
        // SAFETY: descriptors of ours and one byte.
        unsafe {
            libc::close(go[1]);
            libc::read(go[0], (&raw mut byte).cast(), 1);
        }
        let mut small = Buffer::new(10).unwrap();
        small.fill(0xEE);
        file.write(5_000, &mut small).unwrap();
        let mut big = Buffer::new(MIB).unwrap();
        big.fill(0xDD);
        file.write(2 * MIB as u64, &mut big).unwrap();
    });
    let mut late = file.read(0, 4 * MIB).unwrap();
    // SAFETY: a descriptor of ours.
    unsafe { libc::close(go[1]) };
    wait_for(child);
    assert_same(&early, &expected[..MIB]);
    assert_same(&late, &expected);
    // And what the child wrote is overwritten, not taken for what was there before.
    late[3 * MIB] ^= 1;
    expected[3 * MIB] ^= 1;
    file.write(0, &mut late).unwrap();
    assert_same(&fs::read(&path).unwrap(), &expected);
}

/// A guard is let go a moment after the last buffer that needs it, so a child may be born with the record of one that
/// its own helper does not hold. Behind the recorded descriptor there may be another file by then.
#[test]
fn a_child_does_not_trust_its_parents_guards() {
    let dir = directory();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    for round in 0..20 {
        fs::write(&one, bytes(round + 1, 4 * MIB)).unwrap();
        fs::write(&two, bytes(round + 100, 4 * MIB)).unwrap();
        drop(elision::read(&one).unwrap());
        // Whether or not it has been let go by now, a little later each time.
        for _ in 0..round * 20_000 {
            std::hint::spin_loop();
        }
        wait_for(fork(|| {
            let second = elision::read(&two).unwrap();
            let first = elision::read(&one).unwrap();
            assert_same(&first, &bytes(round + 1, 4 * MIB));
            assert_same(&second, &bytes(round + 100, 4 * MIB));
        }));
    }
}

#[test]
fn wait_does_not_see_the_helper() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, MIB);
    let buffer = elision::read(&path).unwrap();
    for options in [0, libc::WNOHANG] {
        let mut status = 0;
        // SAFETY: an int of ours.
        assert_eq!(unsafe { libc::waitpid(-1, &mut status, options) }, -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ECHILD));
    }
    drop(buffer);
}

#[test]
fn descriptors_and_threads_are_what_they_were() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, 4 * MIB);
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let before = (common::descriptors(), threads());
    let lowest = fs::File::open("/dev/null").unwrap().as_raw_fd();
    let buffer = elision::read(&path).unwrap();
    assert_eq!((common::descriptors(), threads()), before);
    assert_eq!(fs::File::open("/dev/null").unwrap().as_raw_fd(), lowest);
    fs::write(&path, b"short").unwrap();
    assert_eq!((common::descriptors(), threads()), before);
    drop(buffer);
    assert_eq!(fs::File::open("/dev/null").unwrap().as_raw_fd(), lowest);
}

/// A program that sees the end of a pipe must see it although a helper lives that was started while it was open.
#[test]
fn a_pipe_ends_with_its_last_writer() {
    let dir = directory();
    let path = dir.path().join("data");
    file(&path, MIB);
    let (mut early, early_writer) = std::io::pipe().unwrap();
    let buffer = elision::read(&path).unwrap();
    let (mut late, late_writer) = std::io::pipe().unwrap();
    let again = elision::read(&path).unwrap();
    drop((early_writer, late_writer));
    for pipe in [&mut early, &mut late] {
        let mut wait = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one struct of ours.
        assert_eq!(unsafe { libc::poll(&mut wait, 1, 20_000) }, 1, "the pipe is still open");
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    }
    drop((buffer, again));
}

#[test]
fn programs_start_while_reads_are_deferred() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for round in 0..10 {
        other.ask(&Foreign::Rewrite { path: path.clone(), len: 2 * MIB, seed: round + 1 }).unwrap();
        let expected = bytes(round + 1, 2 * MIB);
        let buffer = elision::read(&path).unwrap();
        std::thread::scope(|scope| {
            // posix_spawn: the new process uses our memory until it has become another program.
            let started = scope.spawn(|| {
                for _ in 0..10 {
                    let output = Command::new("/bin/echo").arg("hello").output().unwrap();
                    assert_eq!(output.stdout, b"hello\n");
                }
            });
            other.ask(&changes(&path)[(round % 2) as usize]).unwrap();
            started.join().unwrap();
        });
        assert_same(&buffer, &expected);
    }
    other.finish();
}

// ------------------------------------------------------------------------------------------------- sizes

#[test]
fn a_segment_of_a_tebibyte() {
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 3 * MIB + 17);
    let segment = Segment::reserve(1 << 40).unwrap();
    assert_eq!(segment.capacity(), 1 << 40);
    let len = (1 << 40) - (1 << 30);
    let mut buffer = segment.buffer(len).unwrap();
    let small = segment.buffer(MIB).unwrap();
    let opened = File::open(&path).unwrap();
    for at in [0, len / 2, len - 4 * MIB] {
        assert_eq!(buffer.read_at(at, 4 * MIB, &opened, 0).unwrap(), expected.len());
        assert_same(&buffer[at..at + expected.len()], &expected);
        assert!(buffer[at + expected.len()..at + 4 * MIB].iter().all(|&byte| byte == 0));
    }
    fs::write(&path, b"").unwrap();
    assert_same(&buffer[len / 2..len / 2 + expected.len()], &expected);
    assert!(segment.buffer(1 << 30).is_err());
    drop(buffer);
    assert!(small.iter().all(|&byte| byte == 0));
    assert!(segment.buffer(len).is_ok());
}

#[test]
fn thousands_of_small_buffers() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let expected = file(&path, 64 * PAGE);
    let mut other = Part::start("other", &[]);
    let opened = File::open(&path).unwrap();
    let segment = Segment::reserve(1 << 30).unwrap();
    let mut buffers: Vec<Buffer> = (0..4000)
        .map(|i| {
            let mut buffer = segment.buffer(2 * PAGE).unwrap();
            assert_eq!(buffer.read_at(0, 2 * PAGE, &opened, (i % 62 * PAGE) as u64).unwrap(), 2 * PAGE);
            buffer
        })
        .collect();
    // Every third is gone, every fourth altered, when the file goes.
    let mut i = 0;
    buffers.retain(|_| {
        i += 1;
        i % 3 != 1
    });
    for buffer in buffers.iter_mut().step_by(4) {
        buffer[PAGE] ^= 0xff;
    }
    drop(opened);
    other.ask(&Foreign::Truncate { path, len: 0 }).unwrap();
    for (place, buffer) in buffers.iter().enumerate() {
        let i = place / 2 * 3 + 1 + place % 2;
        let from = i % 62 * PAGE;
        let mut wanted = expected[from..from + 2 * PAGE].to_vec();
        if place % 4 == 0 {
            wanted[PAGE] ^= 0xff;
        }
        if let Some(how) = difference(buffer, &wanted) {
            panic!("buffer {i}: {how}");
        }
    }
    other.finish();
}

/// Files of two pages, and what is in them.
fn small_files(dir: &Path, count: usize) -> (Vec<std::path::PathBuf>, Vec<Vec<u8>>) {
    let files = (0..count).map(|i| (dir.join(format!("{i}")), bytes(i as u64, 2 * PAGE)));
    files.inspect(|(path, expected)| fs::write(path, expected).unwrap()).unzip()
}

/// Other contents for the files; the buffers have what they had.
fn they_outlast_their_files(buffers: &[Buffer], paths: &[std::path::PathBuf], expected: &[Vec<u8>]) {
    for path in paths {
        fs::write(path, b"another").unwrap();
    }
    for (i, (buffer, wanted)) in buffers.iter().zip(expected).enumerate() {
        if let Some(how) = difference(buffer, wanted) {
            panic!("buffer {i}: {how}");
        }
    }
}

/// Files under leases of one kind after the other (carried by the mapping, on a description of the helper's, on the program's
/// own), then of all kinds. All of them are being broken before the helper looks at the first.
fn all_at_once() {
    elision::set_min_bytes(PAGE);
    for kinds in [&[0][..], &[1], &[2], &[0, 1, 2]] {
        all_of(kinds);
    }
}

fn all_of(kinds: &[usize]) {
    let dir = directory();
    if !common::defers(dir.path()) {
        return println!("skipped: nothing is deferred here");
    }
    let (paths, mut expected) = small_files(dir.path(), 60);
    let mut kept = Vec::new();
    let mut buffers: Vec<Buffer> = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        buffers.push(match kinds[i % kinds.len()] {
            0 => elision::read(path).unwrap(),
            kind => {
                let file = File::open_with(OpenOptions::new().read(true).write(kind == 2), path).unwrap();
                let buffer = file.read(0, 2 * PAGE).unwrap();
                kept.push(file);
                buffer
            }
        });
    }
    // (The parent first: it would have the helper go on.)
    let me = std::process::id() as i32;
    let helpers = [supervisors(me)[0], helpers(me)[0]];
    helpers.iter().for_each(|&pid| signal(pid, libc::SIGSTOP));
    // Begins to break the lease, if there is one, and does not wait.
    let free = |path| OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path).is_ok();
    let unguarded = paths.iter().filter(|&path| free(path)).count();
    for buffer in buffers.iter_mut().step_by(5) {
        buffer[PAGE] ^= 0xff;
    }
    // (Whatever was found: a stopped helper would outlive the test.)
    helpers.iter().for_each(|&pid| signal(pid, libc::SIGCONT));
    assert_eq!(unguarded, 0);
    eventually("all leases are gone", || paths.iter().all(free));
    for wanted in expected.iter_mut().step_by(5) {
        wanted[PAGE] ^= 0xff;
    }
    they_outlast_their_files(&buffers, &paths, &expected);
}

#[test]
fn many_leases_are_broken_at_once() {
    all_at_once();
}

/// The kernel has no room to queue which of them it was.
#[test]
fn many_leases_are_broken_at_once_and_signals_cannot_be_queued() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a local struct. The helper inherits the limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &none) }, 0);
    all_at_once();
}

/// More files than the helper may have descriptors. (When guards had taken all of them, it could not list the program's threads,
/// and so not hold it still; copies were made in place, the mappings kept their leases, and writers waited.)
#[test]
fn more_files_than_descriptors() {
    let few = libc::rlimit { rlim_cur: 64, rlim_max: 64 };
    // SAFETY: a local struct. The helper inherits the limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) }, 0);
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers_reads(dir.path()) {
        return println!("skipped: nothing is deferred here");
    }
    let (paths, expected) = small_files(dir.path(), 200);
    let read = |(i, path)| match i % 2 {
        0 => elision::read(path).unwrap(),
        _ => File::open(path).unwrap().read(0, 2 * PAGE).unwrap(),
    };
    let buffers: Vec<Buffer> = paths.iter().enumerate().map(read).collect();
    they_outlast_their_files(&buffers, &paths, &expected);
}

/// With little address space a read does what it would have done, or says that there is no memory; and what was read
/// stays what it is, although there is no room for a second copy.
#[test]
fn little_address_space() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for room in [4, 16, 32, 40, 48, 60, 120] {
        for len in [30 * MIB as u64, 100] {
            file(&path, 24 * MIB);
            let mut tight = Part::start("tight", &[path.to_str().unwrap(), &room.to_string()]);
            let said = tight.hear();
            if said == "ready" {
                other.ask(&Foreign::Truncate { path: path.clone(), len }).unwrap();
                tight.say("check");
                assert_eq!(tight.hear(), "same", "{room} MiB, truncated to {len}");
            } else {
                assert_eq!(said, "no memory", "{room} MiB");
                assert!(room < 32, "{room} MiB");
            }
            tight.finish();
        }
    }
    other.finish();
}

// ------------------------------------------------------------------------------------------------- parts

fn play(role: &str, arguments: &[String]) {
    match role {
        "other" => common::play_other(),
        // Reads, waits, compares.
        "holder" => {
            let expected = content(16 * MIB);
            let buffer = elision::read(&arguments[0]).unwrap();
            say("ready");
            if hear() == "check" {
                say(&difference(&buffer, &expected).unwrap_or("same".into()));
            }
        }
        // Reads, and becomes another program.
        "execs" => {
            let buffer = elision::read(&arguments[0]).unwrap();
            say("ready");
            hear();
            let failed = Command::new(std::env::current_exe().unwrap()).env(common::ROLE, "execd").exec();
            drop(buffer);
            panic!("{failed}");
        }
        "execd" => {
            say("another program");
            hear();
        }
        // Reads; then parent and child go, and the grandchild compares.
        "family" => {
            let expected = content(16 * MIB);
            let mut buffer = elision::read(&arguments[0]).unwrap();
            fork(|| {
                buffer[MIB] ^= 0xff;
                let parent = std::process::id() as i32;
                fork(|| {
                    // Not before its parent is gone.
                    // SAFETY: no arguments.
                    eventually("orphaned", || unsafe { libc::getppid() } != parent);
                    say("grandchild ready");
                    hear();
                    let mut expected = expected;
                    expected[MIB] ^= 0xff;
                    say(&difference(&buffer, &expected).unwrap_or("same".into()));
                });
            });
        }
        // Reads; the child compares when the parent, which waited until it was on its feet, is gone.
        "orphan" => {
            let expected = content(16 * MIB);
            let buffer = elision::read(&arguments[0]).unwrap();
            let parent = std::process::id() as i32;
            let (mut ready, writer) = std::io::pipe().unwrap();
            fork(|| {
                // Past its fork, it has leases of its own.
                (&writer).write_all(b".").unwrap();
                // SAFETY: no arguments.
                eventually("orphaned", || unsafe { libc::getppid() } != parent);
                say("child ready");
                hear();
                say(&difference(&buffer, &expected).unwrap_or("same".into()));
            });
            ready.read_exact(&mut [0]).unwrap();
        }
        // Reads with as many MiB of address space as are said, above what is used already.
        "tight" => {
            let expected = content(24 * MIB);
            let status = fs::read_to_string("/proc/self/status").unwrap();
            let used: u64 = status
                .lines()
                .find_map(|line| line.strip_prefix("VmSize:"))
                .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse().ok())
                .unwrap();
            let room = arguments[1].parse::<u64>().unwrap() * MIB as u64;
            let limit = libc::rlimit { rlim_cur: used * 1024 + room, rlim_max: used * 1024 + room };
            // SAFETY: a struct of ours.
            assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
            assert!(Segment::reserve(1 << 40).is_err());
            match elision::read(&arguments[0]) {
                Ok(buffer) => {
                    say("ready");
                    hear();
                    say(&difference(&buffer, &expected).unwrap_or("same".into()));
                }
                Err(error) if error.kind() == std::io::ErrorKind::OutOfMemory => say("no memory"),
                Err(error) => say(&error.to_string()),
            }
        }
        other => panic!("no such part: {other}"),
    }
}

/// Pages that cannot be read raise SIGBUS when they are touched; `load` says so instead, before the file changes and
/// afterwards. All others are as they were. (Giving up at the first one left all behind it to whoever wrote to the file.)
#[test]
fn pages_that_the_device_does_not_deliver_are_errors_of_load() {
    const BAD: [usize; 3] = [200, 201, 600];
    if std::env::var_os("ELISION_TEST_DIR").is_some() {
        return println!("skipped: has a file system of its own");
    }
    if !image::mounts_of_our_own() {
        return;
    }
    let Some(image) = image::Image::btrfs("noatime") else { return };
    let path = image.root.join("file");
    let mut all = file(&path, 4 * MIB);
    image.spoil(&path, &BAD.map(|page| all[page * PAGE..][..PAGE].to_vec()));
    let mut buffer = elision::read(&path).unwrap();
    assert_eq!(buffer.ranges()[0], (0..4 * MIB, PageState::Deferred));
    for page in [100, 500] {
        buffer[page * PAGE] ^= 1;
        all[page * PAGE] ^= 1;
    }
    let check = |buffer: &Buffer| {
        for page in 0..4 * MIB / PAGE {
            let range = page * PAGE..(page + 1) * PAGE;
            let loaded = buffer.load(range.clone()).map_err(|error| error.raw_os_error());
            let expected = if BAD.contains(&page) { Err(Some(libc::EIO)) } else { Ok(()) };
            assert_eq!(loaded, expected, "page {page}");
            if loaded.is_ok() {
                assert_same(&buffer[range.clone()], &all[range]);
            }
        }
        assert_eq!(buffer.load(0..4 * MIB).unwrap_err().raw_os_error(), Some(libc::EIO));
    };
    check(&buffer);
    // Everything is written anew, and can be read.
    fs::write(&path, vec![1; 4 * MIB]).unwrap();
    check(&buffer);
    fs::write(&path, b"").unwrap();
    check(&buffer);
    drop(buffer);
}
