//! Files that can never change: deferred without a lease, for everybody. And those of an overlay's lower layer, which change by being copied
//! up.

#[allow(dead_code)] // Of what the tests share, these use a part.
mod common;

use common::image::{self, Image, mounts_of_our_own};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

const NOBODY: u32 = 65534;

fn open_to_all(directory: &Path) {
    std::fs::set_permissions(directory, PermissionsExt::from_mode(0o777)).unwrap();
}

fn deferred(program: &Path, arguments: &[&str], user: Option<u32>) -> Option<u64> {
    let stats = statistics(program, arguments, user)?;
    // Nothing waits, and a fork needs no memory.
    assert_eq!(common::counter(&stats, "materialised_bytes"), 0, "{stats}");
    Some(common::counter(&stats, "deferred_bytes"))
}

/// Runs the program without the drop-in and with it, as this user; the same must come of it. None, and why is said, if that user may not
/// run it.
fn statistics(program: &Path, arguments: &[&str], user: Option<u32>) -> Option<String> {
    let made = tempfile::tempdir().unwrap();
    open_to_all(made.path());
    let stats = made.path().join("stats");
    let outputs = [false, true].map(|with| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&made);
        if with {
            common::offer_everything(&mut command, &stats);
        }
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        command.output()
    });
    let [Ok(plain), Ok(ours)] = outputs else {
        println!("skipped: user {user:?} may not run {}", program.display());
        return None;
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(plain.status.success(), "{}: {}", plain.status, text(&plain.stdout));
    if text(&ours.stderr).contains("cannot be preloaded") {
        println!("skipped: user {user:?} may not read the drop-in");
        return None;
    }
    assert_eq!((ours.status, text(&ours.stdout)), (plain.status, text(&plain.stdout)), "{arguments:?}");
    Some(std::fs::read_to_string(&stats).unwrap_or_default())
}

/// As root, if the test is run by root, and as an ordinary user who owns none of it.
fn users() -> Vec<Option<u32>> {
    // SAFETY: no memory.
    #[allow(unsafe_code)]
    let root = unsafe { libc::geteuid() } == 0;
    if root { vec![None, Some(NOBODY)] } else { vec![None] }
}

const SIZE: usize = 1 << 20;

#[test]
fn of_file_systems_that_are_read_only_by_nature() {
    if !mounts_of_our_own() {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    open_to_all(made.path());
    let program = common::compile(made.path(), "immutable", &["-O1", "-Wextra", "-Werror"]);
    let content = made.path().join("content");
    std::fs::create_dir(&content).unwrap();
    let mut dice = common::Dice(7);
    // One that is compressed well, one that is not and ends in a part of a page, and one that ends in a hole.
    let noise: Vec<u8> = (0..SIZE + 100).map(|_| dice.below(256) as u8).collect();
    std::fs::write(content.join("noise"), noise).unwrap();
    std::fs::write(content.join("even"), (0..SIZE).map(|at| (at / 1000) as u8).collect::<Vec<_>>()).unwrap();
    std::fs::write(content.join("sparse"), [1; 100]).unwrap();
    let sparse = std::fs::File::options().write(true).open(content.join("sparse")).unwrap();
    sparse.set_len(SIZE as u64).unwrap();
    for image in ["squashfs", "erofs", "iso9660"].into_iter().filter_map(|kind| Image::of(kind, &content)) {
        for (user, name) in
            users().into_iter().flat_map(|user| ["noise", "even", "sparse"].map(|name| (user, name)))
        {
            let path = image.root.join(name);
            let Some(deferred) = deferred(&program, &["file", path.to_str().unwrap()], user) else {
                continue;
            };
            // The program reads it twice.
            assert!(deferred >= 2 * (SIZE as u64 - 8192), "{} as {user:?}: {deferred}", path.display());
        }
    }
}

/// Of its owner's, under a lease. Nothing of the same file once it was copied up.
#[test]
fn of_the_lower_layer_of_an_overlay() {
    if !mounts_of_our_own() {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    open_to_all(made.path());
    let program = common::compile(made.path(), "immutable", &["-O1", "-Wextra", "-Werror"]);
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|name| made.path().join(name));
    for directory in [&lower, &upper, &work, &root] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(lower.join("file"), (0..SIZE).map(|at| (at / 1000) as u8).collect::<Vec<_>>()).unwrap();
    let [lower, upper, work] = [&lower, &upper, &work].map(|layer| layer.display());
    let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
    let mount = ["mount", "-t", "overlay", "-o", &options, "overlay", root.to_str().unwrap()];
    if !image::tool().args(mount).status().unwrap().success() {
        return println!("skipped: no overlay");
    }
    let path = root.join("file");
    let run = |user| statistics(&program, &["file", path.to_str().unwrap()], user);
    for user in users() {
        let Some(stats) = run(user) else { continue };
        let deferred = common::counter(&stats, "deferred_bytes");
        let expected = if user.is_none() { 2 * SIZE as u64 - 8192 } else { 0 };
        assert!(deferred >= expected && (deferred > 0) == (expected > 0), "as {user:?}: {stats}");
    }
    open_to_all(&path);
    let stats = run(None).unwrap();
    assert_eq!(common::counter(&stats, "deferred_bytes"), 0, "{stats}");
    assert!(common::counter(&stats, "file_system") > 0, "{stats}");
    assert!(image::tool().args(["umount", "--lazy", root.to_str().unwrap()]).status().unwrap().success());
}

/// fs-verity: where the file system was made for it.
#[test]
fn of_files_that_are_verified() {
    if !mounts_of_our_own() {
        return;
    }
    let made = tempfile::tempdir().unwrap();
    open_to_all(made.path());
    let program = common::compile(made.path(), "immutable", &["-O1", "-Wextra", "-Werror"]);
    let Some(image) = Image::ext4_with("verity") else { return };
    let path = image.root.join("file");
    std::fs::write(&path, (0..SIZE).map(|at| (at / 1000) as u8).collect::<Vec<_>>()).unwrap();
    if let Err(error) = image.verify(&path) {
        return println!("skipped: no fs-verity: {error}");
    }
    for user in users() {
        let Some(deferred) = deferred(&program, &["file", path.to_str().unwrap()], user) else { continue };
        assert!(deferred >= 2 * (SIZE as u64 - 8192), "as {user:?}: {deferred}");
    }
}

/// Without F_SEAL_SHRINK it could be cut, and F_SEAL_FUTURE_WRITE leaves those that have it mapped.
#[test]
fn of_memory_files_that_are_sealed() {
    let made = tempfile::tempdir().unwrap();
    open_to_all(made.path());
    let program = common::compile(made.path(), "immutable", &["-O1", "-Wextra", "-Werror"]);
    for (seals, fixed) in
        [("ws", true), ("wsg", true), ("w", false), ("s", false), ("f", false), ("sfg", false), ("", false)]
    {
        for user in users() {
            let Some(deferred) = deferred(&program, &["sealed", seals], user) else { continue };
            assert_eq!(deferred > 0, fixed, "{seals} as {user:?}: {deferred}");
        }
    }
}
