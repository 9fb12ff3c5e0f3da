//! Panics in the helper or the supervisor: see [`crate::shared::fault`].
//!
//! Unwinding without libc would leave std's locks held, and the program would wait on them. So a panic ends at its first step
//! (see [`Stack`](crate::shared::stack::Stack)), unless faults are watched.

use crate::shared::control;
use crate::shared::fault::{self, FAILED, tell};
use elision_sys::file::decimal;
use elision_sys::task;
use std::panic::{self, PanicHookInfo};
use std::sync::OnceLock;

type Hook = dyn Fn(&PanicHookInfo<'_>) + Send + Sync;

static BEFORE: OnceLock<Box<Hook>> = OnceLock::new();

pub fn watch() {
    if BEFORE.get().is_none() && BEFORE.set(panic::take_hook()).is_ok() {
        panic::set_hook(Box::new(on_panic));
        fault::watch();
    }
}

fn on_panic(info: &PanicHookInfo<'_>) {
    if !control::is_helper() {
        if let Some(before) = BEFORE.get() {
            before(info);
        }
        return;
    }
    let (file, line) = info.location().map_or(("?", 0), |at| (at.file(), at.line()));
    let what = info.payload().downcast_ref::<&str>().copied().unwrap_or("panic");
    let mut digits = [0; 20];
    let line = decimal(line.into(), &mut digits);
    tell(&[FAILED, what.as_bytes(), b" at ", file.as_bytes(), b":", line]);
    task::exit();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::call::Call;
    use crate::client::fork;
    use crate::client::offer::{FileFacts, Judged, TransferOptions};
    use crate::client::read;
    use crate::shared::requests::Op;
    use crate::stats::Reason;
    use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use elision_sys::{PAGE, memory};
    use std::os::fd::AsRawFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    const WATCHED: &str = "TEST_WATCHED";

    /// Runs the first test as its own program. `None`: there is no helper here.
    fn run(watched: &str) -> Option<Output> {
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "client::fault::tests::a_helper_panics", "--nocapture"])
            .env(WATCHED, watched)
            .env("RUST_BACKTRACE", "1")
            .output()
            .unwrap();
        if String::from_utf8_lossy(&ended.stdout).contains("skipped") {
            println!("skipped: there is no helper here");
            return None;
        }
        Some(ended)
    }

    #[allow(unsafe_code)]
    fn read(file: &tempfile::NamedTempFile, len: usize) -> &'static [u8] {
        let forks = fork::forks();
        let (judged, placed) = (Judged::BySize, false);
        let options = TransferOptions {
            offset: Some(0),
            owned: false,
            forks,
            exclusive: true,
            least: PAGE,
            judged,
            placed,
        };
        let addr = memory::allocate(len, false).unwrap();
        // SAFETY: allocated just now, and never freed.
        unsafe {
            let fd = file.as_raw_fd();
            let deferred = read::associate(fd, &FileFacts::of(fd, 0).unwrap(), addr, len, options);
            if deferred.map(read::DeferredRead::finish) != Some(Ok(len)) {
                assert_eq!(elision_sys::file::pread(fd, addr, len, 0), Ok(len));
            }
            core::slice::from_raw_parts(addr as *const u8, len)
        }
    }

    #[test]
    fn a_helper_panics() {
        let Ok(watched) = std::env::var(WATCHED) else { return };
        static CALLED: AtomicBool = AtomicBool::new(false);
        match watched.as_str() {
            "yes" => watch(),
            _ => panic::set_hook(Box::new(|_| CALLED.store(true, SeqCst))),
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..1usize << 20).map(|at| (at / 7) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        let kept = read(&file, content.len());
        let Some(mut call) = Call::new(Op::Fail, true) else { return println!("skipped") };
        assert_eq!(call.send(), Some(Reason::Helper));
        drop(call);
        assert!(!CALLED.load(SeqCst));
        // Hangs if the helper died holding std's hook lock.
        drop(panic::take_hook());
        assert!(kept == content && read(&file, content.len()) == content);
        assert_eq!(crate::client::memory::validate().map(drop), Ok(()));
        println!("went on");
    }

    #[test]
    fn a_panic_of_the_helper_is_survived() {
        let Some(ended) = run("no") else { return };
        assert!(ended.status.success(), "{ended:?}");
        assert!(String::from_utf8_lossy(&ended.stdout).contains("went on"), "{ended:?}");
    }

    #[test]
    fn a_panic_of_the_helper_ends_a_test() {
        let Some(ended) = run("yes") else { return };
        assert_eq!(ended.status.signal(), Some(libc::SIGABRT), "{ended:?}");
        let errors = String::from_utf8_lossy(&ended.stderr);
        assert!(errors.contains("the helper has failed: as a test wants at "), "{errors}");
        assert!(errors.contains("serve.rs:"), "{errors}");
    }
}
