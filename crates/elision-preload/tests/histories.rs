//! Random histories of files and buffers in a C program that knows what every call must give, without the drop-in
//! and with it.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Operations of one history.
const STEPS: &str = "1500";

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

fn compiled(directory: &Path) -> PathBuf {
    common::compile(directory, "histories", &["-O1", "-g", "-Wextra", "-Werror"])
}

/// What the histories of one test may take before the rest of them is left out. The runner ends a test after five minutes.
const AMPLE: Duration = Duration::from_secs(30);

/// The histories of some seeds, two at a time, and how many: no more than a fifth on a machine where that many take [`AMPLE`]. With
/// `stats`, under the drop-in, which adds its statistics there.
fn run(program: &Path, seeds: std::ops::Range<u64>, flags: &str, stats: Option<&Path>) -> u64 {
    let (next, played) = (AtomicU64::new(seeds.start), AtomicU64::new(0));
    let (least, begun) = (seeds.start + (seeds.end - seeds.start).div_ceil(5), Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || seed >= least && begun.elapsed() >= AMPLE {
                        break;
                    }
                    one(program, seed, flags, stats);
                    played.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    played.into_inner()
}

/// With `w` among the flags, another process wants the program's files, again and again. (To the program itself, it means
/// nothing.)
fn one(program: &Path, seed: u64, flags: &str, stats: Option<&Path>) {
    let files = directory();
    let mut command = Command::new(program);
    command.arg(seed.to_string()).arg(STEPS).arg(files.path()).arg(flags).stdin(Stdio::null());
    if let Some(stats) = stats {
        common::offer_everything(&mut command, stats);
    }
    let done = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        if flags.contains('w') {
            scope.spawn(|| {
                let (opened, refused) = common::want_files(files.path(), common::Dice(seed + 1), &done);
                OPENED.fetch_add(opened, Ordering::Relaxed);
                REFUSED.fetch_add(refused, Ordering::Relaxed);
            });
        }
        let output = command.output();
        done.store(true, Ordering::Relaxed);
        output.unwrap()
    });
    assert!(
        output.status.success(),
        "seed {seed}, flags {flags:?}, the drop-in {}: {}\n{}",
        if stats.is_some() { "preloaded" } else { "absent" },
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// How often others have opened the files, and have been told to come again.
static OPENED: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicU64 = AtomicU64::new(0);

/// The histories of some seeds under the drop-in; and something did depend on it. `false` where nothing can.
fn under_the_drop_in(seeds: std::ops::Range<u64>, flags: &str) -> bool {
    let made = directory();
    play(&compiled(made.path()), seeds, flags)
}

fn play(program: &Path, seeds: std::ops::Range<u64>, flags: &str) -> bool {
    let made = directory();
    let stats = made.path().join("stats");
    let histories = run(program, seeds, flags, Some(&stats));
    let stats = std::fs::read_to_string(&stats).unwrap();
    let of = |name| common::counter(&stats, name);
    println!(
        "{histories} histories with {flags:?}: {} bytes deferred, {} loaded, {} materialised, {} elided, {} written",
        of("deferred_bytes"),
        of("loaded_bytes"),
        of("materialised_bytes"),
        of("elided_bytes"),
        of("written_bytes"),
    );
    if let Err(error) = elision_core::probe::pagemap_scan() {
        println!("skipped: nothing is deferred by this kernel: PAGEMAP_SCAN: {error}");
        return false;
    }
    let place = elision_core::probe::file_system(made.path()).unwrap();
    if !place.supported {
        println!("skipped: nothing is deferred on {}", place.name);
        return false;
    }
    // A quarter of what is usual, or more.
    assert!(of("deferred_bytes") > histories * 2_000_000, "hardly anything was deferred");
    assert!(of("materialised_bytes") > histories * 700_000, "hardly anything was materialised");
    // (Not much is where others take the leases away.)
    let elided = if flags.contains('w') { 20_000 } else { 100_000 };
    assert!(of("elided_bytes") > histories * elided, "hardly anything was elided");
    true
}

/// The program is right about what plain calls give.
#[test]
fn without_the_drop_in() {
    let made = directory();
    let program = compiled(made.path());
    run(&program, 0..4, "s", None);
    run(&program, 4..8, "st", None);
}

#[test]
fn one_thread() {
    under_the_drop_in(0..32, "");
}

#[test]
fn interrupted_by_signals() {
    under_the_drop_in(1000..1012, "s");
}

#[test]
fn two_threads_and_signals() {
    under_the_drop_in(2000..2012, "st");
}

/// Leases are broken and refused at any moment.
#[test]
fn while_others_want_the_files() {
    let defers = under_the_drop_in(3000..3008, "w");
    let (opened, refused) = (OPENED.load(Ordering::Relaxed), REFUSED.load(Ordering::Relaxed));
    println!("others have opened files {opened} times, and were refused {refused} times");
    assert!(opened > 500 && (refused > 10 || !defers), "hardly anybody else was there: {opened}, {refused}");
}

/// What was loaded is taken away again and again, and has to be loaded anew.
#[test]
fn while_memory_is_taken_away() {
    let Some(group) = common::Group::new(None).filter(common::Group::reclaim) else {
        return println!("skipped: no cgroup whose memory can be reclaimed may be made");
    };
    let made = directory();
    let program = compiled(made.path());
    group.join();
    let mut dice = common::Dice(3);
    let (done, mut times) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        let histories = scope.spawn(|| {
            let outcome = std::panic::catch_unwind(|| play(&program, 5000..5006, ""));
            done.store(true, Ordering::Relaxed);
            outcome
        });
        while !done.load(Ordering::Relaxed) {
            assert!(group.reclaim());
            times += 1;
            // Programs' own pages are taken, too: without a pause they would do nothing but load these.
            std::thread::sleep(Duration::from_micros(dice.below(10_000)));
        }
        if let Err(panic) = histories.join().unwrap() {
            std::panic::resume_unwind(panic);
        }
    });
    println!("memory was taken away {times} times");
    assert!(times > 2, "hardly any memory was ever taken away");
}
