//! Files that are not in the page cache, on a device of 200 requests a second. A program that touches few pages loads no others. A
//! program that touches all pages in a bad order has them loaded ahead.
//!
//! The tests read the library's counters, and ask the kernel what is in the page cache.
#![allow(unsafe_code)] // Asks the kernel what is in memory.

mod common;
#[path = "common/device.rs"]
mod device;

use common::{Part, bytes, difference, hear, say};
use device::{Device, Speed};
use elision_core::cold;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

crate::roles!(play);

const MIB: usize = 1 << 20;
const PAGE: usize = common::PAGE;
const LEN: usize = 128 * MIB;

const SLOW: Speed = Speed { requests: 200, bytes: 125_000_000, read_ahead_kib: 128 };

/// A device with one file. (It is taken down before the place that it is in.)
struct Slow {
    device: Device,
    path: PathBuf,
    _overlay: Option<Overlay>,
    _place: common::Directory,
}

fn device() -> Option<Slow> {
    let place = common::directory();
    let made = Device::new(place.path(), LEN as u64).and_then(|device| {
        device.limit(SLOW)?;
        Ok(device)
    });
    let device = match made {
        Ok(device) => device,
        Err(error) => {
            println!("skipped: no slow device: {error}");
            return None;
        }
    };
    let path = device.path().join("file");
    fs::write(&path, bytes(7, LEN)).unwrap();
    device.make_cold(&File::open(&path).unwrap()).unwrap();
    Some(Slow { device, path, _overlay: None, _place: place })
}

/// An overlay whose lower layer is the device. The kernel says less there of what is in the page cache.
struct Overlay(PathBuf);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn below_an_overlay() -> Option<Slow> {
    let mut slow = device()?;
    let place = slow._place.path();
    let [upper, work, root] = ["upper", "work", "root"].map(|name| place.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir).unwrap();
    }
    let [lower, upper, work] = [slow.device.path(), &upper, &work].map(Path::display);
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mut mount = Command::new("mount");
    if !mount.args(["-t", "overlay", "-o", &options, "overlay"]).arg(&root).status().unwrap().success() {
        println!("skipped: no overlay");
        return None;
    }
    (slow.path, slow._overlay) = (root.join("file"), Some(Overlay(root)));
    Some(slow)
}

/// How many of the file's bytes are in the page cache.
fn cached(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    let mut pages = vec![0u8; LEN / PAGE];
    // SAFETY: a mapping of its own, that nobody touches.
    unsafe {
        let addr =
            libc::mmap(std::ptr::null_mut(), LEN, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(addr, libc::MAP_FAILED);
        assert_eq!(libc::mincore(addr, LEN, pages.as_mut_ptr()), 0);
        libc::munmap(addr, LEN);
    }
    pages.iter().filter(|&&page| page & 1 != 0).count() * PAGE
}

/// A program that uses the file, throttled.
fn user(device: &Device, path: &Path, how: &str) -> Part {
    let mut part = Part::start(how, &[path.to_str().unwrap()]);
    device.join(part.pid() as u32).unwrap();
    part.say("go");
    part
}

fn prefetched() -> u64 {
    elision::stats::snapshot().prefetched_bytes
}

/// As on Linux before 6.5.
fn forget_cachestat() {
    const CACHESTAT: u32 = 451;
    let statement = |code: u32, k, jf| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, CACHESTAT, 1),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the filter lives until the call is over; nothing calls what it refuses but the helper.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
        assert_eq!(libc::syscall(CACHESTAT.into(), -1, 0, 0, 0), -1);
    }
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOSYS));
}

fn play(role: &str, arguments: &[String]) {
    hear();
    if role == "backwards, without cachestat" {
        forget_cachestat();
    }
    let mut buffer = elision::read(&arguments[0]).unwrap();
    assert_eq!(elision::stats::snapshot().deferred_bytes, buffer.len() as u64, "not deferred");
    let pages = LEN / PAGE;
    if role == "sparse" {
        let patience = Duration::from_nanos(cold::patience_ns(LEN as u64, cold::FASTEST));
        let begun = Instant::now();
        // Not so many that the device makes the program wait.
        for page in (0..pages).step_by(pages / 8) {
            std::hint::black_box(buffer[page * PAGE]);
        }
        while begun.elapsed() < patience / 2 {
            std::thread::yield_now();
        }
        let impatient = prefetched() > 0 && begun.elapsed() < patience;
        return say(if impatient { "impatient" } else { "patient" });
    }
    match role {
        "stores" => {
            // Every page once, in an order without a pattern.
            for page in (0..pages).map(|at| at * 4099 % pages) {
                buffer[page * PAGE] ^= 1;
            }
        }
        "in order" => {
            for page in 0..pages {
                std::hint::black_box(buffer[page * PAGE]);
            }
        }
        "backwards" | "backwards, without cachestat" => {
            for page in (0..pages).rev() {
                std::hint::black_box(buffer[page * PAGE]);
            }
        }
        "pieces at random" => {
            for piece in (0..LEN / MIB).map(|at| at * 37 % (LEN / MIB)) {
                std::hint::black_box(buffer[piece * MIB..][..MIB].iter().step_by(PAGE).max());
            }
            return say("done");
        }
        "dropped" => {
            let mut page = pages;
            while prefetched() == 0 {
                page -= 1;
                std::hint::black_box(buffer[page * PAGE]);
            }
            drop(buffer);
            say("dropped");
            assert_eq!(hear(), "end");
            return say(&prefetched().to_string());
        }
        "wanted" => {
            say("read");
            assert_eq!(hear(), "compare");
            return say(&difference(&buffer, &bytes(7, LEN)).unwrap_or("same".into()));
        }
        "idle" => {
            let mut page = pages;
            while prefetched() == 0 {
                page -= 1;
                std::hint::black_box(buffer[page * PAGE]);
            }
            let (mut before, mut still) = (0, 0);
            while still < 50 {
                std::thread::sleep(Duration::from_millis(10));
                still = if prefetched() == before { still + 1 } else { 0 };
                before = prefetched();
            }
        }
        _ => panic!("{role}"),
    }
    if role == "in order" || role == "idle" {
        return say(&prefetched().to_string());
    }
    let mut expected = bytes(7, LEN);
    let known = prefetched();
    if role == "stores" {
        expected.iter_mut().step_by(PAGE).for_each(|byte| *byte ^= 1);
    }
    say(&known.to_string());
    assert_eq!(hear(), "compare");
    say(&difference(&buffer, &expected).unwrap_or("same".into()));
}

#[test]
fn nothing_is_loaded_before_the_program_has_waited() {
    let Some(Slow { device, path, _overlay, _place }) = device() else { return };
    let mut part = user(&device, &path, "sparse");
    part.expect("patient");
    part.finish();
}

#[test]
fn use_that_loads_badly_is_loaded_ahead() {
    loads_ahead(device());
}

#[test]
fn likewise_below_an_overlay() {
    loads_ahead(below_an_overlay());
}

fn loads_ahead(slow: Option<Slow>) {
    let Some(Slow { device, path, .. }) = &slow else { return };
    for how in ["stores", "backwards", "backwards, without cachestat"] {
        device.make_cold(&File::open(path).unwrap()).unwrap();
        let mut part = user(device, path, how);
        let loaded: usize = part.hear().parse().unwrap();
        assert!(loaded > LEN / 4, "{how}: only {loaded} bytes were loaded ahead");
        assert!(loaded <= LEN, "{how}: {loaded}");
        part.say("compare");
        part.expect("same");
        part.finish();
    }
}

#[test]
fn where_memory_is_short_little_is_loaded_ahead_of_the_program() {
    loads_little_ahead(device());
}

#[test]
fn where_memory_is_short_likewise_below_an_overlay() {
    loads_little_ahead(below_an_overlay());
}

fn loads_little_ahead(slow: Option<Slow>) {
    let Some(Slow { mut device, path, _overlay, _place }) = slow else { return };
    if let Err(error) = device.limit_memory(LEN as u64 / 3) {
        return println!("skipped: {error}");
    }
    for (how, least, most) in [("in order", LEN / 4, LEN * 5 / 4), ("idle", LEN / 32, LEN / 4)] {
        device.make_cold(&File::open(&path).unwrap()).unwrap();
        let mut part = user(&device, &path, how);
        let loaded: usize = part.hear().parse().unwrap();
        assert!((least..=most).contains(&loaded), "{how}: {loaded} bytes were loaded ahead");
        part.finish();
    }
}

#[test]
fn where_memory_is_short_a_piece_takes_few_requests() {
    let Some(Slow { mut device, path, _overlay, _place }) = device() else { return };
    if let Err(error) = device.limit_memory(LEN as u64 / 3) {
        return println!("skipped: {error}");
    }
    // The kernel alone: 9 or 10. The helper may find out too late that memory is short.
    let few = (0..4).any(|_| {
        device.make_cold(&File::open(&path).unwrap()).unwrap();
        let before = device.requests().unwrap();
        let mut part = user(&device, &path, "pieces at random");
        part.expect("done");
        part.finish();
        device.requests().unwrap() - before < 6 * (LEN / MIB) as u64
    });
    assert!(few, "as many requests as the kernel makes alone");
}

#[test]
fn what_a_change_needs_takes_the_requests_of_a_plain_read() {
    takes_few_requests(device());
}

#[test]
fn what_a_change_needs_likewise_below_an_overlay() {
    takes_few_requests(below_an_overlay());
}

fn takes_few_requests(slow: Option<Slow>) {
    let Some(Slow { device, path, .. }) = &slow else { return };
    let mut requests = [0, 0];
    for (plain, requests) in [true, false].into_iter().zip(&mut requests) {
        device.make_cold(&File::open(path).unwrap()).unwrap();
        let before = device.requests().unwrap();
        if plain {
            assert_eq!(fs::read(path).unwrap().len(), LEN);
        } else {
            let mut part = user(device, path, "wanted");
            part.expect("read");
            fs::OpenOptions::new().write(true).open(path).unwrap();
            part.say("compare");
            part.expect("same");
            part.finish();
        }
        *requests = device.requests().unwrap() - before;
    }
    let [plain, ours] = requests;
    // In pieces of 1 MiB: five where a plain read has four.
    assert!(ours <= plain + plain / 8, "{ours} requests, a plain read: {plain}");
}

#[test]
fn the_load_ends_with_the_buffer() {
    let Some(Slow { device, path, _overlay, _place }) = device() else { return };
    let mut part = user(&device, &path, "dropped");
    part.expect("dropped");
    // What was asked for comes; then nothing does.
    let (mut before, mut still) = (cached(&path), 0);
    while still < 20 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = cached(&path);
        still = if now == before { still + 1 } else { 0 };
        before = now;
    }
    assert!(before < LEN * 3 / 4, "{before} bytes were loaded");
    part.say("end");
    assert!(part.hear().parse::<usize>().unwrap() < LEN * 3 / 4);
    part.finish();
}
