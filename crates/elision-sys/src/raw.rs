//! System calls as the kernel defines them: numbers in, a value or a negative errno out.
//!
//! Everything else in the crate that talks to the kernel goes through [`syscall`]. It uses neither libc's
//! `errno` nor any other thread-local storage, because the sidecar runs on a thread-local area that libc
//! never set up, and because in the drop-in libc's names are our own.
#![allow(unsafe_code)] // The one instruction that enters the kernel lives here.

/// An errno value, positive, as in `libc::ENOENT`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

/// What a raw system call gives.
pub type Result<T> = core::result::Result<T, Errno>;

/// Enters the kernel with up to six arguments.
///
/// # Safety
/// The arguments must be what system call `number` demands: pointers valid for what the kernel reads and
/// writes through them, and no effect on memory that Rust believes it owns.
#[inline]
pub unsafe fn syscall(number: i64, args: [usize; 6]) -> Result<usize> {
    let returned: isize;
    // SAFETY: the x86-64 Linux calling convention; rcx and r11 are clobbered by the instruction. What the
    // call does to memory is the caller's promise.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => returned,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if (-4095..0).contains(&returned) { Err(Errno(-returned as i32)) } else { Ok(returned as usize) }
}
