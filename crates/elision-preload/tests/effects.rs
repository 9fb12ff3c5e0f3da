//! What a program does to files and memory, row by row: the same with the drop-in as without.
//!
//! Each row is one run of a small C program, of which `tests/c/effects.h` tells the form. It says what calls
//! returned, where positions are, what a third process sees. With the drop-in it must say the same, and must have deferred
//! and elided what the row is about: one whose reads are all declined would prove nothing.

#![allow(unsafe_code)] // Mounts.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::image::{self, c_path, mounts_of_our_own};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What has to happen under the drop-in for a row to prove something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Needs {
    /// Declining is the right answer.
    Nothing,
    /// All is declined because of the file system.
    Declined,
    /// Something is deferred.
    Deferral,
    /// Something is deferred, and something elided.
    Both,
}
use Needs::{Both, Declined, Deferral, Nothing};

/// A directory of one run's own, perhaps a file system's.
struct Place {
    path: PathBuf,
    mounted: bool,
    _made: tempfile::TempDir,
}

fn directory() -> Place {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::tempdir_in(place).unwrap();
    // Rows that give up being root go on in there.
    std::fs::set_permissions(&made, PermissionsExt::from_mode(0o777)).unwrap();
    Place { path: made.path().to_owned(), mounted: false, _made: made }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.mounted {
            return;
        }
        let path = c_path(&self.path);
        let deadline = Instant::now() + Duration::from_secs(10);
        // Nothing of a program may outlive it, though a helper needs a moment to notice.
        // SAFETY: a C string.
        while unsafe { libc::umount2(path.as_ptr(), 0) } != 0 {
            assert!(Instant::now() < deadline, "the file system is still in use");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Is this one of the other places that tests are run in? What does not depend on the file system is run in the default
/// one alone.
fn elsewhere() -> bool {
    let named = std::env::var_os("ELISION_TEST_DIR").is_some();
    if named {
        println!("skipped: does not depend on the file system");
    }
    named
}

/// A tmpfs of 512 pages. Flags are mount(2)'s.
fn small_tmpfs(flags: libc::c_ulong) -> Place {
    let mut place = directory();
    mount(&place.path, flags);
    place.mounted = true;
    place
}

fn mount(path: &Path, flags: libc::c_ulong) {
    let path = c_path(path);
    let (kind, options) = (c"tmpfs".as_ptr(), c"size=2m,mode=777".as_ptr());
    // SAFETY: C strings.
    let result = unsafe { libc::mount(kind, path.as_ptr(), kind, flags, options.cast()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

fn compiled(directory: &Path, family: &str) -> PathBuf {
    common::compile(directory, family, &["-O1", "-Wextra", "-Werror"])
}

fn run(program: &Path, row: &str, place: &Path, stats: Option<&Path>) -> Output {
    let mut command = Command::new(program);
    command.arg(row).arg(place).env_remove("LD_PRELOAD").stdin(Stdio::null());
    if let Some(stats) = stats {
        common::offer_everything(&mut command, stats);
    }
    command.output().unwrap()
}

/// A row, without the drop-in and with it, each time in a new directory made by `place`. What it says, or how the two differ.
fn compare(program: &Path, row: &str, needs: Needs, place: impl Fn() -> Place) -> Result<String, String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (plain_place, our_place, notes) = (place(), place(), directory());
    let stats = notes.path.join("stats");
    // Rows that change to another user still have to be able to write there.
    std::fs::write(&stats, "").unwrap();
    std::fs::set_permissions(&stats, PermissionsExt::from_mode(0o666)).unwrap();
    let plain = run(program, row, &plain_place.path, None);
    let said = text(&plain.stdout);
    if !plain.status.success() || !plain.stderr.is_empty() {
        return Err(format!("{row}, the program itself: {}\n{said}{}", plain.status, text(&plain.stderr)));
    }
    if let Some(why) = said.lines().find(|line| line.starts_with("skipped: ")) {
        println!("{row}: {why}");
        return Ok(said);
    }
    let ours = run(program, row, &our_place.path, Some(&stats));
    let counted = std::fs::read_to_string(&stats).unwrap();
    let (deferred, elided) =
        (common::counter(&counted, "deferred_bytes"), common::counter(&counted, "elided_bytes"));
    println!("{row}: {deferred} bytes deferred, {elided} elided");
    let mut wrong = differences(&said, &text(&ours.stdout)) + &text(&ours.stderr);
    if ours.status != plain.status {
        wrong += &format!("ended with {}\n", ours.status);
    }
    let for_another_reason = common::counter(&counted, "file_system") == 0;
    if needs == Declined && (deferred + elided > 0 || for_another_reason) {
        wrong += "not declined, or for another reason\n";
    }
    if matches!(needs, Deferral | Both) && deferred == 0 {
        wrong += "nothing was deferred\n";
    }
    if needs == Both && elided == 0 {
        wrong += "nothing was elided\n";
    }
    if wrong.is_empty() { Ok(said) } else { Err(format!("{row}:\n{wrong}{counted}")) }
}

fn differences(plain: &str, ours: &str) -> String {
    let (plain, ours): (Vec<_>, Vec<_>) = (plain.lines().collect(), ours.lines().collect());
    let differ = (0..plain.len().max(ours.len())).filter(|&i| plain.get(i) != ours.get(i));
    differ
        .map(|i| {
            format!("without: {}\n   with: {}\n", plain.get(i).unwrap_or(&""), ours.get(i).unwrap_or(&""))
        })
        .collect()
}

/// Some rows of a family.
fn rows(family: &str, rows: &[(&str, Needs)]) {
    rows_in(family, rows, directory);
}

/// The same in directories that `place` makes.
fn rows_in(family: &str, rows: &[(&str, Needs)], place: impl Fn() -> Place) {
    let made = directory();
    let program = compiled(&made.path, family);
    let wrong: Vec<_> =
        rows.iter().filter_map(|&(row, needs)| compare(&program, row, needs, &place).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn counts_and_positions() {
    // Where reads are atomic no vector is taken apart.
    let place = std::fs::File::open(directory().path.as_path()).unwrap();
    let on_xfs = elision_sys::file::filesystem(place.as_raw_fd()) == Ok(0x5846_5342);
    rows(
        "positions",
        &[
            ("end_of_file", Deferral),
            ("duplicates_share", Both),
            ("forks_share", Deferral),
            ("threads_share", Deferral),
            ("appending", Deferral),
            ("short_reads", Deferral),
            ("vectors", if on_xfs { Nothing } else { Both }),
            ("vectors_of_threads", Deferral),
            ("writes_of_threads", Both),
            ("writes_of_processes", Both),
            ("reads_of_threads", Nothing),
            ("reads_beside_processes", Deferral),
            ("direct", Both),
        ],
    );
}

#[test]
fn refusals() {
    rows(
        "refused",
        &[
            ("bad_descriptors", Deferral),
            ("bad_memory", Both),
            ("bad_places", Both),
            ("size_limit", Both),
            ("sealed", Nothing),
            ("unnamed", Nothing),
            ("attributes", Both),
        ],
    );
}

#[test]
fn times_modes_and_holes() {
    rows(
        "times",
        &[
            ("modified", Both),
            ("access_time", Both),
            ("no_access_time", Both),
            ("set_ids", Both),
            ("capabilities", Both),
            ("holes_read", Deferral),
            ("holes", Both),
            ("synchronous", Both),
        ],
    );
}

/// That a file had no holes was once remembered for all of it, though found for no more than what was then written. So
/// holes behind that stayed holes.
#[test]
fn holes_behind_an_earlier_write() {
    rows("times", &[("holes_behind", Both)]);
}

/// The blocks are there, and hold zeroes either way; but what was set aside is said to be a hole until it is written. It stayed
/// one when the zeroes that were read from it were written back.
#[test]
fn room_set_aside() {
    rows("times", &[("set_aside", Deferral)]);
}

#[test]
fn locks_and_leases() {
    rows(
        "locks",
        &[
            ("of_the_process", Both),
            ("of_the_description", Both),
            ("leases", Deferral),
            ("owners", Deferral),
            ("impatient", Deferral),
            ("many_small_writes", Deferral),
        ],
    );
}

/// A watcher waits for the writer to be done. The helper's copy of the descriptor would put that off, so nothing is
/// deferred in a program that watches.
#[test]
fn a_watcher_hears_of_the_close() {
    rows("locks", &[("watched", Nothing)]);
}

#[test]
fn memory_used_elsewhere() {
    rows(
        "buffers",
        &[
            ("stored_into", Both),
            ("taken_from", Both),
            ("lent", Deferral),
            ("sent_uncopied", Deferral),
            ("waited_on", Deferral),
            ("overlapping", Both),
            ("into_itself", Deferral),
            ("reshaped", Both),
        ],
    );
}

#[test]
fn files_that_change() {
    rows(
        "changes",
        &[
            ("by_others", Deferral),
            ("by_others_of_writer", Both),
            ("by_name", Deferral),
            ("by_name_of_writer", Both),
            ("by_descriptor", Both),
            ("seen", Both),
        ],
    );
}

#[test]
fn resources() {
    if elsewhere() {
        return;
    }
    rows(
        "resources",
        &[
            ("numbers", Both),
            ("released", Both),
            ("held", Deferral),
            ("few_descriptors", Both),
            ("little_space", Both),
            ("no_processes", Nothing),
            ("failed_fork", Deferral),
            ("killed_child", Deferral),
            ("slow_child", Deferral),
            ("stopped", Deferral),
            ("few_mappings", Both),
            ("no_mappings", Both),
            // A thread cancelled in a write leaves it counted: nothing more is deferred then.
            ("cancelled", Deferral),
            ("interrupted", Both),
        ],
    );
}

#[test]
fn file_systems_that_are_full_or_only_to_be_read() {
    if !elsewhere() && mounts_of_our_own() {
        rows_in("refused", &[("no_room", Both)], || small_tmpfs(0));
        rows_in("refused", &[("read_only", Deferral)], || {
            let place = small_tmpfs(0);
            // As `bytes_at` of the C programs has it.
            let bytes: Vec<u8> = (0..256 * 4096 + 123u32)
                .map(|at| ((at / 16 + 1).wrapping_mul(2_654_435_761).wrapping_add(40_503) >> 13 ^ at) as u8)
                .collect();
            std::fs::write(place.path.join("file"), bytes).unwrap();
            mount(&place.path, libc::MS_REMOUNT | libc::MS_RDONLY);
            place
        });
    }
}

/// Subvolumes of a btrfs of our own, each with a quota of 400 pages. In-place, or a traditional write would need room for
/// pages that are elided (see docs/FAULTS.md).
#[test]
fn quotas_that_are_used_up() {
    if elsewhere() || !mounts_of_our_own() {
        return;
    }
    let Some(image) = image::Image::btrfs("nodatacow") else { return };
    let btrfs = |arguments: &[&str]| {
        let output = image::tool().arg("btrfs").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    btrfs(&["quota", "enable", image.root.to_str().unwrap()]);
    rows_in("refused", &[("no_quota", Both)], || {
        let mut place = directory();
        let path = image.root.join(place.path.file_name().unwrap());
        btrfs(&["subvolume", "create", path.to_str().unwrap()]);
        btrfs(&["qgroup", "limit", "1600K", path.to_str().unwrap()]);
        place.path = path;
        place
    });
}

/// Leases on overlayfs are granted beside a shared mapping that is stored into, whose descriptor is closed. So nothing is deferred of what
/// was made there.
#[test]
fn files_made_on_an_overlay_are_left_alone() {
    if elsewhere() || !mounts_of_our_own() {
        return;
    }
    let wrong = std::cell::RefCell::new(None);
    let overlay = || {
        let mut place = directory();
        let layers = ["lower", "upper", "work"].map(|name| place.path.join(name));
        layers.iter().for_each(|layer| std::fs::create_dir(layer).unwrap());
        let [lower, upper, work] = layers.each_ref().map(|layer| layer.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        let root = place.path.join("root");
        std::fs::create_dir(&root).unwrap();
        let (path, options) = (c_path(&root), std::ffi::CString::new(options).unwrap());
        let kind = c"overlay".as_ptr();
        // SAFETY: C strings.
        if unsafe { libc::mount(kind, path.as_ptr(), kind, 0, options.as_ptr().cast()) } != 0 {
            *wrong.borrow_mut() = Some(std::io::Error::last_os_error());
            return place;
        }
        std::fs::set_permissions(&root, PermissionsExt::from_mode(0o777)).unwrap();
        (place.path, place.mounted) = (root, true);
        place
    };
    drop(overlay());
    if let Some(error) = wrong.take() {
        return println!("skipped: no overlayfs: {error}");
    }
    rows_in("positions", &[("end_of_file", Declined), ("vectors", Declined)], overlay);
    rows_in("times", &[("modified", Declined), ("set_ids", Declined)], overlay);
    rows_in(
        "changes",
        &[("by_others", Declined), ("by_others_of_writer", Declined), ("seen", Declined)],
        overlay,
    );
}

#[test]
fn access_times_however_they_are_kept() {
    if !elsewhere() && mounts_of_our_own() {
        for flags in [libc::MS_STRICTATIME, libc::MS_NOATIME] {
            rows_in("times", &[("access_time", Both), ("no_access_time", Both)], || small_tmpfs(flags));
        }
    }
}

/// Each call of a synchronous write waits for the disk: a vector was taken apart, and took as many calls as it has pieces.
#[test]
fn a_vector_that_is_written_synchronously_is_one_call() {
    let made = tempfile::tempdir().unwrap();
    let program = common::compile(made.path(), "synchronous", &["-O1", "-Wextra", "-Werror"]);
    let said = [common::With::Nothing, common::With::Least(4096)].map(|with| {
        let (output, _) = common::run(with, &program, &["file"]);
        assert!(output.status.success(), "{}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert_eq!(said[1], said[0]);
}
