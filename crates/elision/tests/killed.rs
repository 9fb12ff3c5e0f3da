//! The helper is killed at a point that is chosen: so many system calls and so many instructions after something is asked of it.
//! Another process has it run as far as that.
#![allow(unsafe_code)] // Traces a process.

mod common;

use common::{PAGE, Part, bytes, difference, directory, hear, helpers, say, supervisors};
use elision::{Buffer, File};
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::ptr;

crate::roles!(play);

const LEN: usize = (64 << 10) + 5;
const ROUNDS: u64 = 64;

fn play(role: &str, _: &[String]) {
    assert_eq!(role, "killer");
    loop {
        let line = hear();
        let numbers: Vec<i32> = line.split(' ').flat_map(str::parse).collect();
        let [pid, calls, steps] = numbers[..] else { return };
        match Traced::seize(pid) {
            None => say("refused"),
            Some(traced) => {
                say("stopped");
                traced.go_on(calls, steps);
                say("killed");
            }
        }
    }
}

/// A process that has stopped for its tracer, this one.
struct Traced {
    pid: i32,
    status: i32,
}

impl Traced {
    fn seize(pid: i32) -> Option<Traced> {
        let nothing = ptr::null_mut::<u8>();
        let mut status = 0;
        // SAFETY: no memory of ours is involved but the status.
        let stopped = unsafe {
            libc::ptrace(libc::PTRACE_SEIZE, pid, nothing, libc::PTRACE_O_TRACESYSGOOD) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, pid, nothing, nothing) == 0
                && libc::waitpid(pid, &mut status, libc::__WALL) == pid
        };
        (stopped && libc::WIFSTOPPED(status)).then_some(Traced { pid, status })
    }

    /// Until it stops again. False: it is dead.
    fn once(&mut self, how: libc::c_uint) -> bool {
        let signal = libc::WSTOPSIG(self.status) & 0x7f;
        let signal = if signal == libc::SIGTRAP || self.status >> 16 != 0 { 0 } else { signal };
        // SAFETY: as above.
        unsafe {
            libc::ptrace(how, self.pid, ptr::null_mut::<u8>(), signal as usize) == 0
                && libc::waitpid(self.pid, &mut self.status, libc::__WALL) == self.pid
                && libc::WIFSTOPPED(self.status)
        }
    }

    fn go_on(mut self, calls: i32, steps: i32) {
        // A call is two stops.
        let _ = (0..2 * calls).all(|_| self.once(libc::PTRACE_SYSCALL))
            && (0..steps).all(|_| self.once(libc::PTRACE_SINGLESTEP));
        // SAFETY: no memory is involved but the status.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            // Until it is no more: one who is about to die is not missed yet.
            while libc::waitpid(self.pid, &mut self.status, libc::__WALL) == self.pid
                && libc::WIFSTOPPED(self.status)
            {}
        }
    }
}

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    if let Some(how) = difference(got, expected) {
        panic!("{what}: {how}");
    }
}

/// Whatever is asked of it, and wherever it is killed then: no byte is lost, and nobody waits for a lease that nobody has.
#[test]
fn between_any_two_instructions() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let mut killer = Part::start("killer", &[]);
    let (path, beside) = (dir.path().join("data"), dir.path().join("beside"));
    let other = dir.path().join("other");
    fs::write(&other, bytes(7, LEN)).unwrap();
    let mut dice = 4u64;
    let mut below = |n: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % n
    };
    let mut killed = 0;
    for round in 0..ROUNDS {
        let row = round % 8;
        let mut expected = bytes(5, LEN);
        fs::write(&path, &expected).unwrap();
        // What is deferred before, and altered in the middle.
        let mut buffer = Buffer::new(LEN).unwrap();
        let file = (row < 2).then(|| open(&path, row == 1));
        if row > 1 {
            buffer =
                if matches!(row, 2 | 3 | 7) { elision::read(&path) } else { elision::edit(&path) }.unwrap();
            for at in [5000, 20_000, LEN - 3] {
                (buffer[at], expected[at]) = (1, 1);
            }
        }
        // There is one, and something that depends on it.
        let file_of_other = File::open(&other).unwrap();
        let kept = file_of_other.read(0, LEN).unwrap();
        let (calls, steps) = (below(24), below(10));
        let steps = below(1 << steps);
        let what = format!("round {round}, {calls} calls, {steps} steps");
        let found = helpers(std::process::id() as i32).first().copied();
        if let Some(pid) = found {
            // With its parent, in some rounds, which else starts the next one.
            if below(2) == 0 {
                let parent = supervisors(std::process::id() as i32)[0];
                // SAFETY: no memory is involved.
                unsafe { libc::kill(parent, libc::SIGKILL) };
            }
            killer.say(&format!("{pid} {calls} {steps}"));
            if killer.hear() == "refused" {
                return println!("skipped: this user may not trace what is not his child");
            }
            killed += 1;
        }
        match row {
            0 | 1 => assert_eq!(buffer.read_at(0, LEN, file.as_ref().unwrap(), 0).unwrap(), LEN, "{what}"),
            2 | 3 => {
                buffer.resize(40 * LEN).unwrap();
                expected.resize(40 * LEN, 0);
            }
            4 => elision::write(&path, &mut buffer).unwrap(),
            5 => elision::write(&beside, &mut buffer).unwrap(),
            6 => buffer.close(),
            _ => buffer.resize(LEN / 2 + 5).unwrap(),
        }
        if row == 7 {
            expected.truncate(LEN / 2 + 5);
        }
        if let Some(pid) = found {
            // What was asked for may be done in fewer steps.
            // SAFETY: no memory is involved.
            unsafe { libc::kill(pid, libc::SIGKILL) };
            killer.expect("killed");
        }
        assert_same(&buffer, &expected, &what);
        assert_same(&kept, &bytes(7, LEN), &what);
        if row == 4 || row == 5 {
            let written = if row == 4 { &path } else { &beside };
            assert_same(&fs::read(written).unwrap(), &expected, &what);
        }
        drop(file);
        // The next call finds that it is gone.
        drop(elision::read(&other).unwrap());
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        assert_same(&buffer, &expected, &what);
    }
    assert!(killed > ROUNDS / 2, "only {killed} helpers were there to be killed");
}

/// When it is asked for the first thing that depends on it. What it knew of the file is out of date, and is forgotten on the way. Nobody
/// calls afterwards: the helper's parent starts another, or the truncation waits until the kernel takes the pages away.
#[test]
fn while_nothing_depends_on_it_yet() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let mut killer = Part::start("killer", &[]);
    let path = dir.path().join("data");
    // (After forty in a row nobody starts another until the program asks.)
    for round in 0..36 {
        fs::write(&path, bytes(5, LEN)).unwrap();
        let mut saved = elision::edit(&path).unwrap();
        saved[5000] ^= 1;
        elision::write(&path, &mut saved).unwrap();
        saved.close();
        let expected = bytes(round + 9, LEN);
        fs::write(&path, &expected).unwrap();
        let file = File::open(&path).unwrap();
        let mut buffer = Buffer::new(LEN).unwrap();
        let Some(&pid) = helpers(std::process::id() as i32).first() else { continue };
        killer.say(&format!("{pid} {round} {}", round % 5 * 40));
        if killer.hear() == "refused" {
            return println!("skipped: this user may not trace what is not his child");
        }
        assert_eq!(buffer.read_at(0, LEN, &file, 0).unwrap(), LEN);
        // What was asked for may be done in fewer steps.
        // SAFETY: no memory is involved.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        killer.expect("killed");
        OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        assert_same(&buffer, &expected, &format!("round {round}"));
    }
}

fn open(path: &Path, only_read: bool) -> File {
    File::open_with(OpenOptions::new().read(true).write(!only_read), path).unwrap()
}
