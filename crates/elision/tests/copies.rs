//! Copies of buffers, and what a buffer shares with `Vec<u8>`, `io` and `bytes`.
#![allow(unsafe_code)] // The parts that other processes play.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory};
use elision::{Buffer, File, PageState};
use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

crate::roles!(play);

fn play(_: &str, _: &[String]) {
    common::play_other();
}

const MIB: usize = 1 << 20;
const LEN: usize = 16 * MIB + 5;

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    if let Some(how) = difference(got, expected) {
        panic!("{what}: {how}");
    }
}

/// The bytes of the ranges in this state.
fn in_state(buffer: &Buffer, wanted: PageState) -> usize {
    buffer.ranges().into_iter().filter(|(_, state)| *state == wanted).map(|(range, _)| range.len()).sum()
}

/// A copy of a deferred buffer loaded all of the file and took memory for it. (One test for each: what a change of a file cost counts for
/// later reads.)
fn copied(open: impl FnOnce(&Path) -> io::Result<Buffer>, from: usize) {
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let path = dir.path().join("data");
    let content = bytes(1, LEN);
    fs::write(&path, &content).unwrap();
    let mut other = Part::start("other", &[]);
    let mut expected = content[from..].to_vec();
    let mut first = open(&path).unwrap();
    for at in [0, 3 * PAGE + 7, LEN / 2, LEN - 17] {
        first[at] ^= 0x5a;
        expected[at] ^= 0x5a;
    }
    let copy = first.try_clone().unwrap();
    let deferred = in_state(&copy, PageState::Deferred) + in_state(&copy, PageState::Loaded);
    // The other tests of this file are worth something only if this holds.
    assert!(deferred >= LEN - 10 * PAGE, "{:?}", copy.ranges());
    // Each alters its own bytes only.
    let mut second = copy.clone();
    let mut of_second = expected.clone();
    first[9 * PAGE] ^= 1;
    second[9 * PAGE] ^= 2;
    of_second[9 * PAGE] ^= 2;
    assert_same(&copy, &expected, "the copy");
    assert_same(&second, &of_second, "the second copy");
    // A copy outlives the buffer, and the bytes of the file.
    drop(first);
    let third = second.clone();
    other.ask(&Foreign::Truncate { path: path.clone(), len: 0 }).unwrap();
    other.ask(&Foreign::Write { path: path.clone(), offset: 0, len: LEN, seed: 7 }).unwrap();
    assert_same(&copy, &expected, "the copy, when the file had changed");
    assert_same(&second, &of_second, "the second copy, when the file had changed");
    assert_same(&third, &of_second, "the third copy, when the file had changed");
    elision_core::client::memory::validate().unwrap();
    other.finish();
}

#[test]
fn a_copy_is_deferred_as_the_buffer_is() {
    copied(|path| elision::read(path), 0);
}

#[test]
fn a_copy_is_deferred_as_the_buffer_that_is_edited_is() {
    copied(|path| elision::edit(path), 0);
}

#[test]
fn a_copy_is_deferred_as_the_buffer_that_begins_within_a_page_is() {
    copied(|path| File::open(path)?.read(16, LEN), 16);
}

#[test]
fn a_copy_and_its_buffer_are_saved_one_over_the_other() {
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(2, LEN);
    fs::write(&path, &content).unwrap();
    let mut first = elision::edit(&path).unwrap();
    let mut copy = first.clone();
    let mut expected = content.clone();
    first[5 * PAGE] ^= 1;
    expected[5 * PAGE] ^= 1;
    elision::write(&path, &mut first).unwrap();
    assert_same(&fs::read(&path).unwrap(), &expected, "the file of the buffer");
    assert_same(&copy, &content, "the copy, when the buffer was saved");
    let again = copy.clone();
    copy[7 * PAGE] ^= 1;
    elision::write(&path, &mut copy).unwrap();
    assert_same(&fs::read(&path).unwrap(), &copy, "the file of the copy");
    assert_same(&first, &expected, "the buffer, when the copy was saved");
    assert_same(&again, &content, "a copy of the copy");
}

#[test]
fn a_copy_that_is_mostly_altered_is_a_plain_one() {
    let dir = directory();
    let path = dir.path().join("data");
    fs::write(&path, bytes(3, LEN)).unwrap();
    let mut buffer = elision::edit(&path).unwrap();
    buffer[..LEN / 4 * 3].fill(9);
    let copy = buffer.clone();
    assert_eq!(in_state(&copy, PageState::Plain), LEN, "{:?}", copy.ranges());
    assert_same(&copy, &buffer, "the copy");
    let plain = Buffer::try_from(&bytes(4, 3 * MIB)[..]).unwrap();
    assert_same(&plain.clone(), &plain, "a copy of what was never read");
    assert!(Buffer::default().clone().is_empty());
}

/// More runs of altered pages than one answer of the helper has room for.
#[test]
fn a_copy_of_many_altered_pages() {
    let dir = directory();
    let path = dir.path().join("data");
    fs::write(&path, bytes(5, LEN)).unwrap();
    let mut buffer = elision::edit(&path).unwrap();
    for page in (0..LEN / PAGE).step_by(3) {
        buffer[page * PAGE + page % PAGE] ^= 0xff;
    }
    let copy = buffer.clone();
    assert_same(&copy, &buffer, "the copy");
    if common::defers(dir.path()) {
        assert!(in_state(&copy, PageState::Plain) < MIB, "{:?}", copy.ranges());
    }
}

/// While a copy is made, the file changes.
#[test]
fn a_buffer_is_copied_during_a_break() {
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(6, LEN);
    let mut other = Part::start("other", &[]);
    for round in 0..12 {
        fs::write(&path, &content).unwrap();
        let buffer = elision::read(&path).unwrap();
        std::thread::scope(|scope| {
            let command = match round % 2 {
                0 => Foreign::Write { path: path.clone(), offset: 0, len: LEN, seed: 8 },
                _ => Foreign::Truncate { path: path.clone(), len: 0 },
            };
            let other = &mut other;
            let asked = scope.spawn(move || other.ask(&command).unwrap());
            let mut copies = VecDeque::new();
            while !asked.is_finished() || copies.is_empty() {
                copies.push_back(buffer.clone());
                // (A change gives each of them memory of its own.)
                if copies.len() > 8 {
                    copies.pop_front();
                }
            }
            for copy in copies {
                assert_same(&copy, &content, "a copy");
            }
        });
        assert_same(&buffer, &content, "the buffer");
    }
    other.finish();
}

#[test]
fn bytes_are_appended_and_cut_off() {
    let dir = directory();
    let path = dir.path().join("data");
    let mut expected = bytes(7, 2 * MIB + 3);
    fs::write(&path, &expected).unwrap();
    let mut buffer = elision::edit(&path).unwrap();
    // Further than the room behind it, so that it moves.
    let mut piece = bytes(8, 5 * MIB + 1);
    for _ in 0..16 {
        piece.rotate_left(1);
        buffer.write_all(&piece).unwrap();
        expected.extend_from_slice(&piece);
    }
    buffer.extend([1u8, 2, 3]);
    buffer.extend(&piece[..40_000]);
    buffer.extend_from_slice(b"end").unwrap();
    buffer.flush().unwrap();
    expected.extend([1u8, 2, 3]);
    expected.extend(&piece[..40_000]);
    expected.extend(b"end");
    assert_same(&buffer, &expected, "appended");
    elision::write(&path, &mut buffer).unwrap();
    assert_same(&fs::read(&path).unwrap(), &expected, "the file");
    for len in [expected.len() + 1, 3 * MIB + 7, 3 * MIB + 7, 1, 0] {
        buffer.truncate(len);
        expected.truncate(len);
        assert_same(&buffer, &expected, "cut off");
    }
    buffer.extend_from_slice(&[7; 10]).unwrap();
    buffer.clear();
    buffer.resize(PAGE).unwrap();
    assert_same(&buffer, &[0; PAGE], "grown again");
}

#[test]
fn text_is_text_or_an_error() {
    let dir = directory();
    let path = dir.path().join("text");
    let text = "grün\n".repeat(MIB);
    fs::write(&path, &text).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    assert!(buffer.to_str() == Ok(&text));
    assert_eq!(Cursor::new(&buffer).lines().count(), MIB);
    buffer[3] = 0xff;
    assert!(buffer.to_str().is_err());
}

#[test]
fn a_file_is_created_and_read_as_std_does() {
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(9, LEN);
    for before in [None, Some(vec![1; 3 * LEN])] {
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
        let mut file = File::create(&path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0);
        let mut buffer = Buffer::try_from(&content[..]).unwrap();
        file.write(0, &mut buffer).unwrap();
        // Positions are of the reader alone.
        let mut part = [0; 100];
        file.seek(SeekFrom::Start(77)).unwrap();
        file.read_exact(&mut part).unwrap();
        assert_eq!(part, content[77..177]);
        buffer[LEN / 2] ^= 1;
        file.write(0, &mut buffer).unwrap();
        let mut rest = Vec::new();
        file.read_to_end(&mut rest).unwrap();
        assert_same(&rest, &buffer[177..], "from the position on");
        assert_same(&file.read(0, LEN).unwrap(), &buffer, "from an offset on");
    }
    // What may be written and not read.
    let secret = dir.path().join("secret");
    fs::write(&secret, b"old").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o200)).unwrap();
    File::create(&secret).unwrap().write(0, &mut Buffer::try_from(&b"new"[..]).unwrap()).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(fs::read(&secret).unwrap(), b"new");
    let missing = dir.path().join("missing/data");
    let (ours, theirs) = (File::create(&missing).unwrap_err(), fs::File::create(&missing).unwrap_err());
    assert_eq!(ours.raw_os_error(), theirs.raw_os_error());
}

#[cfg(feature = "bytes")]
#[test]
fn bytes_take_a_buffer_over() {
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(10, LEN);
    fs::write(&path, &content).unwrap();
    let buffer = elision::read(&path).unwrap();
    let first = buffer.as_ptr();
    let whole = ::bytes::Bytes::from(buffer);
    assert_eq!(whole.as_ptr(), first);
    let part = whole.slice(MIB..2 * MIB);
    drop(whole);
    fs::write(&path, b"").unwrap();
    std::thread::spawn(move || assert_same(&part, &content[MIB..2 * MIB], "a slice")).join().unwrap();
}

#[cfg(feature = "stable_deref_trait")]
#[test]
fn a_buffer_that_moves_leaves_its_bytes_in_place() {
    fn address(of: &impl stable_deref_trait::StableDeref<Target = [u8]>) -> Range<*const u8> {
        of.as_ptr_range()
    }
    let dir = directory();
    let path = dir.path().join("data");
    let mut other = Part::start("other", &[]);
    for phase in [0, 16] {
        fs::write(&path, bytes(11, LEN)).unwrap();
        let buffer = File::open(&path).unwrap().read(phase, LEN).unwrap();
        let before = address(&buffer);
        buffer.load(..).unwrap();
        let boxed = Box::new(buffer);
        assert_eq!(address(&*boxed), before);
        other.ask(&Foreign::Truncate { path: path.clone(), len: 0 }).unwrap();
        let moved = std::thread::spawn(move || *boxed).join().unwrap();
        assert_eq!(address(&moved), before);
        assert_same(&moved, &bytes(11, LEN)[phase as usize..], "the bytes");
    }
    other.finish();
}
