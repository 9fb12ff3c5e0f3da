//! `elision::write_atomic`: the old file or the new one, and what the new one takes over.
#![allow(unsafe_code)] // Limits, mounts, signals.

mod common;
#[allow(dead_code)] // Its images are for other tests.
#[path = "../../elision-preload/tests/common/image.rs"]
mod image;

use common::{Dice, Foreign, PAGE, Part, bytes, difference, directory};
use elision::Buffer;
use std::ffi::CStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

crate::roles!(play);

const MIB: usize = 1 << 20;

fn play(role: &str, arguments: &[String]) {
    match role {
        "saver" => save_for_ever(Path::new(&arguments[0])),
        _ => common::play_other(),
    }
}

/// Saves two contents in turn, of different lengths, out of one buffer.
fn save_for_ever(path: &Path) {
    let mut buffer = elision::read(path).unwrap();
    common::say("begins");
    for round in 0u64.. {
        let which = round % 2;
        buffer.resize(length(which)).unwrap();
        for at in (0..buffer.len()).step_by(64 * PAGE) {
            buffer[at] = which as u8;
        }
        elision::write_atomic(path, &mut buffer).unwrap();
    }
}

fn length(which: u64) -> usize {
    2 * MIB + which as usize * 700
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn assert_file(path: &Path, expected: &[u8], what: &str) {
    if let Some(how) = difference(&fs::read(path).unwrap(), expected) {
        panic!("{what}: {how}");
    }
}

fn is_root() -> bool {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() == 0 }
}

/// Do files share blocks there?
fn clones(dir: &Path) -> bool {
    let (one, other) = (dir.join("one"), dir.join("other"));
    fs::write(&one, bytes(1, PAGE)).unwrap();
    use std::os::fd::AsRawFd;
    let (from, to) = (fs::File::open(&one).unwrap(), fs::File::create(&other).unwrap());
    // SAFETY: no memory is involved.
    let cloned = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) } == 0;
    fs::remove_file(one).unwrap();
    fs::remove_file(other).unwrap();
    cloned
}

#[test]
fn all_that_holds_bytes_can_be_saved() {
    let dir = directory();
    let path = dir.path().join("file");
    let is = |expected: &[u8]| {
        assert_file(&path, expected, "saved");
        assert_eq!(names(dir.path()), ["file"]);
        fs::remove_file(&path).unwrap();
    };
    let mut buffer = Buffer::try_from(&b"buffer"[..]).unwrap();
    macro_rules! both {
        ($($contents:expr => $expected:expr;)*) => {$(
            elision::write(&path, $contents).unwrap();
            is($expected);
            elision::write_atomic(&path, $contents).unwrap();
            is($expected);
            elision::write_atomic_sync(&path, $contents).unwrap();
            is($expected);
        )*};
    }
    let (vector, string) = (b"vector".to_vec(), "string".to_owned());
    both! {
        &mut buffer => b"buffer";
        &buffer => b"buffer";
        &buffer[1..] => b"uffer";
        Buffer::try_from(&b"owned"[..]).unwrap() => b"owned";
        b"array" => b"array";
        *b"array" => b"array";
        "text" => b"text";
        &string => b"string";
        string.clone() => b"string";
        &vector => b"vector";
        vector.clone() => b"vector";
        vector.clone().into_boxed_slice() => b"vector";
        std::borrow::Cow::from(&vector[..]) => b"vector";
        "" => b"";
    }
}

#[test]
fn the_new_file_has_the_old_ones_rights() {
    let dir = directory();
    let path = dir.path().join("file");
    let mut buffer = Buffer::try_from(&*bytes(2, 2 * MIB)).unwrap();
    // A new file: as any new file.
    elision::write_atomic(&path, &mut buffer).unwrap();
    fs::write(dir.path().join("plain"), "").unwrap();
    let mode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().mode();
    assert_eq!(mode("file"), mode("plain"));
    for (given, kept) in [(0o640, 0o640), (0o604, 0o604), (0o1777, 0o1777), (0o4755, 0o755), (0o2771, 0o771)]
    {
        fs::set_permissions(&path, Permissions::from_mode(given)).unwrap();
        if is_root() {
            std::os::unix::fs::chown(&path, Some(4321), Some(1234)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(given)).unwrap();
        }
        let file = image::c_path(&path);
        // SAFETY: C strings, and bytes.
        let attribute = unsafe {
            libc::setxattr(file.as_ptr(), c"user.colour".as_ptr(), b"blue".as_ptr().cast(), 4, 0) == 0
        };
        let before = fs::metadata(&path).unwrap();
        buffer[5 * PAGE] ^= 1;
        elision::write_atomic(&path, &mut buffer).unwrap();
        let after = fs::metadata(&path).unwrap();
        assert_ne!(before.ino(), after.ino(), "the old file was written to");
        assert_eq!(after.mode() & 0o7777, kept, "{given:o}");
        assert_eq!((before.uid(), before.gid()), (after.uid(), after.gid()));
        let mut value = [0u8; 8];
        // SAFETY: a C string, and room.
        let length = unsafe {
            libc::getxattr(file.as_ptr(), c"user.colour".as_ptr(), value.as_mut_ptr().cast(), value.len())
        };
        assert!(!attribute || (length, &value[..4]) == (4, &b"blue"[..]));
        assert_file(&path, &buffer, "saved");
    }
}

#[test]
fn links_are_followed_and_other_names_keep_the_old_file() {
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("below")).unwrap();
    fs::write(at("below/file"), "old").unwrap();
    symlink("below/link", at("link")).unwrap();
    symlink("file", at("below/link")).unwrap();
    fs::hard_link(at("below/file"), at("beside")).unwrap();
    elision::write_atomic(at("link"), "new").unwrap();
    assert_file(&at("below/file"), b"new", "the target");
    assert_file(&at("beside"), b"old", "the other name");
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
    // To where nothing is, as for `std::fs::write`.
    symlink("nothing", at("below/open")).unwrap();
    elision::write_atomic(at("below/open"), "there").unwrap();
    assert_file(&at("below/nothing"), b"there", "what was missing");
    assert_eq!(names(&at("below")), ["file", "link", "nothing", "open"]);
    symlink("round", at("round")).unwrap();
    assert_eq!(elision::write_atomic(at("round"), "x").unwrap_err().raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn what_is_durable_is_on_the_device() {
    use std::os::fd::AsRawFd;
    let dir = directory();
    if !common::remembers(dir.path()) {
        return println!("skipped: there is no device");
    }
    let path = dir.path().join("file");
    let mut buffer = Buffer::try_from(&*bytes(2, 2 * MIB)).unwrap();
    for round in 0..3 {
        buffer[round * 9 * PAGE] ^= 1;
        elision::write_atomic_sync(&path, &mut buffer).unwrap();
        let file = fs::File::open(&path).unwrap();
        let cached = elision_sys::file::cached(file.as_raw_fd(), 0, 2 * MIB as u64).unwrap();
        assert_eq!((cached.dirty, cached.being_written), (0, 0));
    }
}

/// What a save of ten altered pages writes, where blocks can be shared.
#[test]
fn a_save_costs_what_was_altered() {
    let dir = directory();
    if !common::defers(dir.path()) || !clones(dir.path()) {
        return println!("skipped: no blocks are shared here");
    }
    type Make = fn(&Path) -> Buffer;
    let makers: [(&str, Make); 3] = [
        ("read", |path| elision::read(path).unwrap()),
        ("edit", |path| elision::edit(path).unwrap()),
        ("saved before", |path| {
            let mut buffer = Buffer::try_from(&*fs::read(path).unwrap()).unwrap();
            elision::write_atomic_sync(path, &mut buffer).unwrap();
            buffer
        }),
    ];
    for (who, make) in &makers {
        let path = dir.path().join(who);
        let mut expected = bytes(3, 16 * MIB + 77);
        fs::write(&path, &expected).unwrap();
        fs::File::open(&path).unwrap().sync_all().unwrap();
        let mut buffer = make(&path);
        for round in 0..4 {
            for page in 0..10 {
                let at = (page * 400 + round) * PAGE + 9;
                buffer[at] ^= 1;
                expected[at] ^= 1;
            }
            let before = elision::stats::snapshot();
            elision::write_atomic(&path, &mut buffer).unwrap();
            let after = elision::stats::snapshot();
            let written = after.written_bytes - before.written_bytes;
            let elided = after.elided_bytes - before.elided_bytes;
            assert!(elided > 15 * MIB as u64, "{who} {round}: {written} written, {elided} elided");
            assert_file(&path, &expected, who);
            assert!(*buffer == *expected, "{who}");
        }
        // Longer, shorter, and altered throughout.
        for len in [20 * MIB, 5 * MIB + 1] {
            buffer.resize(len).unwrap();
            expected.resize(len, 0);
            elision::write_atomic(&path, &mut buffer).unwrap();
            assert_file(&path, &expected, who);
        }
        // (Remembered: later files of that number or size would not be deferred.)
        if *who == makers[2].0 {
            expected = bytes(8, expected.len());
            buffer.copy_from_slice(&expected);
            elision::write_atomic(&path, &mut buffer).unwrap();
            assert_file(&path, &expected, who);
        }
    }
    assert_eq!(elision_core::client::memory::validate().map(drop), Ok(()));
}

/// Whatever happens in between, the file is what the buffer is.
#[test]
fn saves_in_any_order() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("file");
    let mut other = Part::start("other", &[]);
    let mut dice = Dice(7);
    for round in 0..60 {
        let len = dice.below(90 * PAGE) + 1;
        let mut expected = bytes(round + 1, len);
        fs::write(&path, &expected).unwrap();
        if dice.below(2) == 0 {
            fs::File::open(&path).unwrap().sync_all().unwrap();
        }
        let mut buffer = match dice.below(3) {
            0 => elision::read(&path).unwrap(),
            1 => elision::edit(&path).unwrap(),
            _ => Buffer::try_from(&expected[..]).unwrap(),
        };
        for step in 0..8 {
            let what = match dice.below(9) {
                0 => {
                    expected.resize(dice.below(90 * PAGE) + 1, 0);
                    buffer.resize(expected.len()).unwrap();
                    "resized"
                }
                1 => {
                    let (path, seed, len) = (path.clone(), 99, 20 * PAGE);
                    let change = match dice.below(3) {
                        0 => Foreign::Rewrite { path, len, seed },
                        1 => Foreign::Replace { path, len, seed },
                        _ => Foreign::Truncate { path, len: 5 },
                    };
                    other.ask(&change).unwrap();
                    "changed by another"
                }
                2 => {
                    elision::write(&path, &mut buffer).unwrap();
                    assert_file(&path, &expected, "written");
                    "written"
                }
                3 | 4 => {
                    for _ in 0..dice.below(5) {
                        let at = dice.below(expected.len());
                        expected[at] ^= 0x11;
                        buffer[at] ^= 0x11;
                    }
                    "altered"
                }
                5 => {
                    elision::write_atomic_sync(&path, &buffer).unwrap();
                    assert_file(&path, &expected, "replaced, shared");
                    "replaced"
                }
                _ => {
                    elision::write_atomic(&path, &mut buffer).unwrap();
                    assert_file(&path, &expected, "replaced");
                    "replaced"
                }
            };
            assert!(*buffer == *expected, "round {round}, step {step}: {what}");
            assert_eq!(elision_core::client::memory::validate().map(drop), Ok(()));
        }
    }
    assert_eq!(names(dir.path()), ["file"]);
    other.finish();
}

fn fails(path: &Path, buffer: &mut Buffer, errno: i32) {
    let dir = path.parent().unwrap();
    let (before, old) = (names(dir), fs::read(path).ok());
    for sync in [false, true] {
        let save = if sync { elision::write_atomic_sync } else { elision::write_atomic };
        assert_eq!(save(path, &mut *buffer).unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(names(dir), before);
        assert!(fs::read(path).ok() == old);
    }
}

#[test]
fn after_an_error_the_old_file_is_there_and_nothing_else() {
    let dir = directory();
    let path = dir.path().join("file");
    let content = bytes(4, 3 * MIB);
    fs::write(&path, &content).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    for at in (0..2 * MIB).step_by(PAGE) {
        buffer[at] ^= 1;
    }
    let missing = elision::write_atomic(dir.path().join("nowhere/file"), &mut buffer).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
    fs::create_dir(dir.path().join("below")).unwrap();
    let directory = elision::write_atomic(dir.path().join("below"), &mut buffer).unwrap_err();
    assert_eq!(directory.raw_os_error(), Some(libc::EISDIR));
    let special = elision::write_atomic("/dev/null", &mut buffer).unwrap_err();
    assert_eq!(special.raw_os_error(), Some(libc::EINVAL));
    if !is_root() {
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        fails(&path, &mut buffer, libc::EACCES);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o555)).unwrap();
        fails(&path, &mut buffer, libc::EACCES);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    }
    let limit = |bytes: u64| {
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: a struct of ours.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
    };
    // SAFETY: nobody handles it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    limit(MIB as u64);
    fails(&path, &mut buffer, libc::EFBIG);
    limit(libc::RLIM_INFINITY);
    elision::write_atomic(&path, &mut buffer).unwrap();
    assert_file(&path, &buffer, "saved at last");
}

#[test]
fn a_full_file_system_keeps_the_old_file() {
    let dir = directory();
    let target = image::c_path(dir.path());
    let mount = |options: &CStr| {
        let options = options.as_ptr().cast();
        // SAFETY: C strings.
        unsafe { libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options) }
    };
    if !image::mounts_of_our_own() || mount(c"size=5m") != 0 {
        return println!("skipped: no file system can be mounted");
    }
    let path = dir.path().join("file");
    let mut content = bytes(5, 3 * MIB);
    fs::write(&path, &content).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    buffer[0] ^= 1;
    content[0] ^= 1;
    fails(&path, &mut buffer, libc::ENOSPC);
    assert!(*buffer == *content);
    buffer.resize(MIB).unwrap();
    elision::write_atomic(&path, &mut buffer).unwrap();
    assert_file(&path, &content[..MIB], "shorter");
    drop(buffer);
    // SAFETY: a C string.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
}

/// Killed at any instant: one of the two contents, whole.
#[test]
fn a_killed_program_leaves_the_old_file_or_the_new_one() {
    const KILLS: u64 = 25;
    let dir = directory();
    let path = dir.path().join("file");
    let whole = |which: u64| {
        let mut content = bytes(6, length(1));
        content.truncate(length(which));
        if which == 1 {
            content[length(0)..].fill(0);
        }
        for at in (0..content.len()).step_by(64 * PAGE) {
            content[at] = which as u8;
        }
        content
    };
    let wanted = [whole(0), whole(1)];
    fs::write(&path, &wanted[0]).unwrap();
    let mut seen = [0; 2];
    for kill in 0..KILLS {
        let mut saver = Part::start("saver", &[path.to_str().unwrap()]);
        saver.expect("begins");
        std::thread::sleep(std::time::Duration::from_micros(kill * 7919 % 30_000));
        saver.child.kill().unwrap();
        saver.child.wait().unwrap();
        let got = fs::read(&path).unwrap();
        let which = wanted.iter().position(|wanted| *wanted == got);
        seen[which.unwrap_or_else(|| panic!("neither: {:?}", difference(&got, &wanted[0])))] += 1;
        // Killed between the two names.
        for name in names(dir.path()) {
            if name != "file" {
                assert!(name.starts_with(".elision-"), "{name}");
                fs::remove_file(dir.path().join(name)).unwrap();
            }
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

/// As a copy, or a temporary file that takes the old one's name. The buffer keeps what it was read from.
#[test]
fn what_is_saved_elsewhere_shares_blocks() {
    let dir = directory();
    let [path, other] = ["file", "copy"].map(|name| dir.path().join(name));
    let mut expected = bytes(3, 9 * MIB + 700);
    fs::write(&path, &expected).unwrap();
    fs::File::open(&path).unwrap().sync_all().unwrap();
    let mut buffer = elision::read(&path).unwrap();
    for round in 0..3 {
        for at in (round..expected.len()).step_by(MIB) {
            expected[at] ^= 1;
            buffer[at] ^= 1;
        }
        let before = elision::stats::snapshot();
        elision::write(&other, &mut buffer).unwrap();
        let after = elision::stats::snapshot();
        assert_file(&other, &expected, "saved elsewhere");
        let shared = after.shared_bytes - before.shared_bytes;
        let all = expected.len() as u64;
        if common::defers(dir.path()) && clones(dir.path()) {
            assert!(shared > all * 9 / 10, "{shared} of {all}");
        } else {
            assert_eq!(shared, 0);
        }
        assert!(after.written_bytes - before.written_bytes + shared == all || !common::defers(dir.path()));
        fs::rename(&other, &path).unwrap();
        assert_file(&path, &expected, "renamed");
        elision_core::client::memory::validate().unwrap();
    }
}
