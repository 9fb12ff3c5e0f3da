//! The helper ends before exec. Otherwise the kernel would send SIGCHLD to a program that knows of no child, and a descriptor
//! that outlives exec would keep its write lease for a moment. Signal handlers and children of vfork call exec: nothing here
//! allocates.
#![allow(unsafe_code)] // The program's pointers, naked functions and their callers' stacks.

use core::ffi::c_char;
use core::ptr;

use elision_core::client;
use elision_sys::raw::Errno;
use libc::{c_int, c_long};

use crate::abi::arch::listed;
use crate::abi::interpose::interpose;
use crate::abi::kernel;
use crate::abi::raw::{self, raw_call};
use crate::state::stop::{active, filtered};
use crate::wrap::preload_env::{Executed, Strings, environment, with_environment};

fn leaving<T>(call: impl FnOnce() -> T) -> T {
    // SAFETY: exec is next, or `after_exec`.
    let left = unsafe { client::life::before_exec() };
    let result = call();
    if left {
        // SAFETY: as above.
        unsafe { client::life::after_exec() };
    }
    result
}

fn executing<T>(program: Executed, envp: Strings, call: impl FnOnce(Option<Strings>) -> T) -> T {
    with_environment(program, envp, |changed| match active() {
        true => leaving(|| call(changed)),
        false => call(changed),
    })
}

fn named_at(directory: c_int, path: *const c_char, flags: c_int) -> Executed {
    // SAFETY: just found readable.
    let is_empty = || !filtered() && kernel::readable(path as usize, 1) && unsafe { *path } == 0;
    match flags & libc::AT_EMPTY_PATH != 0 && is_empty() {
        true => Executed::Open(directory),
        false => Executed::At(directory, path),
    }
}

pub(crate) fn by_number(number: c_long, arguments: [c_long; 6]) -> c_long {
    let [a, b, c, d, e, _] = arguments;
    let (program, envp) = match number {
        libc::SYS_execve => (Executed::At(libc::AT_FDCWD, a as *const c_char), 2),
        _ => (named_at(a as c_int, b as *const c_char, e as c_int), 3),
    };
    let given = if envp == 2 { c } else { d };
    executing(program, given as Strings, |changed| {
        let mut arguments = arguments.map(|argument| argument as usize);
        if let Some(changed) = changed {
            arguments[envp] = changed as usize;
        }
        // SAFETY: the program's call.
        raw::answer(unsafe { raw_call(number, &arguments) }) as c_long
    })
}

interpose! {
    fn execve(path: *const c_char, argv: Strings, envp: Strings) -> c_int, until kernel(libc::SYS_execve);
        => executing(Executed::At(libc::AT_FDCWD, path), envp, |changed| {
            // SAFETY: the program's call, here and below.
            unsafe { execve::real(path, argv, changed.unwrap_or(envp)) }
        });

    fn execveat(directory: c_int, path: *const c_char, argv: Strings, envp: Strings, flags: c_int) -> c_int,
        until kernel(libc::SYS_execveat);
        => executing(named_at(directory, path, flags), envp, |changed| {
            // SAFETY: as above.
            unsafe { execveat::real(directory, path, argv, changed.unwrap_or(envp), flags) }
        });

    fn fexecve(fd: c_int, argv: Strings, envp: Strings) -> c_int,
        until kernel(libc::SYS_execveat, fd, c"".as_ptr(), argv, envp, libc::AT_EMPTY_PATH);
        => executing(Executed::Open(fd), envp, |changed| {
            // SAFETY: as above.
            unsafe { fexecve::real(fd, argv, changed.unwrap_or(envp)) }
        });

    fn execv(path: *const c_char, argv: Strings) -> c_int,
        until kernel(libc::SYS_execve, path, argv, environment());
        => executing(Executed::At(libc::AT_FDCWD, path), environment(), |changed| match changed {
            // SAFETY: as above.
            None => unsafe { execv::real(path, argv) },
            // SAFETY: as above; execv with libc's environment.
            Some(envp) => unsafe { execve::real(path, argv, envp) },
        });

    fn execvp(file: *const c_char, argv: Strings) -> c_int, until early(-1);
        => executing(Executed::Named(file), environment(), |changed| match changed {
            // SAFETY: as above.
            None => unsafe { execvp::real(file, argv) },
            // SAFETY: as above; execvp with libc's environment.
            Some(envp) => unsafe { execvpe::real(file, argv, envp) },
        });

    fn execvpe(file: *const c_char, argv: Strings, envp: Strings) -> c_int, until early(-1);
        => executing(Executed::Named(file), envp, |changed| {
            // SAFETY: as above.
            unsafe { execvpe::real(file, argv, changed.unwrap_or(envp)) }
        });
}

#[repr(usize)]
enum Listed {
    Execl,
    Execle,
    Execlp,
}

/// Six in registers, the rest on the caller's stack.
struct List {
    registers: *const [*const c_char; 6],
    stack: *const *const c_char,
}

impl List {
    /// Safety: the list has so many.
    unsafe fn get(&self, at: usize) -> *const c_char {
        // SAFETY: the caller's promise.
        unsafe {
            match at.checked_sub(6) {
                None => *self.registers.cast::<*const c_char>().add(at),
                Some(at) => *self.stack.add(at),
            }
        }
    }
}

/// A short list becomes an array on the stack, since a child of vfork would leave a mapping to its parent; a long one in fresh
/// memory, since a signal handler's stack may be small.
unsafe extern "C-unwind" fn with_list(
    which: Listed,
    registers: *const [*const c_char; 6],
    stack: *const *const c_char,
) -> c_int {
    let list = List { registers, stack };
    let mut count = 0;
    // SAFETY: the list ends with a null pointer.
    while !unsafe { list.get(1 + count) }.is_null() {
        count += 1;
    }
    // SAFETY: room for the list and its end.
    unsafe {
        match count {
            0..32 => with_room::<32>(which, list, count),
            32..256 => with_room::<256>(which, list, count),
            _ => {
                let bytes = (count + 1) * size_of::<*const c_char>();
                let (protection, kind) =
                    (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                let arguments = [0, bytes, protection as usize, kind as usize, usize::MAX, 0];
                match raw_call(libc::SYS_mmap, &arguments) {
                    Ok(addr) => {
                        let result = with_array(which, list, count, addr as *mut _);
                        let _ = raw_call(libc::SYS_munmap, &[addr, bytes]);
                        result
                    }
                    Err(Errno(errno)) => {
                        raw::set_errno(errno);
                        -1
                    }
                }
            }
        }
    }
}

/// Safety: the list is shorter than `N`.
#[inline(never)]
unsafe fn with_room<const N: usize>(which: Listed, list: List, count: usize) -> c_int {
    let mut room = [ptr::null(); N];
    // SAFETY: the caller's promise.
    unsafe { with_array(which, list, count, room.as_mut_ptr()) }
}

/// Safety: `argv` has room for `count` arguments of the list and their end.
unsafe fn with_array(which: Listed, list: List, count: usize, argv: *mut *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    unsafe {
        for at in 0..=count {
            *argv.add(at) = list.get(1 + at);
        }
        let path = list.get(0);
        match which {
            Listed::Execl => execv(path, argv),
            Listed::Execle => execve(path, argv, list.get(count + 2).cast()),
            Listed::Execlp => execvp(path, argv),
        }
    }
}

listed!(execl, Listed::Execl, with_list);
listed!(execle, Listed::Execle, with_list);
listed!(execlp, Listed::Execlp, with_list);
