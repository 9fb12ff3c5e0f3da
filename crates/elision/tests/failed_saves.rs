//! A save that fails leaves the file as it was, or as far as a traditional write over it would have come. Only where there is no room may
//! what was behind the new end be gone, and no more than `std::fs::write` would have taken.
#![allow(unsafe_code)] // Limits and mounts.

mod common;
#[path = "../../elision-preload/tests/common/image.rs"]
mod image;

use common::{Dice, PAGE, bytes, difference, directory};
use elision::Buffer;
use std::ffi::CStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

/// The oracle: what is there is written over, and cut or made longer at the end.
fn in_place(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(content, 0)?;
    file.set_len(content.len() as u64)
}

type Outcome = (Result<(), Option<i32>>, Option<Vec<u8>>);

/// What is said, and what is there.
fn outcome(path: &Path, result: io::Result<()>) -> Outcome {
    (result.map_err(|error| error.raw_os_error()), fs::read(path).ok())
}

/// How a buffer comes to be saved.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Way {
    /// The file was opened to be edited.
    Edited,
    /// The same, and there is another at its path by then.
    Replaced,
    /// It was read.
    Read,
    /// It never was.
    Never,
}

impl Way {
    fn any(dice: &mut Dice, there: bool) -> Way {
        match dice.below(4) {
            0 if there => Way::Edited,
            1 if there => Way::Replaced,
            2 if there => Way::Read,
            _ => Way::Never,
        }
    }

    /// A buffer of the file at `path`, and later of `content`.
    fn buffer(self, path: &Path, content: &[u8]) -> Buffer {
        let mut buffer = match self {
            Way::Edited | Way::Replaced => elision::edit(path).unwrap(),
            Way::Read => elision::read(path).unwrap(),
            Way::Never => Buffer::new(0).unwrap(),
        };
        buffer.resize(content.len()).unwrap();
        for (from, to) in content.chunks(PAGE).zip(buffer.chunks_mut(PAGE)) {
            if from != to {
                to.copy_from_slice(from);
            }
        }
        buffer
    }
}

/// `old`, here and there with other bytes, and of that length.
fn edited(dice: &mut Dice, old: &[u8], len: usize) -> Vec<u8> {
    let mut new = old.to_vec();
    new.resize(len, 3);
    for _ in 0..dice.below(6) {
        if len > 0 {
            new[dice.below(len)] ^= 0x55;
        }
    }
    if dice.below(3) == 0 { bytes(9, len) } else { new }
}

fn limit_file_size(bytes: usize) {
    let limit = libc::rlimit { rlim_cur: bytes as u64, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a struct of ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &limit) }, 0);
}

#[test]
fn under_a_limit_on_file_size() {
    elision::set_min_bytes(PAGE);
    // SAFETY: nobody handles it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let (dir, mut dice, mut failed) = (directory(), Dice(5), 0);
    for round in 0..400 {
        let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
        let there = dice.below(5) > 0;
        let old = bytes(1, if there { dice.below(60 * PAGE) } else { 0 });
        let new_len = dice.below(60 * PAGE);
        let content = edited(&mut dice, &old, new_len);
        let way = Way::any(&mut dice, there);
        let _ = (fs::remove_file(&ours), fs::remove_file(&theirs));
        if there {
            fs::write(&ours, &old).unwrap();
        }
        let mut buffer = way.buffer(&ours, &content);
        let beside = dir.path().join("beside");
        if way == Way::Replaced {
            fs::rename(&ours, &beside).unwrap();
            fs::write(&ours, bytes(4, dice.below(60 * PAGE))).unwrap();
        }
        if there {
            fs::copy(&ours, &theirs).unwrap();
        }
        let limit = dice.below(60 * PAGE);
        limit_file_size(limit);
        let expected = in_place(&theirs, &content);
        let got = elision::write(&ours, &mut buffer);
        limit_file_size(usize::MAX);
        failed += u32::from(got.is_err());
        let what =
            format!("round {round}: {way:?}, {} bytes over {}, at most {limit}", content.len(), old.len());
        let (got, expected) = (outcome(&ours, got), outcome(&theirs, expected));
        assert_eq!(got.0, expected.0, "{what}");
        let difference = difference(&got.1.unwrap_or_default(), &expected.1.unwrap_or_default());
        assert_eq!(difference, None, "{what}");
        assert!(*buffer == *content, "{what}");
        assert!(way != Way::Replaced || fs::read(&beside).unwrap() == old, "{what}");
        // And afterwards it can be saved.
        elision::write(&ours, &mut buffer).unwrap();
        assert!(fs::read(&ours).unwrap() == content, "{what}");
    }
    assert!(failed > 100, "only {failed} saves failed");
}

/// Where `std::fs::write` succeeds, so does ours. Else it came as far as that or as a write over what is there, and nothing else is missing but
/// what is behind the new end.
fn compare(what: &str, [ours, std, over]: &[Outcome; 3], old: &[u8], new: &[u8]) {
    let there = |outcome: &Outcome| outcome.1.clone().unwrap_or_default();
    let come = |bytes: &[u8]| bytes.iter().zip(new).take_while(|(a, b)| a == b).count();
    let got = there(ours);
    if ours.0.is_ok() {
        return assert!(got == new, "{what}: not what was saved");
    }
    assert_eq!(ours.0, std.0, "{what}");
    let (least, reached) = (come(&there(std)).min(come(&there(over))), come(&got));
    assert!(reached >= least, "{what}: came as far as {reached}, not {least}");
    assert!(got.len() >= old.len().min(new.len()), "{what}: {} bytes are left", got.len());
    assert!(got[reached..] == *old.get(reached..got.len()).unwrap_or(&[]), "{what}: another after {reached}");
}

/// The same save in three ways, in the order that [`compare`] expects. `begin` makes everything anew, and the buffer.
fn in_each_way(path: &Path, content: &[u8], begin: impl Fn() -> Buffer) -> [Outcome; 3] {
    [0, 1, 2].map(|way| {
        let mut buffer = begin();
        let result = match way {
            0 => elision::write(path, &mut buffer),
            1 => fs::write(path, content),
            _ => in_place(path, content),
        };
        outcome(path, result)
    })
}

/// The helper lets go of a removed file some milliseconds after its last buffer is dropped.
fn await_empty(root: &CStr) {
    let begun = Instant::now();
    loop {
        // SAFETY: all zeroes is a value of this struct of integers; a C string, and a struct of ours.
        let space = unsafe {
            let mut space: libc::statvfs = std::mem::zeroed();
            assert_eq!(libc::statvfs(root.as_ptr(), &mut space), 0);
            space
        };
        if space.f_bfree == space.f_blocks {
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{} blocks are still taken",
            space.f_blocks - space.f_bfree
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn on_a_full_file_system() {
    const UNIT: usize = 16 * PAGE;
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let target = image::c_path(dir.path());
    // SAFETY: C strings.
    let mounted = unsafe {
        let options = c"size=1m".as_ptr().cast();
        libc::mount(c"tmpfs".as_ptr(), target.as_ptr(), c"tmpfs".as_ptr(), 0, options)
    };
    if mounted != 0 {
        return println!("skipped: no file system can be mounted");
    }
    let (path, rest) = (dir.path().join("file"), dir.path().join("rest"));
    let played = std::panic::catch_unwind(|| {
        let (mut dice, mut failed) = (Dice(5), 0);
        // How long the old file is, how much of that at its end is no hole, how long the new one is, and what is left free.
        let known =
            [(10, 10, 14, 1), (6, 6, 20, 1), (20, 6, 12, 1), (12, 6, 4, 1), (12, 6, 5, 1), (0, 0, 3, 1)];
        let any = |dice: &mut Dice| {
            let solid = dice.below(14);
            (solid + dice.below(5), solid, dice.below(20), dice.below(3))
        };
        let any: Vec<_> = (0..40).map(|_| any(&mut dice)).collect();
        for (long, solid, new, free) in known.into_iter().chain(any) {
            let mut old = vec![0; long * UNIT];
            old[(long - solid) * UNIT..].copy_from_slice(&bytes(1, solid * UNIT));
            let content =
                if dice.below(2) == 0 { bytes(2, new * UNIT) } else { edited(&mut dice, &old, new * UNIT) };
            let way = Way::any(&mut dice, long > 0);
            let left = in_each_way(&path, &content, || {
                let _ = (fs::remove_file(&path), fs::remove_file(&rest));
                await_empty(&target);
                let file = fs::File::create(&path).unwrap();
                file.set_len(old.len() as u64).unwrap();
                file.write_all_at(&old[(long - solid) * UNIT..], ((long - solid) * UNIT) as u64).unwrap();
                drop(file);
                // (Of a file with holes nothing is deferred here, so none of them is filled by looking at them.)
                let buffer = if way == Way::Replaced { Way::Read } else { way }.buffer(&path, &content);
                let filler = fs::File::create(&rest).unwrap();
                filler.write_all_at(&vec![1; (16 - solid - free.min(16 - solid)) * UNIT], 0).unwrap();
                buffer
            });
            failed += u32::from(left[0].0.is_err());
            let what = format!("{new} units over {long} ({solid} no hole), {free} free, {way:?}");
            compare(&what, &left, &old, &content);
        }
        assert!(failed > 5, "only {failed} saves failed");
    });
    // SAFETY: a C string.
    unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) };
    played.unwrap();
}

/// btrfs takes new room for what is written, and gives back the old one later: what can be saved only after the old bytes have gone is saved.
#[test]
fn where_old_bytes_have_to_go_first() {
    if std::env::var_os("ELISION_TEST_DIR").is_some() {
        return println!("skipped: has a file system of its own");
    }
    if !image::mounts_of_our_own() {
        return;
    }
    let Some(image) = image::Image::btrfs("noatime") else { return };
    let (path, rest) = (image.root.join("file"), image.root.join("rest"));
    let (old, new) = (bytes(1, 40 * MIB), bytes(2, 40 * MIB));
    let left = in_each_way(&path, &new, || {
        let _ = (fs::remove_file(&path), fs::remove_file(&rest));
        fs::File::open(&image.root).unwrap().sync_all().unwrap();
        fs::write(&path, &old).unwrap();
        let filler = fs::File::create(&rest).unwrap();
        let mut at = 0;
        for step in [MIB, 16 * PAGE] {
            let some = vec![1; step];
            while filler.write_all_at(&some, at).is_ok() {
                at += step as u64;
            }
            filler.sync_all().unwrap();
        }
        let mut buffer = Buffer::new(new.len()).unwrap();
        buffer.copy_from_slice(&new);
        buffer
    });
    compare("40 MiB over as many", &left, &old, &new);
    assert!(left[2].0.is_err(), "there was room for both");
    assert_eq!(left[0].0, left[1].0);
}

/// The bytes that are to be saved cannot be had: nobody is left with less than there was.
#[test]
fn what_cannot_be_read_is_not_saved() {
    if std::env::var_os("ELISION_TEST_DIR").is_some() {
        return println!("skipped: has a file system of its own");
    }
    if !image::mounts_of_our_own() {
        return;
    }
    let Some(image) = image::Image::btrfs("noatime") else { return };
    let (from, to) = (image.root.join("from"), image.root.join("to"));
    let (content, old) = (bytes(1, 4 * MIB), bytes(2, 3 * MIB));
    fs::write(&from, &content).unwrap();
    fs::write(&to, &old).unwrap();
    image.spoil(&from, &[content[300 * PAGE..][..PAGE].to_vec()]);
    elision::set_min_bytes(MIB);
    let mut buffer = elision::read(&from).unwrap();
    assert_eq!(buffer.ranges()[0].1, elision::PageState::Deferred);
    let error = elision::write(&to, &mut buffer).unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EFAULT | libc::EIO)), "{error}");
    let there = fs::read(&to).unwrap();
    let come = (0..there.len()).take_while(|&at| there[at] == content[at]).count();
    assert!(
        there.len() >= old.len() && there[come..] == old[come..],
        "{} bytes, {come} of them new",
        there.len()
    );
    drop(buffer);
}
