//! Where statistics go, and who writes them.
#![allow(unsafe_code)] // A path that is written once, before anybody reads it.

use crate::shared::control;
use crate::stats::{self, COUNTERS};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use elision_sys::{file, limits, task};

pub(crate) fn report_alone() {
    if COUNTERS.any() {
        report(|fd| write_stats(fd, task::pid()));
    }
}

/// Room for why deferral ended: the program's stack may be small.
const SHORT_LINE: usize = 256;

pub(crate) fn report_stop(why: &str) {
    report(|fd| {
        let mut line = [0; SHORT_LINE];
        let length = stats::stopped_line(task::pid(), why, &mut line);
        let _ = file::write(fd, line.get(..length).unwrap_or(&[]));
    });
}

fn report(write: impl FnOnce(i32)) {
    // Under a file size limit the write could raise SIGXFSZ.
    if stats_path().is_none() || limits::file_size() != libc::RLIM_INFINITY {
        return;
    }
    let mask = task::block_signals();
    let fd = open_stats();
    if fd >= 0 {
        write(fd);
        file::close(fd);
    }
    task::restore_signals(mask);
}

pub(crate) fn write_stats(fd: i32, pid: i32) {
    let mut line = [0; stats::LINE];
    let length = stats::take_line(pid, &mut line);
    let _ = file::write(fd, line.get(..length).unwrap_or(&[]));
}

static PAGES: AtomicBool = AtomicBool::new(false);

/// Do lines tell of the pages of files, too?
pub(crate) fn tells_of_pages() -> bool {
    PAGES.load(Relaxed)
}

pub(crate) fn tell_of_pages() {
    PAGES.store(true, Relaxed);
}

/// A path, zero-terminated; empty: nowhere.
struct StatsPath(UnsafeCell<[u8; 4096]>);
// SAFETY: `set_stats_path` writes once before any helper exists; helpers read.
unsafe impl Sync for StatsPath {}
static STATS_PATH: StatsPath = StatsPath(UnsafeCell::new([0; 4096]));

/// Call it before the first transfer.
pub fn set_stats_path(path: &[u8]) {
    if path.len() < 4096 && !control::begun() {
        // SAFETY: no helper reads it yet, and only the drop-in's constructor calls.
        unsafe {
            (*STATS_PATH.0.get()).iter_mut().zip(path).for_each(|(slot, &byte)| *slot = byte);
        }
    }
}

fn stats_path() -> Option<&'static core::ffi::CStr> {
    // SAFETY: nobody writes it any more.
    let path = unsafe { &*STATS_PATH.0.get() };
    core::ffi::CStr::from_bytes_until_nul(path).ok().filter(|path| !path.is_empty())
}

/// A /proc path to a descriptor is safe only for the command's memory file: the pid may mean another process.
fn is_safe(path: &core::ffi::CStr) -> bool {
    let below = path.to_bytes().strip_prefix(b"/proc/");
    if !below.and_then(|below| below.first()).is_some_and(u8::is_ascii_digit) {
        return true;
    }
    let mut room = [0; 32];
    file::read_link_at(libc::AT_FDCWD, path, &mut room)
        .is_ok_and(|name| name.starts_with(b"/memfd:elision-statistics"))
}

/// Locks the file, so that a reader can tell when the last helper is done. Never waits.
pub(crate) fn open_stats() -> i32 {
    let Some(path) = stats_path().filter(|path| is_safe(path)) else { return -1 };
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let Ok(fd) = file::open(path, flags, 0o644) else { return -1 };
    let _ = file::flock(fd, libc::LOCK_SH | libc::LOCK_NB);
    fd
}
