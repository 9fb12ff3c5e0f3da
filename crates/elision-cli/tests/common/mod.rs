//! Seccomp filters for commands under test.
#![allow(unsafe_code)] // What happens between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use libc::{c_long, c_ulong};

/// The filter's answer EPERM.
pub const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;

/// Puts a seccomp filter on a command, which answers these system calls in this way.
pub fn filtered(answer: u32, calls: &'static [c_long]) -> impl Fn(&mut Command) {
    move |command| {
        let line = |code: u32, jump: u8, value: u32| libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: jump,
            k: value,
        };
        // The number is the first word of what a filter is shown.
        let mut program = vec![line(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0)];
        for &call in calls {
            program.push(line(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32));
            program.push(line(libc::BPF_RET | libc::BPF_K, 0, answer));
        }
        program.push(line(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
        let install = move || {
            let all = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
            // SAFETY: the kernel copies the program, which is as long as is said.
            let installed = unsafe {
                libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                    && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as c_ulong, &raw const all)
                        == 0
            };
            if installed { Ok(()) } else { Err(io::Error::last_os_error()) }
        };
        // SAFETY: two system calls.
        unsafe { command.pre_exec(install) };
    }
}
