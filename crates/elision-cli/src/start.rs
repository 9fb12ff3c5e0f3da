//! What this process was started with, and handing it down to a program.
//!
//! A command that stands in for a program starts it as it was itself started. Two things come between: before `main`, Rust's runtime
//! ignores SIGPIPE and opens /dev/null on missing standard descriptors; and the command needs SIGCHLD, and blocks signals. So a record
//! is taken before the runtime starts.
#![allow(unsafe_code)] // Dispositions and masks have no safe wrapper; and code runs before main, and between fork and exec.

use std::ffi::c_int;
use std::mem::zeroed;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::OnceLock;

use rustix::process::{Signal, set_parent_process_death_signal};

#[derive(Clone, Copy)]
struct Start {
    /// Those of SIGPIPE and SIGCHLD that were ignored.
    ignored: [Option<c_int>; 2],
    /// The blocked signals.
    mask: libc::sigset_t,
    /// The standard descriptors that were closed.
    closed: [bool; 3],
}

static START: OnceLock<Start> = OnceLock::new();

#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_START: extern "C" fn() = record;

extern "C" fn record() {
    let ignored = [libc::SIGPIPE, libc::SIGCHLD].map(|signal| is_ignored(signal).then_some(signal));
    // SAFETY: all zeroes is a valid set; without a new mask the call only writes the old one; F_GETFD touches no memory.
    START.get_or_init(|| unsafe {
        let mut mask = zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, ptr::null(), &mut mask);
        Start { ignored, mask, closed: [0, 1, 2].map(|fd| libc::fcntl(fd, libc::F_GETFD) < 0) }
    });
}

/// Does this process ignore the signal?
pub fn is_ignored(signal: c_int) -> bool {
    // SAFETY: all zeroes is a valid sigaction; without a new action the call only writes the old one.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        libc::sigaction(signal, ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Makes `command` start with the signals and standard descriptors that this process was started with. For a command whose standard
/// streams are inherited.
pub fn hand_down(command: &mut Command) {
    let Some(&start) = START.get() else { return };
    let restore = move || {
        // SAFETY: these calls are async-signal-safe. A descriptor that was closed is the runtime's /dev/null, which nothing here uses.
        unsafe {
            for signal in start.ignored.into_iter().flatten() {
                libc::signal(signal, libc::SIG_IGN);
            }
            for fd in (0..3).filter(|&fd| start.closed[fd as usize]) {
                libc::close(fd);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &start.mask, ptr::null_mut());
        }
        Ok(())
    };
    // SAFETY: `restore` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(restore) };
}

/// Makes the kernel kill the command should this process die first.
pub fn die_with_us(command: &mut Command) {
    // SAFETY: one system call.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
}

/// Makes sure that children can be waited for: while SIGCHLD is ignored, as may be inherited, the kernel reaps them itself.
pub fn keep_children() {
    // SAFETY: restores the default.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}
