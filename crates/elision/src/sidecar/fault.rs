//! Mistakes of ours that show: a panic of the sidecar or of its parent, or the sidecar's death of a signal that nobody has sent.
//!
//! They lose nothing, since there will be another sidecar (see [`super::supervise`]), and so would hardly be noticed. In the project's
//! tests, and in debug builds of the drop-in, they are to be: what has happened is said, and the program ended. Nobody else has this
//! done: std's hook belongs to the program.

use super::launch::{self, PROGRAM};
use super::processes;
use crate::sys::file::{self, ProcPath, decimal};
use crate::sys::task;
use core::sync::atomic::Ordering::*;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;

type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;

/// What std's hook was before. Set: mistakes are watched for.
static BEFORE: OnceLock<Box<Hook>> = OnceLock::new();

/// From now on mistakes end the program.
pub fn watch() {
    if BEFORE.get().is_none() && BEFORE.set(panic::take_hook()).is_ok() {
        panic::set_hook(Box::new(on_panic));
    }
}

fn on_panic(info: &PanicHookInfo<'_>) {
    if !launch::is_helper() {
        if let Some(before) = BEFORE.get() {
            before(info);
        }
        return;
    }
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    let what = info.payload().downcast_ref::<&str>().copied().unwrap_or("panic");
    tell(&[what.as_bytes(), b" at ", file.as_bytes(), b":"], line.into());
    task::exit();
}

/// In the supervisor: the sidecar was killed by this signal.
pub(super) fn sidecar_died(signal: i32) {
    // All others are blocked, but for those that the kernel has for what a process does itself.
    if signal != libc::SIGKILL && BEFORE.get().is_some() {
        tell(&[b"signal "], signal as u64);
    }
}

/// Says so where the program's errors go, and ends the program.
fn tell(parts: &[&[u8]], number: u64) {
    let program = PROGRAM.load(Acquire);
    if let Ok(errors) = processes::open(&ProcPath::new(program, "fd", Some(2)), libc::O_WRONLY) {
        let mut digits = [0; 20];
        let number = decimal(number, &mut digits);
        let first: &[u8] = b"elision: the helper has failed: ";
        for part in [first].iter().chain(parts).chain(&[number, b"\n"]) {
            let _ = file::write(errors, part);
        }
    }
    task::send_signal(program, libc::SIGABRT);
}

#[cfg(test)]
mod tests {
    use super::super::channel::{Call, Op};
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    const PART: &str = "TEST_FAULT";

    /// What the other test runs as a program of its own.
    #[test]
    fn a_sidecar_panics() {
        if std::env::var_os(PART).is_some() {
            watch();
            match Call::new(Op::Fail, true) {
                Some(mut call) => drop(call.send()),
                None => println!("skipped: there is no helper here"),
            }
        }
    }

    #[test]
    fn a_panic_of_the_sidecar_ends_a_test() {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sidecar::fault::tests::a_sidecar_panics", "--nocapture"])
            .env(PART, "1")
            .output()
            .unwrap();
        if String::from_utf8_lossy(&ended.stdout).contains("skipped") {
            return println!("skipped: there is no helper here");
        }
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(errors.contains("the helper has failed: as a test wants at "), "{errors}");
        assert!(errors.contains("serve.rs:"), "{errors}");
    }
}
