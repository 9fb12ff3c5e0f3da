//! Every system call made, for a trial: a filter may refuse or kill.
#![allow(unsafe_code)] // Calls without an effect.

use crate::raw::syscall;

macro_rules! calls {
    ($($name:ident,)*) => {{
        use crate::file::SYS_cachestat;
        use libc::*;
        [$((stringify!($name), $name)),*]
    }};
}

/// Of the library, and of the drop-in on its own account; not those that end or make a process.
pub const CALLS: [(&str, i64); 64] = calls![
    SYS_accept4,
    SYS_bind,
    SYS_cachestat,
    SYS_chdir,
    SYS_clock_gettime,
    SYS_close,
    SYS_close_range,
    SYS_connect,
    SYS_faccessat2,
    SYS_fcntl,
    SYS_fdatasync,
    SYS_flock,
    SYS_fstat,
    SYS_fstatfs,
    SYS_fsync,
    SYS_ftruncate,
    SYS_futex,
    SYS_futex_waitv,
    SYS_getdents64,
    SYS_getpid,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_gettid,
    SYS_ioctl,
    SYS_kill,
    SYS_listen,
    SYS_lseek,
    SYS_madvise,
    SYS_membarrier,
    SYS_memfd_create,
    SYS_mincore,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_openat,
    SYS_openat2,
    SYS_pidfd_getfd,
    SYS_pidfd_open,
    SYS_prctl,
    SYS_pread64,
    SYS_preadv2,
    SYS_prlimit64,
    SYS_process_vm_readv,
    SYS_ptrace,
    SYS_pwrite64,
    SYS_read,
    SYS_readahead,
    SYS_readlinkat,
    SYS_recvmsg,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_sched_yield,
    SYS_sendmsg,
    SYS_setitimer,
    SYS_setsid,
    SYS_socket,
    SYS_statx,
    SYS_uname,
    SYS_userfaultfd,
    SYS_wait4,
    SYS_waitid,
    SYS_write,
];

/// Makes each without effect. A filter may kill the caller.
pub fn make_every_call() {
    for (_, number) in CALLS {
        // No such object, a length of 0, and signal 0.
        let (first, second) = match number {
            libc::SYS_kill => (crate::task::pid() as usize, 0),
            // The kernel logs null here.
            libc::SYS_setitimer => (usize::MAX, usize::MAX),
            _ => (usize::MAX, 0),
        };
        // SAFETY: only null, and an impossible address.
        let _ = unsafe { syscall(number, [first, second, 0, 0, 0, 0]) };
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// Each rustix function's system call. Code names these functions by path, never by import.
    const OF_RUSTIX: &[(&str, &str)] = &[
        ("fs::fdatasync", "fdatasync"),
        ("fs::fstatfs", "fstatfs"),
        ("fs::fsync", "fsync"),
        ("fs::ftruncate", "ftruncate"),
        ("fs::memfd_create", "memfd_create"),
        ("fs::openat", "openat"),
        ("fs::readlinkat_raw", "readlinkat"),
        ("fs::statx", "statx"),
        ("io::read", "read"),
        ("io::write", "write"),
        ("mm::mmap", "mmap"),
        ("mm::mmap_anonymous", "mmap"),
        ("mm::mprotect", "mprotect"),
        ("mm::mremap_fixed", "mremap"),
        ("mm::munmap", "munmap"),
        ("mm::userfaultfd", "userfaultfd"),
        ("process::chdir", "chdir"),
        ("thread::futex::wait", "futex"),
        ("thread::futex::waitv", "futex_waitv"),
        ("thread::futex::wake", "futex"),
        ("thread::nanosleep", "nanosleep"),
        ("thread::sched_yield", "sched_yield"),
        ("thread::set_name", "prctl"),
    ];

    fn sources(directory: &Path) -> String {
        let mut all = String::new();
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                all += &sources(&path);
            } else if !path.ends_with(AT_THE_PROGRAMS_WISH) {
                let text = std::fs::read_to_string(&path).unwrap();
                all += text.split("#[cfg(test)]").next().unwrap();
            }
        }
        all
    }

    /// No call of its own is made unasked.
    const AT_THE_PROGRAMS_WISH: &str = "file/replace.rs";

    /// Not made, or not returning.
    const UNLISTED: [&str; 3] = ["epoll_wait", "epoll_pwait", "exit_group"];

    fn is_listed(call: &str) -> bool {
        super::CALLS.iter().any(|(name, _)| name.strip_prefix("SYS_") == Some(call))
    }

    #[test]
    fn every_call_is_on_the_list() {
        let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect()
        };
        let numbers = sources.split("libc::SYS_").skip(1).chain(sources.split("__NR_").skip(1));
        for name in numbers.map(word) {
            assert!(UNLISTED.contains(&&*name) || is_listed(&name), "{name}");
        }
        let is_function = |path: &str| {
            let name = path.rsplit("::").next().unwrap();
            name.starts_with(|c: char| c.is_lowercase())
        };
        let mut found = 0;
        for (before, after) in sources.match_indices("rustix::").map(|(at, _)| sources.split_at(at)) {
            let import = before.lines().last().unwrap_or("").trim_start().starts_with("use ");
            let text = &after["rustix::".len()..];
            if import {
                let names = text.split(';').next().unwrap();
                for name in names.split(['{', '}', ',', ' ']).filter(|name| !name.is_empty()) {
                    let module = name.ends_with("::");
                    assert!(module || !is_function(name), "use rustix::{names}");
                }
                continue;
            }
            let path = word(text);
            if text[path.len()..].starts_with('(') && is_function(&path) {
                let (_, call) = OF_RUSTIX.iter().find(|(of, _)| *of == path).expect(&path);
                assert!(is_listed(call), "{path}");
                found += 1;
            }
        }
        assert!(found >= OF_RUSTIX.len(), "{found}");
        super::make_every_call();
    }
}
