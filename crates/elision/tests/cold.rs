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
    _place: tempfile::TempDir,
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
    Some(Slow { device, path, _place: place })
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

fn play(role: &str, arguments: &[String]) {
    hear();
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
        "backwards" => {
            for page in (0..pages).rev() {
                std::hint::black_box(buffer[page * PAGE]);
            }
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
        _ => panic!("{role}"),
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
    let Some(Slow { device, path, _place }) = device() else { return };
    let mut part = user(&device, &path, "sparse");
    part.expect("patient");
    part.finish();
}

#[test]
fn use_that_loads_badly_is_loaded_ahead() {
    let Some(Slow { device, path, _place }) = device() else { return };
    for how in ["stores", "backwards"] {
        device.make_cold(&File::open(&path).unwrap()).unwrap();
        let mut part = user(&device, &path, how);
        let loaded: usize = part.hear().parse().unwrap();
        assert!(loaded > LEN / 4, "{how}: only {loaded} bytes were loaded ahead");
        assert!(loaded <= LEN, "{how}: {loaded}");
        part.say("compare");
        part.expect("same");
        part.finish();
    }
}

#[test]
fn the_load_ends_with_the_buffer() {
    let Some(Slow { device, path, _place }) = device() else { return };
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
