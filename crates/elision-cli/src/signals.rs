//! Signals: what this process was started with, holding them back, passing them on, and dying of one.
//!
//! A command that stands in for a program owes it exactly the surroundings it was given itself. Two things
//! come between: Rust's runtime, which ignores SIGPIPE and opens /dev/null on missing standard descriptors
//! before `main` runs, and the supervisor, which needs SIGCHLD and wants to see signals before they act. The
//! first is undone from a record taken before the runtime starts; the second works by the signal mask alone,
//! so that no handler is ever installed and a held signal cannot get lost.
// Signal sets, the mask and dispositions have no safe wrapper; the record must be taken in .init_array; and
// what happens between fork and exec is unsafe by nature.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::Relaxed};
use std::{io, process};

static PIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);
/// Bit n: descriptor n (of 0, 1, 2) was closed.
static WERE_CLOSED: AtomicU8 = AtomicU8::new(0);

#[used]
#[unsafe(link_section = ".init_array")]
static RECORD_START: extern "C" fn() = record_start;

extern "C" fn record_start() {
    // SAFETY: all zeroes is a valid sigaction, and sigaction with no new action only writes the old one.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        if libc::sigaction(libc::SIGPIPE, ptr::null(), &mut action) == 0 {
            PIPE_WAS_IGNORED.store(action.sa_sigaction == libc::SIG_IGN, Relaxed);
        }
    }
    // SAFETY: F_GETFD takes any number and touches no memory.
    let closed = (0..3).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0);
    WERE_CLOSED.store(closed.fold(0, |bits, fd| bits | 1 << fd), Relaxed);
}

/// Makes `command` start with SIGPIPE and the standard descriptors as this process got them. For a command
/// whose standard streams are inherited.
pub fn hand_down_start(command: &mut Command) {
    let restore = || {
        // SAFETY: signal and close are async-signal-safe. A descriptor that was closed at the start is
        // the runtime's /dev/null now, which nothing here uses.
        unsafe {
            if PIPE_WAS_IGNORED.load(Relaxed) {
                libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            }
            for fd in (0..3).filter(|fd| WERE_CLOSED.load(Relaxed) >> fd & 1 == 1) {
                libc::close(fd);
            }
        }
        Ok(())
    };
    // SAFETY: `restore` makes only async-signal-safe calls and allocates nothing.
    unsafe { command.pre_exec(restore) };
}

/// Makes the kernel kill the command should this process die first.
pub fn die_with_us(command: &mut Command) {
    let ask = || {
        // SAFETY: PR_SET_PDEATHSIG takes an integer.
        match unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: `ask` is one system call.
    unsafe { command.pre_exec(ask) };
}

/// A signal that was held back.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Its number.
    pub signal: c_int,
    /// Was it sent by a process (kill and its kin)? If not, by the kernel: for a key on the terminal, to
    /// every process of the terminal's foreground group.
    pub by_process: bool,
}

/// Signals blocked in the thread that made this, and in all that it starts. They stay so: the process
/// ends soon after.
#[derive(Clone, Copy)]
pub struct Held {
    set: libc::sigset_t,
    mask_before: libc::sigset_t,
    child_before: libc::sigaction,
}

impl Held {
    /// Holds `signals`, and makes sure that children can be waited for (with SIGCHLD ignored, as it may be
    /// inherited, the kernel reaps them itself).
    pub fn new(signals: impl IntoIterator<Item = c_int>) -> Held {
        // SAFETY: sigset_t and sigaction are plain data that the calls below fill in; every pointer is to a
        // local of the right type.
        unsafe {
            let mut held = Held { set: zeroed(), mask_before: zeroed(), child_before: zeroed() };
            libc::sigemptyset(&mut held.set);
            for signal in signals {
                libc::sigaddset(&mut held.set, signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &held.set, &mut held.mask_before);
            let mut default: libc::sigaction = zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(libc::SIGCHLD, &default, &mut held.child_before);
            held
        }
    }

    /// Waits for the next of the held signals.
    pub fn next(&self) -> Arrival {
        loop {
            let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: reads one set and writes one siginfo_t.
            let signal = unsafe { libc::sigwaitinfo(&self.set, info.as_mut_ptr()) };
            if signal > 0 {
                // SAFETY: zeroed, hence initialised, and filled in on success.
                let by_process = unsafe { info.assume_init() }.si_code <= 0;
                return Arrival { signal, by_process };
            }
        }
    }

    /// Makes `command` start with the mask and the SIGCHLD disposition from before.
    pub fn hand_down_before(&self, command: &mut Command) {
        let before = *self;
        let restore = move || {
            // SAFETY: both calls are async-signal-safe, and their arguments were filled in by the kernel.
            unsafe {
                libc::sigaction(libc::SIGCHLD, &before.child_before, ptr::null_mut());
                libc::sigprocmask(libc::SIG_SETMASK, &before.mask_before, ptr::null_mut());
            }
            Ok(())
        };
        // SAFETY: `restore` makes only async-signal-safe calls and allocates nothing.
        unsafe { command.pre_exec(restore) };
    }
}

/// The last signal that was noted, or 0.
static NOTED: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: c_int) {
    NOTED.store(signal, Relaxed);
}

/// From now on signals that would end this process are noted, unless they are ignored; calls that wait are interrupted. And children can
/// be waited for, as they cannot while SIGCHLD is ignored.
pub fn note_endings() {
    // SAFETY: restores the default.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: reads and writes locals; the handler stores to an atomic, which is safe anywhere.
        unsafe {
            let mut action: libc::sigaction = zeroed();
            if libc::sigaction(signal, ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_DFL
            {
                action.sa_sigaction = note as *const () as usize;
                action.sa_flags = 0;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    }
}

/// Waits until there is something to be read from a descriptor, or its other end is closed, or a signal is noted, or for so many
/// milliseconds. (By poll, which every program of Rust's calls at its start: no filter forbids it.)
pub fn wait_readable(fd: BorrowedFd<'_>, milliseconds: c_int) -> bool {
    let mut wanted = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: reads and writes one pollfd.
    unsafe { libc::poll(&mut wanted, 1, milliseconds) > 0 }
}

/// The signal that was noted, if any.
pub fn noted() -> Option<c_int> {
    Some(NOTED.load(Relaxed)).filter(|&signal| signal != 0)
}

/// Sends a signal to a process. That it is gone already is no error here.
pub fn send(pid: u32, signal: c_int) {
    // SAFETY: kill takes two integers.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Ends this process by `signal`, so that whoever waits for it sees what the program died of. Leaves no core
/// of its own: the program's is the one that matters.
pub fn die_by(signal: c_int) -> ! {
    // SAFETY: integers and pointers to locals; from here on nothing of this process runs that could mind.
    unsafe {
        let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
        // A core_pattern that is a pipe does not heed the limit.
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
    send(process::id(), signal);
    // The first process of a container survives its own signals.
    exit(128 + signal)
}
