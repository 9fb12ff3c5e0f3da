//! Files that are not in the page cache, on a device of 1000 requests a second: what is used sparsely stays sparse, what is used badly is
//! loaded ahead.
//!
//! The kernel's account of the page cache tells, not the clock.

mod common;
#[path = "common/device.rs"]
mod device;

use common::{Part, bytes, difference, hear, say};
use device::{Device, Speed};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

crate::roles!(play);

const MIB: usize = 1 << 20;
const PAGE: usize = common::PAGE;
const LEN: usize = 64 * MIB;

const SLOW: Speed = Speed { requests: 1000, bytes: 40_000_000, read_ahead_kib: 128 };

/// The device with one file, or why there is none.
fn device() -> Option<(Device, std::path::PathBuf)> {
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
    // (The device has a directory of its own in there.)
    std::mem::forget(place);
    let path = device.path().join("file");
    fs::write(&path, bytes(7, LEN)).unwrap();
    device.make_cold(&File::open(&path).unwrap()).unwrap();
    Some((device, path))
}
