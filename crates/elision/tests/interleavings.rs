//! What went wrong once because two things happened at the same time.
//!
//! Each test needs a process of its own. Other processes are this program again, with a part to play.
#![allow(unsafe_code)] // Signals, shared mappings and posix_spawn, which std does not offer.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory, eventually, hear, helpers, say};
use elision::{Buffer, File, PageState, Segment};
use std::ffi::{CStr, CString};
use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::time::{Duration, Instant};

crate::roles!(play);

const MIB: usize = 1 << 20;

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    if let Some(how) = difference(got, expected) {
        panic!("{what}: {how}");
    }
}

/// One byte of each page: enough to see a page change.
fn sample(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().step_by(PAGE).copied().collect()
}

/// Changes a file by another process; `meanwhile` begins when some part of the answer to it is done.
fn changing(other: &mut Part, command: &Foreign, wait: Duration, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        let asked = scope.spawn(move || other.ask(command).unwrap());
        std::thread::sleep(wait);
        meanwhile();
        asked.join().unwrap();
    });
}

/// Moments in the answer to a break of some dozen MiB, which takes some dozen milliseconds.
const MOMENTS: [u64; 8] = [0, 1, 2, 4, 7, 11, 16, 22];

/// Neighbouring buffers that had read neighbouring parts of a file were one record. If one of them was dropped while
/// the record's memory was being copied, the whole record was dropped, and the others saw the new bytes.
#[test]
fn a_neighbour_is_dropped_during_a_break() {
    const COUNT: usize = 16;
    const EACH: usize = 4 * MIB;
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let expected = bytes(1, COUNT * EACH);
    let mut other = Part::start("other", &[]);
    for (round, wait) in MOMENTS.into_iter().enumerate() {
        common::create(&path, &expected).unwrap();
        let segment = Segment::reserve(2 * COUNT * EACH).unwrap();
        let file = File::open(&path).unwrap();
        let mut buffers: Vec<Buffer> = (0..COUNT)
            .map(|i| {
                let mut buffer = segment.buffer(EACH).unwrap();
                assert_eq!(buffer.read_at(0, EACH, &file, (i * EACH) as u64).unwrap(), EACH);
                buffer
            })
            .collect();
        drop(file);
        let command = match round % 2 {
            0 => Foreign::Write { path: path.clone(), offset: 0, len: COUNT * EACH, seed: 2 },
            _ => Foreign::Truncate { path: path.clone(), len: 0 },
        };
        changing(&mut other, &command, Duration::from_millis(wait), || drop(buffers.remove(COUNT / 2)));
        for (place, buffer) in buffers.iter().enumerate() {
            let i = place + usize::from(place >= COUNT / 2);
            let wanted = &expected[i * EACH..(i + 1) * EACH];
            assert_same(buffer, wanted, &format!("after {wait} ms, buffer {i}"));
        }
    }
    other.finish();
}

/// The same with one buffer: what it gave back by shrinking while it was being copied took the record of what it kept
/// with it.
#[test]
fn a_buffer_shrinks_during_a_break() {
    const LEN: usize = 64 * MIB;
    let dir = directory();
    let path = dir.path().join("data");
    let expected = bytes(3, LEN);
    let mut other = Part::start("other", &[]);
    for (round, wait) in MOMENTS.into_iter().enumerate() {
        common::create(&path, &expected).unwrap();
        let mut buffer = elision::read(&path).unwrap();
        let kept = LEN / 8 * (round % 7 + 1) + 5;
        let command = match round % 2 {
            0 => Foreign::Write { path: path.clone(), offset: 0, len: LEN, seed: 4 },
            _ => Foreign::Truncate { path: path.clone(), len: 0 },
        };
        changing(&mut other, &command, Duration::from_millis(wait), || buffer.resize(kept).unwrap());
        assert_same(&buffer, &expected[..kept], &format!("after {wait} ms"));
    }
    other.finish();
}

/// A read through a [`File`] could be mapped in the middle of a write or a cut through the same handle, by another
/// thread: that change had been announced before there was anything to announce it to, and the buffer changed later.
#[test]
fn a_file_is_read_while_it_is_changed_through_the_same_handle() {
    const LEN: usize = 8 * MIB;
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    common::create(&path, bytes(5, LEN)).unwrap();
    let file = File::open_with(OpenOptions::new().read(true).write(true), &path).unwrap();
    let stop = AtomicBool::new(false);
    let (mut reads, mut changed) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = Buffer::new(LEN).unwrap();
            for round in 1usize.. {
                if stop.load(Relaxed) {
                    break;
                }
                buffer.fill(round as u8);
                file.write(0, &mut buffer).unwrap();
                if round % 3 == 0 {
                    file.set_len((LEN / 2 + round % 100) as u64).unwrap();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(4) {
            let buffer = file.read(0, LEN).unwrap();
            let before = sample(&buffer);
            std::thread::sleep(Duration::from_millis(4));
            reads += 1;
            changed += usize::from(sample(&buffer) != before);
        }
        stop.store(true, Relaxed);
    });
    assert_eq!(changed, 0, "buffers of {reads} changed after they were returned");
}

/// A small write to a guarded file has to be announced. With more threads in requests than there are slots it found
/// none, and was made without a word: buffers that had been read from there changed.
#[test]
fn small_writes_while_every_slot_is_taken() {
    const EACH: usize = 8 * PAGE;
    const COUNT: usize = 256;
    const THREADS: usize = 40;
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let (path, busy) = (dir.path().join("data"), dir.path().join("busy"));
    let content = bytes(10, COUNT * EACH);
    common::create(&path, &content).unwrap();
    common::create(&busy, bytes(6, 4 * MIB)).unwrap();
    let file = File::open_with(OpenOptions::new().read(true).write(true), &path).unwrap();
    let reader = File::open(&busy).unwrap();
    let _guard = reader.read(0, 4 * MIB).unwrap();
    // Each a record of its own.
    let buffers: Vec<Buffer> = (0..COUNT).map(|i| file.read((i * EACH) as u64, EACH).unwrap()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut buffer = Buffer::new(4 * MIB).unwrap();
                while !stop.load(Relaxed) {
                    buffer.read_at(0, 4 * MIB, &reader, 0).unwrap();
                }
            });
        }
        std::thread::sleep(Duration::from_millis(100));
        let begun = Instant::now();
        for i in 0..COUNT {
            let mut small = Buffer::new(16).unwrap();
            small.fill(!content[i * EACH + PAGE]);
            file.write((i * EACH + PAGE) as u64, &mut small).unwrap();
            if begun.elapsed() > Duration::from_secs(4) {
                break;
            }
        }
        stop.store(true, Relaxed);
    });
    for (i, buffer) in buffers.iter().enumerate() {
        assert_same(buffer, &content[i * EACH..(i + 1) * EACH], &format!("buffer {i}"));
    }
}

/// The first thread to notice that the helper was killed had another started, and the other threads took its being
/// there for a sign that their requests, which had died with the first, would still be answered. They waited for ever.
#[test]
fn the_helper_is_killed_while_several_threads_wait() {
    let dir = directory();
    let path = dir.path().join("data");
    common::create(&path, bytes(7, 8 * MIB)).unwrap();
    if !common::defers_reads(dir.path()) {
        return;
    }
    let expected = Arc::new(sample(&bytes(7, 4 * MIB)));
    let file = Arc::new(File::open(&path).unwrap());
    let kept = file.read(0, 8 * MIB).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let counts: Arc<Vec<AtomicUsize>> = Arc::new((0..24).map(|_| AtomicUsize::new(0)).collect());
    // (Not in a scope, which would wait for a thread that hangs.)
    let threads: Vec<_> = (0..counts.len())
        .map(|i| {
            let (file, stop) = (Arc::clone(&file), Arc::clone(&stop));
            let (counts, expected) = (Arc::clone(&counts), Arc::clone(&expected));
            std::thread::spawn(move || {
                let mut buffer = Buffer::new(4 * MIB).unwrap();
                while !stop.load(Relaxed) {
                    buffer.read_at(0, 4 * MIB, &file, 0).unwrap();
                    if counts[i].fetch_add(1, Relaxed) % 64 == 0 {
                        assert!(sample(&buffer) == *expected);
                    }
                }
            })
        })
        .collect();
    for round in 0..8 {
        std::thread::sleep(Duration::from_millis(20 + 3 * round));
        for pid in helpers(std::process::id() as i32) {
            // SAFETY: a child of this process; nobody else waits for it.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let before: Vec<usize> = counts.iter().map(|count| count.load(Relaxed)).collect();
        // Two more each: the first may have been on its way.
        eventually("every thread goes on", || {
            counts.iter().zip(&before).all(|(count, before)| count.load(Relaxed) >= before + 2)
        });
    }
    stop.store(true, Relaxed);
    eventually("every thread ends", || threads.iter().all(|thread| thread.is_finished()));
    for thread in threads {
        thread.join().unwrap();
    }
    assert_same(&kept, &bytes(7, 8 * MIB), "what was read before");
}

/// Signals of either kind that were handled.
static QUEUED: AtomicUsize = AtomicUsize::new(0);
static ALARMS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_queued(_: i32) {
    QUEUED.fetch_add(1, SeqCst);
}

extern "C" fn count_alarm(_: i32) {
    ALARMS.fetch_add(1, SeqCst);
}

fn handle(signal: i32, handler: extern "C" fn(i32)) {
    // SAFETY: the handler does nothing but count.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0);
    }
}

fn mask(how: i32) {
    // SAFETY: a set of ours.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGALRM);
        libc::sigaddset(&mut set, libc::SIGRTMIN());
        assert_eq!(libc::pthread_sigmask(how, &set, std::ptr::null_mut()), 0);
    }
}

/// A thread that was about to be given a signal when it was held stopped with the signal in the tracer's hands, and
/// was let go without it. Realtime signals are queued, so all that were sent must be counted; of a standard
/// signal one is sent when the one before has been seen.
#[test]
fn no_signal_is_lost_in_a_break() {
    handle(libc::SIGRTMIN(), count_queued);
    handle(libc::SIGALRM, count_alarm);
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    // This thread talks to the others by poll, which no signal must end.
    mask(libc::SIG_BLOCK);
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                // As many at once as may be pending, so that one is always about to be handled.
                mask(libc::SIG_BLOCK);
                for _ in 0..5000 {
                    // SAFETY: this thread.
                    if unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGRTMIN()) } != 0 {
                        break;
                    }
                    sent += 1;
                }
                mask(libc::SIG_UNBLOCK);
            }
            sent
        })
    };
    let thread = std::os::unix::thread::JoinHandleExt::as_pthread_t(&worker);
    let alarms = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut sent = 0;
            while !stop.load(Relaxed) {
                // SAFETY: the thread is joined after this one.
                assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGALRM) }, 0);
                sent += 1;
                let begun = Instant::now();
                while ALARMS.load(SeqCst) < sent {
                    assert!(begun.elapsed() < Duration::from_secs(20), "alarm {sent} was lost");
                    std::thread::yield_now();
                }
            }
            sent
        })
    };
    let begun = Instant::now();
    let mut breaks = 0;
    while begun.elapsed() < Duration::from_millis(2500) && !alarms.is_finished() {
        breaks += 1;
        other.ask(&Foreign::Rewrite { path: path.clone(), len: MIB, seed: breaks }).unwrap();
        let buffer = elision::read(&path).unwrap();
        other.ask(&Foreign::Truncate { path: path.clone(), len: 1 }).unwrap();
        assert_same(&buffer, &bytes(breaks, MIB), "what was read");
    }
    stop.store(true, Relaxed);
    let alarmed = alarms.join().unwrap();
    let sent: usize = worker.join().unwrap();
    assert!(sent > 0 && alarmed > 0 && breaks > 0);
    assert_eq!(QUEUED.load(SeqCst), sent, "signals handled, of those sent, in {breaks} breaks");
    assert_eq!(ALARMS.load(SeqCst), alarmed, "alarms handled, of those sent, in {breaks} breaks");
    other.finish();
}

/// The child of posix_spawn waited for the lease on a file that it opened, the program for the child (in a vfork, where
/// it cannot be held), and the helper for the program: for as long as the kernel lets a lease last, 45 s; and then the
/// file was cut under the buffer.
#[test]
fn a_spawned_child_opens_a_deferred_file() {
    const LEN: usize = 8 * MIB;
    let dir = directory();
    let path = dir.path().join("data");
    let mut expected = bytes(8, LEN);
    common::create(&path, &expected).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    buffer[MIB] ^= 0xff;
    expected[MIB] ^= 0xff;
    let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let program = c"/bin/echo";
    let arguments = [program.as_ptr().cast_mut(), c"hello".as_ptr().cast_mut(), std::ptr::null_mut()];
    let environment = [std::ptr::null_mut()];
    let begun = Instant::now();
    // SAFETY: structs and strings of ours, which outlive the calls; a child of ours.
    unsafe {
        let mut actions: libc::posix_spawn_file_actions_t = std::mem::zeroed();
        assert_eq!(libc::posix_spawn_file_actions_init(&mut actions), 0);
        let flags = libc::O_WRONLY | libc::O_TRUNC;
        assert_eq!(libc::posix_spawn_file_actions_addopen(&mut actions, 1, name.as_ptr(), flags, 0), 0);
        let mut pid = 0;
        let result = libc::posix_spawn(
            &mut pid,
            program.as_ptr(),
            &actions,
            std::ptr::null(),
            arguments.as_ptr(),
            environment.as_ptr(),
        );
        assert_eq!(result, 0);
        libc::posix_spawn_file_actions_destroy(&mut actions);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
        assert_eq!(status, 0);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(fs::read(&path).unwrap(), b"hello\n");
    if let Some(why) = cannot_hold_a_child() {
        println!("skipped: the buffer is not looked at, since {why}");
        std::mem::forget(buffer);
        return;
    }
    assert_same(&buffer, &expected, "what was read");
}

/// Why the child of a vfork cannot be held in its parent's place, if it cannot.
fn cannot_hold_a_child() -> Option<String> {
    if !Path::new("/proc/thread-self/children").exists() {
        return Some("the kernel keeps no lists of children".into());
    }
    match elision::probe::ptrace_scope() {
        Some(scope) if scope > 0 && !elision::probe::has_capability(elision::probe::CAP_SYS_PTRACE) => {
            Some(format!("kernel.yama.ptrace_scope is {scope}"))
        }
        _ => None,
    }
}

/// On tmpfs a store through a shared mapping leaves the times of a file alone if its page was mapped by then, so a file
/// that somebody had open between two saves may have changed and look the same. The second save left that change
/// in the file.
#[test]
fn a_mapped_store_on_tmpfs_is_overwritten() {
    const LEN: usize = 8 * MIB;
    const AT: usize = 4 * MIB;
    let Some(dir) = on_tmpfs() else {
        println!("skipped: no tmpfs");
        return;
    };
    let path = dir.path().join("data");
    let mut expected = bytes(9, LEN);
    common::create(&path, &expected).unwrap();
    for round in 0..3 {
        let mut buffer = elision::edit(&path).unwrap();
        buffer[0] ^= 0xff;
        expected[0] ^= 0xff;
        elision::write(&path, &mut buffer).unwrap();
        let mut mapper = Part::start("mapper", &[path.to_str().unwrap(), &AT.to_string()]);
        mapper.expect("mapped");
        // Times are as coarse as the clock's tick.
        std::thread::sleep(Duration::from_millis(30));
        mapper.say("store");
        mapper.expect("stored");
        mapper.finish();
        assert_ne!(fs::read(&path).unwrap()[AT], expected[AT]);
        elision::write(&path, &mut buffer).unwrap();
        assert_same(&buffer, &expected, "the buffer");
        assert_same(&fs::read(&path).unwrap(), &expected, &format!("round {round}, the file"));
    }
}

/// A new directory on tmpfs: where the tests are run for, or where there is one everywhere.
fn on_tmpfs() -> Option<common::Directory> {
    let is_tmpfs = |dir: &CStr| {
        // SAFETY: plain data, filled by the kernel.
        unsafe {
            let mut stat: libc::statfs = std::mem::zeroed();
            libc::statfs(dir.as_ptr(), &mut stat) == 0 && stat.f_type == 0x0102_1994
        }
    };
    let dir = directory();
    if is_tmpfs(&CString::new(dir.path().as_os_str().as_encoded_bytes()).unwrap()) {
        return Some(dir);
    }
    if is_tmpfs(c"/dev/shm") { Some(common::directory_in(Path::new("/dev/shm"))) } else { None }
}

fn play(role: &str, arguments: &[String]) {
    match role {
        "other" => common::play_other(),
        // Maps the file shared, touches a page, and changes it later.
        "mapper" => {
            let file = OpenOptions::new().read(true).write(true).open(&arguments[0]).unwrap();
            let at: usize = arguments[1].parse().unwrap();
            let len = file.metadata().unwrap().len() as usize;
            // SAFETY: a new mapping, of which one byte within the file is used.
            unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let memory =
                    libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
                assert_ne!(memory, libc::MAP_FAILED);
                let byte = memory.cast::<u8>().add(at);
                let was = byte.read_volatile();
                say("mapped");
                hear();
                byte.write_volatile(was.wrapping_add(90));
                libc::munmap(memory, len);
            }
            drop(file);
            say("stored");
            hear();
        }
        other => panic!("no such part: {other}"),
    }
}

/// What the first two tests build on: that these reads are deferred at all.
#[test]
fn neighbours_are_deferred() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    common::create(&path, bytes(1, 2 * MIB)).unwrap();
    if !common::defers_reads(dir.path()) {
        return;
    }
    let segment = Segment::reserve(4 * MIB).unwrap();
    let file = File::open(&path).unwrap();
    for i in 0..2 {
        let mut buffer = segment.buffer(MIB).unwrap();
        assert_eq!(buffer.read_at(0, MIB, &file, i * MIB as u64).unwrap(), MIB);
        assert_eq!(buffer.ranges(), [(0..MIB, PageState::Deferred)]);
    }
}
