//! How much memory the program's control groups allow, page cache included.

use crate::shared::processes;
use core::ffi::CStr;
use elision_sys::file::{self, ProcPath};
use elision_sys::task;

/// Where groups are, and their limit. (Version 2, and version 1, which a line of its own names.)
const GROUPS: [(&[u8], &[u8]); 2] =
    [(b"/sys/fs/cgroup", b"memory.max\0"), (b"/sys/fs/cgroup/memory", b"memory.limit_in_bytes\0")];

/// Bytes; `u64::MAX`: no limit is known.
pub(crate) fn room() -> u64 {
    let (mut text, mut path) = ([0u8; 1024], [0u8; 512]);
    let text = processes::open(&ProcPath::new(task::pid(), "cgroup", None), 0)
        .map_or(Default::default(), |fd| read(fd, &mut text));
    let Some((version, mut group)) = group_in(text) else { return u64::MAX };
    let Some((root, name)) = GROUPS.get(version) else { return u64::MAX };
    let mut least = u64::MAX;
    // A container may see its own group as the root, by another path.
    loop {
        path.fill(0);
        let parts = [root, group, b"/", name].into_iter().flatten();
        path.iter_mut().zip(parts).for_each(|(slot, &byte)| *slot = byte);
        let limit = CStr::from_bytes_until_nul(&path).ok().and_then(number_in);
        least = least.min(limit.unwrap_or(u64::MAX));
        match group.iter().rposition(|&byte| byte == b'/') {
            Some(at) => group = group.get(..at).unwrap_or(&[]),
            None => return least,
        }
    }
}

fn read(fd: i32, text: &mut [u8]) -> &[u8] {
    let filled = file::read(fd, text).unwrap_or(0);
    file::close(fd);
    text.get(..filled).unwrap_or(&[])
}

/// The number that a file of the kernel's begins with.
pub(crate) fn number_in(path: &CStr) -> Option<u64> {
    let fd = file::open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0).ok()?;
    number(read(fd, &mut [0; 32]))
}

/// `max` is none.
fn number(text: &[u8]) -> Option<u64> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(None, |sum, &digit| {
        Some(sum.unwrap_or(0u64).saturating_mul(10).saturating_add(u64::from(digit - b'0')))
    })
}

/// Of /proc/PID/cgroup: the version of the group that limits memory, less one, and its path.
fn group_in(text: &[u8]) -> Option<(usize, &[u8])> {
    let mut found = None;
    for line in text.split(|&byte| byte == b'\n') {
        let mut words = line.splitn(3, |&byte| byte == b':').skip(1);
        let (Some(controllers), Some(path)) = (words.next(), words.next()) else { continue };
        if controllers.split(|&byte| byte == b',').any(|name| name == b"memory") {
            return Some((1, path));
        }
        if controllers.is_empty() {
            found = Some((0, path));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_that_limits_memory_is_found() {
        let group = |text: &'static str| group_in(text.as_bytes());
        assert_eq!(group("0::/user.slice/a\n"), Some((0, b"/user.slice/a".as_slice())));
        assert_eq!(group("5:cpu,memory:/docker/a:b\n0::/other\n"), Some((1, b"/docker/a:b".as_slice())));
        assert_eq!(group("0::/other\n7:memory:/\n"), Some((1, b"/".as_slice())));
        assert_eq!(group("3:cpuset,memoryless:/a\n"), None);
        assert_eq!(group(""), None);
        // Cut off.
        assert_eq!(group("0:"), None);
    }

    #[test]
    fn a_limit_is_a_number() {
        assert_eq!(number(b"89478485\n"), Some(89_478_485));
        assert_eq!(number(b"max\n"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"99999999999999999999999"), Some(u64::MAX));
    }
}
