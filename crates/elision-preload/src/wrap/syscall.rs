//! `syscall()`: the wrapped calls by number, none a cancellation point. System calls inside libc, or by a program's own
//! instruction, are not seen.
#![allow(unsafe_code)] // The program's numbers, as the call takes them.

use elision_core::client;
use libc::{c_int, c_long, c_uint, c_ulong, iovec, off_t};

use crate::abi::interpose::interpose;
use crate::abi::next::To;
use crate::abi::{arch, kernel};
use crate::state::descriptions::{self, changing};
use crate::state::in_flight;
use crate::state::memory::{settle, settle_all};
use crate::state::stop::{FILTER, active, stop, stopped, stopping, without_helper};
use crate::wrap::memory::{self, SYS_MSEAL};
use crate::wrap::offer::{self, Cancel, at, offer_write, write_matters};
use crate::wrap::process::{self, Sharing};
use crate::wrap::{changes, credentials, exec, limits, notify, open, pinned, resuming, vector};

type Arguments = [c_long; 6];

/// Not in every libc.
const SYS_LANDLOCK_RESTRICT_SELF: c_long = 446;
const SYS_SET_MEMPOLICY_HOME_NODE: c_long = 450;

fn real(number: c_long, [a, b, c, d, e, f]: Arguments) -> c_long {
    // SAFETY: the program's call.
    unsafe { syscall::real(number, a, b, c, d, e, f) }
}

interpose! {
    /// Six are declared, however few C passes.
    fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long,
        until kernel(number, a, b, c, d, e, f);
        if !stopped() || executes(number) => {
            let arguments = [a, b, c, d, e, f];
            if let Some(why) = ends(number, arguments) {
                stop(why);
            }
            match number {
                _ if executes(number) => exec::by_number(number, arguments),
                _ if active() => dispatch(number, arguments),
                _ => real(number, arguments),
            }
        };
}

/// exec is also looked at after the end: see [`crate::wrap::preload_env`].
fn executes(number: c_long) -> bool {
    matches!(number, libc::SYS_execve | libc::SYS_execveat)
}

/// Why deferral ends with this call, also before the constructor.
fn ends(number: c_long, [a, b, c, ..]: Arguments) -> Option<&'static str> {
    let (ends, why) = match number {
        libc::SYS_io_uring_setup | libc::SYS_io_uring_enter | libc::SYS_io_uring_register => {
            (true, "io_uring")
        }
        libc::SYS_io_setup => (true, "asynchronous I/O"),
        libc::SYS_setns => (true, process::NAMESPACE),
        libc::SYS_unshare => (process::unshare_ends(a as c_int), process::NAMESPACE),
        libc::SYS_userfaultfd => (true, "userfaultfd"),
        libc::SYS_fanotify_init => (true, notify::WATCH),
        libc::SYS_inotify_add_watch => (notify::tells(c as u32), notify::WATCH),
        libc::SYS_ptrace => (a as c_uint == process::TRACE_ME, "a tracer"),
        libc::SYS_seccomp => (credentials::filters(a as c_uint, c as c_ulong), FILTER),
        libc::SYS_setsockopt => (pinned::registers(b as c_int, c as c_int), "AF_XDP"),
        libc::SYS_prctl => return credentials::ends(a as c_int, b as c_ulong, c as c_ulong),
        _ => return None,
    };
    ends.then_some(why)
}

fn dispatch(number: c_long, arguments: Arguments) -> c_long {
    let [a, b, c, d, e, f] = arguments;
    let whole = || real(number, arguments);
    let fd = a as c_int;
    match number {
        libc::SYS_read | libc::SYS_pread64 => read(fd, b as usize, c as usize, position(number, d), whole),
        libc::SYS_write | libc::SYS_pwrite64 => write(fd, b as usize, c as usize, position(number, d), whole),

        libc::SYS_readv | libc::SYS_preadv => {
            let (iov, count) = (b as *const iovec, c as c_int);
            let offset = (number == libc::SYS_preadv).then_some(d as off_t);
            if c != c_long::from(count)
                || offset.is_some_and(|offset| offset < 0)
                || !vector::big(fd, iov, count)
            {
                return whole();
            }
            vector::read(fd, iov, count, offset, Cancel::No, |iov, count, offset| {
                real(number, [a, iov as c_long, count.into(), offset, e, f]) as isize
            }) as c_long
        }
        libc::SYS_writev | libc::SYS_pwritev => {
            let (iov, count) = (b as *const iovec, c as c_int);
            let offset = (number == libc::SYS_pwritev).then_some(d as off_t);
            if c != c_long::from(count) || !write_matters(fd, 0) && !vector::big(fd, iov, count) {
                return whole();
            }
            vector::write(fd, iov, count, offset, Cancel::No, |iov, count, offset| {
                real(number, [a, iov as c_long, count.into(), offset, e, f]) as isize
            }) as c_long
        }
        libc::SYS_pwritev2 if changes::matters(fd) => changes::telling(fd, whole),

        arch::SYS_OPEN => {
            opening(libc::AT_FDCWD, a, b as c_int, |flags| real(number, [a, flags.into(), c, d, e, f]))
        }
        libc::SYS_openat => opening(fd, b, c as c_int, |flags| real(number, [a, b, flags.into(), d, e, f])),
        arch::SYS_CREAT => {
            opening(libc::AT_FDCWD, a, libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC, |_| whole())
        }
        libc::SYS_openat2 => {
            let open = |how| real(number, [a, b, how as c_long, d, e, f]) as c_int;
            open::opening_by_rules(fd, b as *const libc::c_char, c as usize, d as usize, open).into()
        }
        libc::SYS_open_by_handle_at => {
            let open = |flags: c_int| real(number, [a, b, flags.into(), d, e, f]) as c_int;
            open::opening_handle(fd, b as usize, c as c_int, open).into()
        }
        libc::SYS_dup => open::duplicating(fd, None, || whole() as c_int).into(),
        arch::SYS_DUP2 | libc::SYS_dup3 => {
            open::duplicating(fd, Some(b as c_int), || whole() as c_int).into()
        }
        libc::SYS_fcntl if open::control_matters(b as c_int) => {
            open::control(fd, b as c_int, c as usize, || whole() as c_int).into()
        }
        libc::SYS_close => {
            open::closing(fd);
            whole()
        }
        libc::SYS_close_range => {
            open::closing_range(a as c_uint, b as c_uint, c as c_int);
            whole()
        }

        libc::SYS_fallocate if !changes::reshapes(b as c_int) => whole(),
        libc::SYS_truncate => {
            client::life::look_after();
            whole()
        }
        libc::SYS_ftruncate | libc::SYS_fallocate => changes::telling(fd, whole),
        libc::SYS_splice => changes::telling(c as c_int, whole),
        libc::SYS_sendfile | libc::SYS_copy_file_range => {
            let to = if number == libc::SYS_sendfile { fd } else { c as c_int };
            changes::telling(to, || {
                resuming::by_number(number, arguments, |arguments| real(number, arguments))
            })
        }
        libc::SYS_getrandom => resuming::by_number(number, arguments, |arguments| real(number, arguments)),
        libc::SYS_ioctl if changes::kind_of(b as c_ulong) != changes::Request::Plain => {
            changes::controlling(fd, b as c_ulong, whole)
        }

        libc::SYS_membarrier => in_flight::membarrier_of_program(a as c_int, b as c_uint, whole),

        arch::SYS_FORK => process::forking(whole),
        libc::SYS_clone => cloning(a as u64, whole),
        libc::SYS_clone3 => match clone3_flags(a as usize, b as usize) {
            Some(flags) => cloning(flags, whole),
            None => whole(),
        },
        // Returns twice into a frame that the first return destroys.
        arch::SYS_VFORK => whole(),
        libc::SYS_unshare => {
            process::before_unshare(a as c_int);
            whole()
        }
        libc::SYS_sendmsg | libc::SYS_sendmmsg
            if pinned::pins(if number == libc::SYS_sendmsg { c } else { d } as c_int)
                || descriptions::any() =>
        {
            match number {
                libc::SYS_sendmsg => pinned::before_send(c as c_int, b as *const libc::msghdr),
                _ => pinned::before_sends(d as c_int, b as *const libc::mmsghdr, c as c_uint),
            }
            process::sharing(whole)
        }
        libc::SYS_sendto if pinned::pins(d as c_int) => {
            settle(b as usize, c as usize);
            whole()
        }
        libc::SYS_vmsplice => {
            settle_all(b as *const iovec, c as usize);
            whole()
        }
        libc::SYS_pidfd_getfd => process::sharing(whole),
        libc::SYS_prctl if credentials::option_matters(a as c_int) => without_helper(whole),
        libc::SYS_prctl => {
            credentials::before_naming(a as c_int, b as c_ulong, c as c_ulong, d as c_ulong);
            whole()
        }
        SYS_LANDLOCK_RESTRICT_SELF
        | libc::SYS_capset
        | libc::SYS_setuid
        | libc::SYS_setgid
        | libc::SYS_setreuid
        | libc::SYS_setregid
        | libc::SYS_setresuid
        | libc::SYS_setresgid
        | libc::SYS_setgroups
        | libc::SYS_setfsuid
        | libc::SYS_setfsgid
        | libc::SYS_chroot => without_helper(whole),
        libc::SYS_setrlimit => limits::limiting(0, a as c_uint, b as usize, whole),
        libc::SYS_prlimit64 => limits::limiting(a as libc::pid_t, b as c_uint, c as usize, whole),
        libc::SYS_exit_group => {
            process::ending();
            whole()
        }

        libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_mremap
        | libc::SYS_mprotect
        | libc::SYS_pkey_mprotect
        | libc::SYS_madvise
        | libc::SYS_process_madvise
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_mlockall
        | SYS_MSEAL
        | libc::SYS_shmat => memory(number, arguments),
        // A memory policy is about these very pages.
        libc::SYS_mbind | SYS_SET_MEMPOLICY_HOME_NODE => {
            settle(a as usize, b as usize);
            whole()
        }

        _ => whole(),
    }
}

/// `None`: for the kernel to refuse.
fn position(number: c_long, offset: c_long) -> Option<Option<u64>> {
    match number {
        libc::SYS_pread64 | libc::SYS_pwrite64 => at(offset),
        _ => Some(None),
    }
}

fn read(fd: c_int, addr: usize, len: usize, at: Option<Option<u64>>, whole: impl Fn() -> c_long) -> c_long {
    offer::reading(fd, addr, len, at, Cancel::No, || whole() as isize) as c_long
}

fn write(fd: c_int, addr: usize, len: usize, at: Option<Option<u64>>, whole: impl Fn() -> c_long) -> c_long {
    if !write_matters(fd, len) {
        return whole();
    }
    changing(fd, || match at.and_then(|offset| offer_write(fd, addr, len, offset, Cancel::No)) {
        Some(result) => result as c_long,
        None => whole(),
    })
}

fn opening(directory: c_int, path: c_long, flags: c_int, open: impl Fn(c_int) -> c_long) -> c_long {
    open::opening(directory, path as *const libc::c_char, flags, |flags| open(flags) as c_int).into()
}

fn cloning(flags: u64, whole: impl Fn() -> c_long) -> c_long {
    match process::what_is_shared(flags) {
        Sharing::Thread => whole(),
        Sharing::Nothing => process::forking(whole),
        Sharing::Mixed => stopping(process::SHARED, whole),
        // On another stack the child never returns here: its end is not seen.
        Sharing::Loan => {
            descriptions::share_table_for_good();
            whole()
        }
    }
}

/// The kernel refuses an unreadable structure.
fn clone3_flags(addr: usize, len: usize) -> Option<u64> {
    if addr == 0 || len < size_of::<u64>() || !kernel::readable(addr, size_of::<u64>()) {
        return None;
    }
    // SAFETY: just found readable.
    Some(unsafe { (addr as *const u64).read_unaligned() })
}

fn memory(number: c_long, [a, b, c, d, e, f]: Arguments) -> c_long {
    let (addr, len) = (a as *mut libc::c_void, b as usize);
    // SAFETY: the program's calls, with libc's argument types.
    unsafe {
        match number {
            libc::SYS_mmap => {
                memory::sys_mmap(To::Kernel, addr, len, c as c_int, d as c_int, e as c_int, f) as c_long
            }
            libc::SYS_munmap => memory::sys_munmap(To::Kernel, addr, len).into(),
            libc::SYS_mremap => {
                memory::sys_mremap(To::Kernel, addr, len, c as usize, d as c_int, e as *mut libc::c_void)
                    as c_long
            }
            libc::SYS_mprotect => memory::sys_mprotect(To::Kernel, addr, len, c as c_int).into(),
            libc::SYS_pkey_mprotect => {
                memory::sys_pkey_mprotect(To::Kernel, addr, len, c as c_int, d as c_int).into()
            }
            libc::SYS_madvise => memory::sys_madvise(To::Kernel, addr, len, c as c_int).into(),
            libc::SYS_process_madvise => memory::sys_process_madvise(
                To::Kernel,
                a as c_int,
                b as *const iovec,
                c as usize,
                d as c_int,
                e as c_uint,
            ) as c_long,
            libc::SYS_mlock => memory::sys_mlock(To::Kernel, addr, len).into(),
            libc::SYS_mlock2 => memory::sys_mlock2(To::Kernel, addr, len, c as c_uint).into(),
            libc::SYS_mlockall => memory::sys_mlockall(To::Kernel, a as c_int).into(),
            SYS_MSEAL => memory::sys_mseal(To::Kernel, addr, len, c as c_ulong).into(),
            _ => memory::sys_shmat(To::Kernel, a as c_int, b as *const libc::c_void, c as c_int) as c_long,
        }
    }
}
