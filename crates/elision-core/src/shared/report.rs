//! Where statistics go, and who writes them.
#![allow(unsafe_code)] // A path that is written once, before anybody reads it.

use crate::shared::control;
use crate::stats::{self, COUNTERS};
use core::cell::UnsafeCell;
use elision_sys::{file, limits, task};

/// Writes the statistics of a process that has no helper: mostly one that declined everything. No helper is started for that.
pub(crate) fn report_alone() {
    if COUNTERS.any() {
        report(|fd| write_stats(fd, task::pid()));
    }
}

/// Writes that deferral is over in this process, and why.
pub(crate) fn report_stop(why: &str) {
    report(|fd| {
        let mut line = [0; stats::LINE];
        let length = stats::stopped_line(task::pid(), why, &mut line);
        let _ = file::write(fd, line.get(..length).unwrap_or(&[]));
    });
}

fn report(write: impl FnOnce(i32)) {
    // (Under a limit the program would end of SIGXFSZ where it has none to fear.)
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

/// Writes the line of statistics.
pub(crate) fn write_stats(fd: i32, pid: i32) {
    let mut line = [0; stats::LINE];
    let length = stats::take_line(pid, &mut line);
    let _ = file::write(fd, line.get(..length).unwrap_or(&[]));
}

/// Where statistics go: a path, ended by zero, empty for nowhere.
struct StatsPath(UnsafeCell<[u8; 4096]>);
// SAFETY: written once by `set_stats_path` before any helper exists, read by helpers.
unsafe impl Sync for StatsPath {}
static STATS_PATH: StatsPath = StatsPath(UnsafeCell::new([0; 4096]));

/// Sets where statistics go. Before the first transfer.
pub fn set_stats_path(path: &[u8]) {
    if path.len() < 4096 && !control::begun() {
        // SAFETY: no helper is there to read it yet, and the drop-in's constructor is the only caller.
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

/// Another process's descriptors, by way of /proc, are the command's memory for statistics or nothing of ours: the number may be
/// another's by now, or in this PID namespace.
fn is_safe(path: &core::ffi::CStr) -> bool {
    let below = path.to_bytes().strip_prefix(b"/proc/");
    if !below.and_then(|below| below.first()).is_some_and(u8::is_ascii_digit) {
        return true;
    }
    let mut room = [0; 32];
    file::read_link_at(libc::AT_FDCWD, path, &mut room)
        .is_ok_and(|name| name.starts_with(b"/memfd:elision-statistics"))
}

/// Opens the statistics file, and holds it locked so that a reader can tell when the last helper is done. Waits for nobody: not
/// for a reader who has begun, who will do without, nor for the other end of a pipe.
pub(crate) fn open_stats() -> i32 {
    let Some(path) = stats_path().filter(|path| is_safe(path)) else { return -1 };
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let Ok(fd) = file::open(path, flags, 0o644) else { return -1 };
    let _ = file::flock(fd, libc::LOCK_SH | libc::LOCK_NB);
    fd
}
