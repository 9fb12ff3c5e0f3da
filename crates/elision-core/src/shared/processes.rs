//! What /proc says of the program's processes and threads.
//!
//! The helper opens /proc once, when it begins: the program may remove it (`umount`, `pivot_root`).

use crate::shared::control;
use core::sync::atomic::{AtomicI32, Ordering::*};
use elision_sys::file::{self, ProcPath};
use elision_sys::raw::Result;
use elision_sys::task;

pub(crate) const SUPERVISORS_NAME: &core::ffi::CStr = c"elision-watch";

/// The helper's descriptor of /proc; −1: none, or another process.
static ROOT: AtomicI32 = AtomicI32::new(-1);

pub(crate) fn begin() {
    ROOT.store(-1, Relaxed);
}

/// Opens /proc. False: missing, or of another PID namespace.
pub(crate) fn open_root() -> bool {
    let Ok(root) = file::open(c"/proc", libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0) else {
        return false;
    };
    let (mut link, mut digits) = ([0u8; 16], [0u8; 10]);
    let own = file::decimal(task::pid() as u64, &mut digits);
    if file::read_link_at(root, c"self", &mut link) != Ok(own) {
        file::close(root);
        return false;
    }
    ROOT.store(root, Relaxed);
    true
}

pub(crate) fn open(path: &ProcPath, flags: i32) -> Result<i32> {
    let flags = flags | libc::O_RDONLY | libc::O_CLOEXEC;
    match ROOT.load(Relaxed) {
        -1 => file::open(path.as_c_str(), flags, 0),
        root => file::open_at(root, path.below_proc(), flags),
    }
}

/// Does a thread of `pid` still use this memory? Not after exec.
pub(crate) fn program_lives(pid: i32) -> bool {
    let mut lives = None;
    let all = each_thread(pid, |tid| {
        lives = Some(control::shares_memory(tid));
        lives == Some(false)
    });
    // An unreadable list proves nothing.
    lives.unwrap_or(!all && task::exists(pid))
}

pub(crate) fn is_gone(pid: i32) -> bool {
    match state_of(pid, pid) {
        Some(state) => matches!(state, b'Z' | b'X' | b'x'),
        None => !task::exists(pid),
    }
}

/// False: `visit` said false, or the list cannot be read.
pub(crate) fn each_thread(pid: i32, visit: impl FnMut(i32) -> bool) -> bool {
    each_number(ProcPath::new(pid, "task", None), visit)
}

pub(crate) fn each_descriptor(pid: i32, visit: impl FnMut(i32) -> bool) -> bool {
    each_number(ProcPath::new(pid, "fd", None), visit)
}

/// In the program, which must not use the helper's descriptor of /proc.
pub(crate) fn each_own_descriptor(visit: impl FnMut(i32) -> bool) -> bool {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
    file::open(c"/proc/self/fd", flags, 0).is_ok_and(|directory| each_entry(directory, visit))
}

fn each_number(path: ProcPath, visit: impl FnMut(i32) -> bool) -> bool {
    open(&path, libc::O_DIRECTORY).is_ok_and(|directory| each_entry(directory, visit))
}

/// Closes the directory.
fn each_entry(directory: i32, mut visit: impl FnMut(i32) -> bool) -> bool {
    // Small: it may be on a signal handler's stack.
    let mut buffer = [0u8; 256];
    let mut good = true;
    while good {
        let Ok(filled) = file::directory_entries(directory, &mut buffer) else {
            good = false;
            break;
        };
        if filled == 0 {
            break;
        }
        let mut at = 0;
        while good && at < filled {
            // struct linux_dirent64: inode 8, offset 8, record length 2, type 1, name.
            let Some(length) = buffer.get(at + 16..at + 18) else { break };
            let length = length.iter().rev().fold(0usize, |sum, &byte| sum << 8 | byte as usize);
            let name = buffer.get(at + 19..at + length).unwrap_or(&[]);
            let number = name
                .iter()
                .take_while(|b| b.is_ascii_digit())
                .fold(0i64, |n, &b| n * 10 + i64::from(b - b'0'));
            if number > 0 {
                good = visit(number as i32);
            }
            if length == 0 {
                break;
            }
            at += length;
        }
    }
    file::close(directory);
    good
}

/// False: `visit` said false, or the kernel keeps no list.
pub(crate) fn each_child(pid: i32, tid: i32, mut visit: impl FnMut(i32) -> bool) -> bool {
    let Ok(fd) = open_of_thread(pid, tid, b"/children") else { return false };
    let mut buffer = [0u8; 48];
    let mut number = 0i64;
    let mut good = true;
    while good {
        match file::read(fd, &mut buffer) {
            Ok(0) => break,
            Err(_) => good = false,
            Ok(filled) => {
                for &byte in buffer.iter().take(filled) {
                    if byte.is_ascii_digit() {
                        number = number * 10 + i64::from(byte - b'0');
                    } else if number > 0 {
                        good = good && visit(number as i32);
                        number = 0;
                    }
                }
            }
        }
    }
    file::close(fd);
    good
}

pub(crate) fn is_supervisor(pid: i32) -> bool {
    let path = ProcPath::new(pid, "comm", None);
    let Ok(fd) = open(&path, 0) else { return false };
    let mut text = [0u8; 16];
    let filled = file::read(fd, &mut text).unwrap_or(0);
    file::close(fd);
    text.get(..filled).and_then(|text| text.strip_suffix(b"\n")) == Some(SUPERVISORS_NAME.to_bytes())
}

fn open_of_thread(pid: i32, tid: i32, name: &[u8]) -> elision_sys::raw::Result<i32> {
    open(&ProcPath::new(pid, "task", Some(tid)).and(name), 0)
}

/// Is the thread dead or dying? A main thread that ended first stays as a zombie.
pub(crate) fn is_dead(pid: i32, tid: i32) -> bool {
    matches!(state_of(pid, tid), None | Some(b'Z' | b'X' | b'x'))
}

pub(crate) fn is_stopped(pid: i32) -> bool {
    let mut stopped = false;
    each_thread(pid, |tid| {
        stopped = matches!(state_of(pid, tid), Some(b'T' | b't'));
        !stopped
    });
    stopped
}

fn state_of(pid: i32, tid: i32) -> Option<u8> {
    let fd = open_of_thread(pid, tid, b"/stat").ok()?;
    let mut text = [0u8; 256];
    let state = after_name(first_of(fd, &mut text)).first().copied();
    file::close(fd);
    state
}

/// Does the first thread wait for a device? Page faults so far that did not wait and that did, and threads. From an open /proc/PID/stat.
pub(crate) fn stuck_faults_and_threads(stat: i32) -> (bool, [u64; 2], u64) {
    let mut text = [0u8; 512];
    let text = after_name(first_of(stat, &mut text));
    // The state is word 3, minflt 10, majflt 12, num_threads 20.
    let mut words = numbers(text);
    let minor = words.nth(7).unwrap_or(0);
    let major = words.nth(1).unwrap_or(0);
    (text.first() == Some(&b'D'), [minor, major], words.nth(7).unwrap_or(1))
}

/// Bytes that a process has asked devices for, from an open /proc/PID/io.
pub(crate) fn fetched(io: i32) -> u64 {
    numbers(first_of(io, &mut [0u8; 256])).nth(9).unwrap_or(0)
}

/// Nanoseconds that a thread has run or waited for a processor, from an open /proc/PID/schedstat.
pub(crate) fn busy_ns(schedstat: i32) -> u64 {
    numbers(first_of(schedstat, &mut [0u8; 128])).take(2).sum()
}

/// Bytes of a process's memory, swapped ones included, that are no file's: what it has altered of a file's is among them.
pub(crate) fn anonymous(pid: i32) -> Option<u64> {
    let fd = open(&ProcPath::new(pid, "status", None), 0).ok()?;
    let mut text = [0u8; 4096];
    let text = first_of(fd, &mut text);
    file::close(fd);
    let kib = |name: &[u8]| {
        let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name))?;
        numbers(line.strip_suffix(b" kB")?).last()
    };
    Some((kib(b"RssAnon:\t")? + kib(b"VmSwap:\t")?) << 10)
}

/// What follows the name in a line of stat: the state, then numbers. (A name may have spaces and parentheses of its own.)
fn after_name(text: &[u8]) -> &[u8] {
    text.iter().rposition(|&byte| byte == b')').and_then(|at| text.get(at + 2..)).unwrap_or(&[])
}

fn first_of(fd: i32, text: &mut [u8]) -> &[u8] {
    let filled = file::read_at(fd, text, 0).unwrap_or(0);
    text.get(..filled).unwrap_or(&[])
}

fn numbers(text: &[u8]) -> impl Iterator<Item = u64> {
    let number = |word: &[u8]| {
        word.iter().fold(0u64, |n, &digit| n.wrapping_mul(10).wrapping_add(u64::from(digit & 15)))
    };
    text.split(|byte| b" \n".contains(byte)).map(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_what_was_stored_into() {
        let before = anonymous(task::pid()).unwrap();
        let stored = vec![1u8; 64 << 20];
        let after = anonymous(task::pid()).unwrap();
        assert!((32 << 20..1 << 30).contains(&(after - before)), "{before} {after} {}", stored.len());
    }
}
