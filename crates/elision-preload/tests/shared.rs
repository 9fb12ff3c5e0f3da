//! What was read from one file and is written to another: the files share blocks where the file system can, and nobody can tell.
#![allow(unsafe_code)] // Limits, signals.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::image::{Image, mounts_of_our_own};
use common::{Dice, counter, text};
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

fn directory() -> tempfile::TempDir {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(place).unwrap()
}

fn compiled(directory: &Path) -> PathBuf {
    common::compile(directory, "shared", &["-O1", "-g", "-Wextra", "-Werror"])
}

/// Do files share blocks there?
fn shares(dir: &Path) -> bool {
    let (one, other) = (dir.join("one"), dir.join("other"));
    fs::write(&one, [7; 4096]).unwrap();
    let (from, to) = (fs::File::open(&one).unwrap(), fs::File::create(&other).unwrap());
    // SAFETY: no memory is involved.
    let shared = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0;
    fs::remove_file(one).unwrap();
    fs::remove_file(other).unwrap();
    shared
}

/// The helper's line is there when the file can be locked.
fn shared_bytes(stats: &Path) -> u64 {
    fs::File::open(stats).unwrap().lock().unwrap();
    counter(&fs::read_to_string(stats).unwrap(), "shared_bytes")
}

type Left = BTreeMap<String, Vec<u8>>;

/// What a history prints, and the files that it leaves. `beside` is called while it plays.
fn played(
    program: &Path,
    seed: u64,
    stats: Option<&Path>,
    beside: impl FnOnce(&Path, u32, &AtomicBool) + Send,
) -> (String, Left) {
    let place = directory();
    let mut command = Command::new(program);
    command.args(["history", &seed.to_string(), "250"]).current_dir(&place).env_remove("LD_PRELOAD");
    if let Some(stats) = stats {
        common::offer_everything(&mut command, stats);
    }
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, done) = (child.id(), AtomicBool::new(false));
    let output = std::thread::scope(|scope| {
        scope.spawn(|| beside(place.path(), pid, &done));
        let output = child.wait_with_output().unwrap();
        done.store(true, Relaxed);
        output
    });
    assert!(output.status.success(), "seed {seed}: {}", text(&output));
    let files = fs::read_dir(&place).unwrap().map(|entry| entry.unwrap());
    let files = files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()));
    (String::from_utf8(output.stdout).unwrap(), files.collect())
}

/// Histories come out as without the drop-in. The least that is shared in each, where blocks can be.
fn come_out_the_same(
    seeds: std::ops::Range<u64>,
    least: u64,
    beside: impl Fn(&Path, u32, &AtomicBool) + Sync,
) {
    let made = directory();
    let (program, stats) = (compiled(made.path()), made.path().join("stats"));
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (plain, plain_left) = played(&program, seed, None, |_, _, _| ());
        let (ours, left) = played(&program, seed, Some(&stats), &beside);
        for (line, (plain, ours)) in plain.lines().zip(ours.lines()).enumerate() {
            assert_eq!(plain, ours, "seed {seed}, line {line}");
        }
        assert!(plain.len() == ours.len() && plain_left == left, "seed {seed}");
    }
    let shared = shared_bytes(&stats);
    println!("{shared} bytes shared in {count} histories");
    if shares(made.path()) {
        assert!(shared >= count * least, "hardly anything was shared");
    } else {
        assert_eq!(shared, 0);
    }
}

#[test]
fn nobody_can_tell() {
    come_out_the_same(0..12, 100_000, |_, _, _| ());
}

/// Guards go at any moment, between the plan of a write and its end, too.
#[test]
fn others_want_the_files() {
    come_out_the_same(100..106, 20_000, |place, pid, done| {
        common::want_files(place, Dice(u64::from(pid) + 1), done);
    });
}

fn status(process: &str, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t").map(str::to_owned))
}

fn children(of: &str, called: &str) -> Vec<String> {
    let processes =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    processes
        .filter(|process| process.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|process| {
            status(process, "PPid").as_deref() == Some(of)
                && status(process, "Name").as_deref() == Some(called)
        })
        .collect()
}

/// Kills the helper of a program at random moments, until it is done. How often.
fn kill_helpers(pid: u32, done: &AtomicBool) -> u32 {
    let (mut dice, mut kills) = (Dice(u64::from(pid) + 1), 0);
    while !done.load(Relaxed) {
        for supervisor in children(&pid.to_string(), "elision-watch") {
            for helper in children(&supervisor, "elision") {
                // The moments are random, and no event could stand for them.
                std::thread::sleep(Duration::from_micros(dice.below(3_000)));
                // SAFETY: no memory is involved.
                unsafe { libc::kill(helper.parse().unwrap(), libc::SIGKILL) };
                kills += 1;
            }
        }
    }
    kills
}

#[test]
fn the_helper_is_killed() {
    come_out_the_same(200..202, 0, |_, pid, done| _ = kill_helpers(pid, done));
    let made = directory();
    let [from, to, stats] = ["from", "to", "stats"].map(|name| made.path().join(name));
    make(&from, SIZE);
    let mut command = Command::new(compiled(made.path()));
    common::offer_everything(&mut command, &stats);
    command.arg("again").args([&from, &to]).arg("300");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, done) = (child.id(), AtomicBool::new(false));
    let (output, kills) = std::thread::scope(|scope| {
        let kills = scope.spawn(|| kill_helpers(pid, &done));
        let output = child.wait_with_output().unwrap();
        done.store(true, Relaxed);
        (output, kills.join().unwrap())
    });
    println!("killed {kills} times");
    assert!(output.status.success(), "{}", text(&output));
}

const SIZE: usize = (12 << 20) + 123;

fn make(path: &Path, len: usize) {
    let mut dice = Dice(11);
    let bytes: Vec<u8> =
        std::iter::repeat_with(|| dice.below(1 << 62).to_le_bytes()).flatten().take(len).collect();
    let mut file = fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    file.sync_all().unwrap();
}

/// Copies without the drop-in and with it. The bytes that were shared; `None` where files share nothing.
fn copied(how: &str, environment: &[(&str, &str)], prepare: impl FnOnce(&Path)) -> Option<u64> {
    let made = directory();
    let program = compiled(made.path());
    let [from, plain, ours, stats] = ["from", "plain", "ours", "stats"].map(|name| made.path().join(name));
    make(&from, SIZE);
    prepare(&from);
    let run = |to: &Path, environment: &[(&str, &str)]| {
        if how == "over" {
            make(to, SIZE);
        }
        let mut command = Command::new(&program);
        command.arg("copy").arg(how).arg(&from).arg(to).env_remove("LD_PRELOAD");
        let output = command.envs(environment.iter().copied()).output().unwrap();
        assert!(output.status.success(), "{how}: {}", text(&output));
        text(&output)
    };
    let library = common::library();
    let [library, path] = [&library, &stats].map(|path| path.to_str().unwrap());
    let with = [("LD_PRELOAD", library), ("ELISION_STATS", path), ("ELISION_VERBOSE", "1")];
    // First, or the source would not be as it was prepared.
    let said = run(&ours, &[&with, environment].concat());
    run(&plain, &[]);
    assert!(fs::read(&plain).unwrap() == fs::read(&ours).unwrap(), "{how}");
    let [plain, ours] = [plain, ours].map(|path| {
        fs::File::open(&path).unwrap().sync_all().unwrap();
        path.metadata().unwrap()
    });
    // The pieces of a file take a block or two to list.
    assert!(ours.blocks() <= plain.blocks() + 32, "{how}: {} blocks, {}", ours.blocks(), plain.blocks());
    assert!(ours.mtime() > 1_000_000_000 && ours.mode() == plain.mode());
    let shared = shared_bytes(&stats);
    assert_eq!(said.contains(&format!(": shared {shared} bytes that")), shared > 0, "{said}");
    if shares(made.path()) {
        return Some(shared);
    }
    assert_eq!(shared, 0);
    println!("skipped: files share no blocks here");
    None
}

#[test]
fn copies_share_what_was_not_altered() {
    for (how, percent) in [
        ("whole", 99),
        ("pieces", 99),
        ("edited", 99),
        ("synchronous", 80),
        ("vector", 0),
        ("appended", 0),
        ("over", 0),
    ] {
        let Some(shared) = copied(how, &[], |_| ()) else { continue };
        println!("{how}: {shared} of {SIZE}");
        assert!(shared >= SIZE as u64 * percent / 100 && (percent > 0 || shared == 0), "{how}: {shared}");
    }
}

#[test]
fn a_user_can_forbid_it() {
    if let Some(shared) = copied("whole", &[("ELISION_SHARE", "off")], |_| ()) {
        assert_eq!(shared, 0);
    }
}

/// The kernel would write it to the device first.
#[test]
fn what_is_not_on_the_device_is_copied() {
    let shared = copied("whole", &[], |from| {
        let bytes = fs::read(from).unwrap();
        // In place: XFS writes a file that was emptied when it is closed.
        fs::File::options().write(true).open(from).unwrap().write_all_at(&bytes, 0).unwrap();
    });
    if let Some(shared) = shared {
        assert_eq!(shared, 0);
    }
}

/// Checksums of one and none of the other: the kernel refuses.
#[test]
fn what_the_kernel_refuses_is_written() {
    if !mounts_of_our_own() {
        return;
    }
    let Some(image) = Image::btrfs("rw") else { return };
    let made = directory();
    let (program, stats) = (compiled(made.path()), made.path().join("stats"));
    let [from, folder] = ["from", "folder"].map(|name| image.root.join(name));
    make(&from, SIZE);
    fs::create_dir(&folder).unwrap();
    let attributed = common::image::tool().args(["chattr", "+C"]).arg(&folder).status();
    if !attributed.is_ok_and(|status| status.success()) {
        return println!("skipped: no chattr");
    }
    let to = folder.join("to");
    let mut command = Command::new(&program);
    common::offer_everything(&mut command, &stats);
    let output = command.args(["copy", "edited"]).args([&from, &to]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let mut expected = fs::read(&from).unwrap();
    (SIZE / 20..SIZE).step_by(SIZE / 10).for_each(|at| expected[at] = expected[at].wrapping_add(1));
    assert!(fs::read(&to).unwrap() == expected);
    assert_eq!(shared_bytes(&stats), 0);
}

/// What is shared needs no room, what was altered does: then the write is as short as any, and right as far as it came.
#[test]
fn a_full_file_system() {
    if !mounts_of_our_own() {
        return;
    }
    let Some(image) = Image::btrfs("rw") else { return };
    let made = directory();
    let (program, stats) = (compiled(made.path()), made.path().join("stats"));
    let [from, to] = ["from", "to"].map(|name| image.root.join(name));
    make(&from, SIZE);
    let mut rest = fs::File::create(image.root.join("rest")).unwrap();
    for piece in [1 << 20, 4096] {
        while std::io::Write::write(&mut rest, &vec![1; piece]).is_ok() {}
        let _ = rest.sync_all();
    }
    let mut command = Command::new(&program);
    common::offer_everything(&mut command, &stats);
    let output = command.arg("full").args([&from, &to]).output().unwrap();
    println!("{}", text(&output));
    assert!(output.status.success(), "{}", text(&output));
}
