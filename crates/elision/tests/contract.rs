//! `elision::read`, `edit` and `write` beside `std::fs::read` and `std::fs::write`: nobody can tell them apart, except by
//! the clock and by the I/O that did not happen.
#![allow(unsafe_code)] // Dropping privileges, in a child, and pipes.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory};
use elision::{Buffer, File, PageState};
use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

crate::roles!(play);

const LEN: usize = 40 * PAGE + 123;

/// What a result is, as far as a program can compare it.
fn outcome<T: AsRef<[u8]>>(result: io::Result<T>) -> Result<Vec<u8>, (io::ErrorKind, Option<i32>)> {
    match result {
        Ok(bytes) => Ok(bytes.as_ref().to_vec()),
        Err(error) => Err((error.kind(), error.raw_os_error())),
    }
}

fn reads_alike(path: &Path) {
    let expected = outcome(fs::read(path));
    assert!(outcome(elision::read(path)) == expected, "{}: {:?}", path.display(), expected.map(|b| b.len()));
}

/// Writes the same by both, to `one` and to `other`, and compares what is said and what is there.
fn writes_alike(one: &Path, other: &Path, content: &[u8]) {
    let mut buffer = buffer(content);
    let expected = outcome(fs::write(other, content).map(|()| []));
    let got = outcome(elision::write(one, &mut buffer).map(|()| []));
    assert_eq!(got, expected, "{}", one.display());
    assert!(*buffer == *content);
    assert!(outcome(fs::read(one)) == outcome(fs::read(other)), "{}", one.display());
}

fn buffer(content: &[u8]) -> Buffer {
    let mut buffer = Buffer::new(content.len()).unwrap();
    buffer.copy_from_slice(content);
    buffer
}

fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(how) = difference(got, expected) {
        panic!("{how}");
    }
}

#[test]
fn files_of_every_kind() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("byte"), b"x").unwrap();
    common::create(&at("page"), bytes(1, PAGE)).unwrap();
    common::create(&at("odd"), bytes(2, LEN)).unwrap();
    fs::create_dir(at("directory")).unwrap();
    std::os::unix::fs::symlink("odd", at("link")).unwrap();
    std::os::unix::fs::symlink("nowhere", at("dangling")).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    for name in
        ["empty", "byte", "page", "odd", "directory", "link", "dangling", "loop", "missing", "odd/below"]
    {
        reads_alike(&at(name));
    }
    for path in ["/proc/version", "/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled", "/dev/null"]
    {
        reads_alike(Path::new(path));
    }
    // Longer than it says: its size is 0.
    let status = elision::read("/proc/self/status").unwrap();
    assert!(status.starts_with(b"Name:") && status.len() > 500);
    for (kind, edited) in
        [("directory", elision::edit(at("directory"))), ("missing", elision::edit(at("missing")))]
    {
        let opened = OpenOptions::new().read(true).write(true).open(at(kind));
        assert_eq!(edited.unwrap_err().raw_os_error(), opened.unwrap_err().raw_os_error(), "{kind}");
    }
    let content = bytes(3, LEN);
    for name in ["directory", "loop", "missing/below"] {
        writes_alike(&at(name), &at(name), &content);
    }
    writes_alike(Path::new("/dev/null"), Path::new("/dev/null"), &content);
    // Through links, to what is there and to what is not.
    writes_alike(&at("link"), &at("control"), &content);
    assert_same(&fs::read(at("odd")).unwrap(), &content);
    writes_alike(&at("dangling"), &at("control"), &content);
    assert_same(&fs::read(at("nowhere")).unwrap(), &content);
    assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
}

#[test]
fn a_write_replaces_what_is_there() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    // From nothing, longer, shorter, the same, empty; with and without whole pages.
    for (i, len) in [LEN, LEN + 5 * PAGE, 3 * PAGE, 3 * PAGE, 10, 0, PAGE, LEN].into_iter().enumerate() {
        writes_alike(&one, &other, &bytes(i as u64 % 3 + 1, len));
        assert_eq!(fs::metadata(&one).unwrap().len(), len as u64);
    }
    // The same buffer again and again: what is elided must be there.
    let mut buffer = elision::edit(&one).unwrap();
    for len in [LEN, LEN - PAGE, LEN + 7 * PAGE, 2 * PAGE, 5, 30 * PAGE] {
        buffer.resize(len).unwrap();
        if let Some(last) = buffer.last_mut() {
            *last ^= 0x5a;
        }
        elision::write(&one, &mut buffer).unwrap();
        assert_same(&fs::read(&one).unwrap(), &buffer);
        elision::write(&one, &mut buffer).unwrap();
        elision::write(&other, &mut buffer).unwrap();
        assert_same(&fs::read(&other).unwrap(), &buffer);
    }
    let made = fs::metadata(&one).unwrap().mode();
    assert_eq!(made, fs::metadata(&other).unwrap().mode());
}

#[test]
fn hard_links_are_one_file() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut expected = bytes(4, LEN);
    common::create(&one, &expected).unwrap();
    fs::hard_link(&one, &two).unwrap();
    let by_other_name = elision::read(&two).unwrap();
    let before = expected.clone();
    let mut buffer = elision::edit(&one).unwrap();
    for name in [&two, &one, &two] {
        buffer[5 * PAGE + 1] ^= 1;
        expected[5 * PAGE + 1] ^= 1;
        elision::write(name, &mut buffer).unwrap();
        assert_same(&fs::read(&one).unwrap(), &expected);
        assert_same(&by_other_name, &before);
    }
    assert_eq!(fs::metadata(&one).unwrap().nlink(), 2);
}

#[test]
fn permissions_are_the_kernels_business() {
    let dir = directory();
    // The child may not be root: it has to come to the files all the same.
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let mut part = Part::start("ordinary", &[dir.path().to_str().unwrap()]);
    assert_eq!(part.hear(), "done");
    part.finish();
}

fn ordinary(dir: &Path) {
    // SAFETY: no memory is involved.
    unsafe {
        if libc::geteuid() == 0 {
            assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
            assert_eq!(libc::setgid(65534), 0);
            assert_eq!(libc::setuid(65534), 0);
        }
    }
    elision::set_min_bytes(PAGE);
    let content = bytes(6, LEN);
    for mode in [0o000, 0o200, 0o400, 0o600] {
        let (one, other) = (dir.join(format!("one{mode:o}")), dir.join(format!("other{mode:o}")));
        for path in [&one, &other] {
            fs::write(path, bytes(7, LEN)).unwrap();
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        reads_alike(&one);
        let opened = OpenOptions::new().read(true).write(true).open(&one).map(drop);
        let edited = elision::edit(&one).map(drop);
        assert_eq!(outcome(edited.map(|()| [])), outcome(opened.map(|()| [])), "{mode:o}");
        writes_alike(&one, &other, &content);
        for path in [&one, &other] {
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        }
        assert!(fs::read(&one).unwrap() == fs::read(&other).unwrap(), "{mode:o}");
    }
    let locked = dir.join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, Permissions::from_mode(0o500)).unwrap();
    writes_alike(&locked.join("new"), &locked.join("new"), &content);
    for path in ["/etc/passwd", "/etc/shadow", "/root/x"] {
        reads_alike(Path::new(path));
    }
    // What was opened before may be written to no longer.
    let path = dir.join("closed");
    fs::write(&path, bytes(7, LEN)).unwrap();
    let mut buffer = elision::edit(&path).unwrap();
    for mode in [0o444, 0o644, 0o000] {
        buffer[5 * PAGE] ^= 1;
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let opened = OpenOptions::new().write(true).open(&path).map(drop);
        let written = elision::write(&path, &mut buffer);
        assert_eq!(outcome(written.map(|()| [])), outcome(opened.map(|()| [])), "{mode:o}");
    }
}

/// Files whose size says nothing, opened to be edited or in part; and back to where they came from.
#[test]
fn files_that_are_longer_than_they_say() {
    let expected = |path: &str| fs::read(path).unwrap();
    let name = "/proc/self/comm";
    for path in [name, "/proc/self/oom_score_adj", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        if OpenOptions::new().write(true).open(path).is_ok() {
            assert_eq!(elision::edit(path).unwrap(), expected(path), "{path}");
        }
    }
    let file = File::open("/proc/cpuinfo").unwrap();
    let whole = file.read(0, usize::MAX).unwrap();
    assert!(whole.starts_with(b"processor") && whole.len() > 100);
    assert_eq!(file.read(3, 40).unwrap(), whole[3..43]);
    assert_eq!(file.read(1 << 40, 40).unwrap().len(), 0);
    // (The kernel adds an end of line.)
    elision::write(name, buffer(b"another name")).unwrap();
    assert_eq!(expected(name), b"another name\n");
}

/// Nobody has a file open for writing any more when its buffer is gone, or has let go of it and needs nothing of it.
#[test]
fn a_program_that_was_written_can_be_executed() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("program");
    let Ok(program) = fs::read("/bin/true") else { return println!("skipped: no /bin/true") };
    fs::write(&path, &program).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let execute = || std::process::Command::new(&path).status();
    if execute().is_err() {
        return println!("skipped: nothing can be executed here");
    }
    for round in 0..120 {
        let mut buffer = match round % 3 {
            0 => elision::edit(&path).unwrap(),
            _ => Buffer::try_from(&program[..]).unwrap(),
        };
        buffer[program.len() - 1] ^= 0;
        elision::write(&path, &mut buffer).unwrap();
        assert_eq!(execute().unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
        if round % 3 == 1 {
            buffer.close();
        } else {
            drop(buffer);
        }
        execute().unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

#[test]
fn offsets_that_no_file_has() {
    let dir = directory();
    let path = dir.path().join("data");
    fs::write(&path, b"some").unwrap();
    let file = File::open(&path).unwrap();
    for offset in [i64::MAX as u64 + 1, u64::MAX] {
        assert_eq!(file.read(offset, 1).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{offset}");
    }
    assert_eq!(file.read(i64::MAX as u64, 1).unwrap().len(), 0);
}

#[test]
fn want_of_room_has_the_kernels_number() {
    let segment = elision::Segment::reserve(PAGE).unwrap();
    let mut buffer = Buffer::new(10).unwrap();
    let refused = [
        Buffer::new(usize::MAX).map(drop),
        Buffer::new(1 << 60).map(drop),
        elision::Segment::reserve(usize::MAX).map(drop),
        segment.buffer(2 * PAGE).map(drop),
        buffer.resize(usize::MAX),
        buffer.resize(1 << 60),
    ];
    for (i, refused) in refused.into_iter().enumerate() {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::ENOMEM), "{i}");
    }
    assert_eq!(buffer, [0; 10]);
}

#[test]
fn a_buffer_is_compared_and_walked_as_bytes() {
    let mut buffer = Buffer::try_from(b"some".as_slice()).unwrap();
    for byte in &mut buffer {
        *byte += 1;
    }
    assert!(buffer == *b"tpnf" && buffer == b"tpnf" && buffer == b"tpnf"[..] && buffer == b"tpnf".to_vec());
    assert!(*b"tpnf" == buffer && b"tpnf".as_slice() == buffer && buffer != b"some");
    assert!(buffer == Buffer::try_from(&buffer[..]).unwrap());
    assert_eq!((&buffer).into_iter().count(), 4);
}

#[test]
fn a_buffer_comes_from_a_vector_and_becomes_one() {
    let content = bytes(9, 3 * PAGE + 5);
    let buffer = Buffer::from(content.clone());
    assert_same(&buffer, &content);
    assert_same(&Vec::from(buffer), &content);
    assert!(Buffer::default().is_empty());
    let mut empty = Buffer::from(Vec::new());
    empty.resize(PAGE + 1).unwrap();
    assert_same(&empty, &[0; PAGE + 1]);
}

#[test]
fn ranges_of_every_form() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("file");
    let content = bytes(10, 4 * PAGE);
    common::create(&path, &content).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    buffer.load(..).unwrap();
    buffer.load(PAGE..).unwrap();
    buffer.load(..=PAGE).unwrap();
    buffer.load((std::ops::Bound::Excluded(PAGE), std::ops::Bound::Unbounded)).unwrap();
    // What is not deferred has nothing to give back.
    let deferred = buffer.ranges()[0].1 != PageState::Plain;
    let page = if deferred { PAGE } else { 0 };
    assert_eq!(buffer.unload(PAGE..=2 * PAGE - 1).unwrap(), page);
    assert_eq!(buffer.unload(..PAGE).unwrap(), page);
    assert_eq!(buffer.unload(3 * PAGE..).unwrap(), page);
    assert_eq!(buffer.unload(PAGE..PAGE).unwrap(), 0);
    assert_same(&buffer, &content);
    for outside in [4 * PAGE..=4 * PAGE, 0..=usize::MAX - 1] {
        let load = std::panic::AssertUnwindSafe(|| buffer.load(outside));
        std::panic::catch_unwind(load).expect_err("beyond the buffer");
    }
}

#[test]
fn a_reason_has_a_name() {
    use elision::stats::Reason;
    use std::collections::HashSet;
    let names: HashSet<String> = Reason::ALL.iter().map(Reason::to_string).collect();
    assert_eq!(names.len(), Reason::ALL.iter().collect::<HashSet<_>>().len());
    assert_eq!(format!("{:>8}", Reason::Small), "   small");
}

/// A buffer that was read holds what was there then; a read takes in what a growing file has at some one time.
#[test]
fn a_file_that_grows() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("log");
    let mut expected = Vec::new();
    fs::write(&path, b"").unwrap();
    let mut other = Part::start("other", &[]);
    let mut snapshots = Vec::new();
    for round in 0..30u64 {
        let len = (round as usize * 1777) % (3 * PAGE) + 1;
        other.ask(&Foreign::Append { path: path.clone(), len, seed: round }).unwrap();
        expected.extend(bytes(round, len));
        let got = elision::read(&path).unwrap();
        assert_same(&got, &expected);
        snapshots.push(got);
    }
    // Held open for appending: nothing is deferred, and nothing is wrong.
    other.ask(&Foreign::Hold { path: path.clone(), write: true }).unwrap();
    let held = elision::read(&path).unwrap();
    let before = expected.clone();
    other.ask(&Foreign::WriteHeld { offset: expected.len() as u64 - 10, len: 5_000, seed: 9 }).unwrap();
    expected.truncate(expected.len() - 10);
    expected.extend(bytes(9, 5_000));
    assert_same(&held, &before);
    assert_same(&elision::read(&path).unwrap(), &expected);
    for got in &snapshots {
        assert_same(got, &before[..got.len()]);
    }
    other.finish();
}

/// A traditional write fills holes, so an elided one must.
#[test]
fn holes_are_filled_as_by_a_write() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for path in [&one, &other] {
        let file = fs::File::create(path).unwrap();
        file.write_all_at(&bytes(8, 3 * PAGE), 0).unwrap();
        file.write_all_at(&bytes(9, PAGE), 60 * PAGE as u64).unwrap();
        file.set_len(100 * PAGE as u64).unwrap();
        file.sync_all().unwrap();
    }
    let mut buffer = elision::edit(&one).unwrap();
    buffer[50 * PAGE] = 1;
    let mut content = fs::read(&other).unwrap();
    content[50 * PAGE] = 1;
    elision::write(&one, &mut buffer).unwrap();
    // In place: std::fs::write truncates first.
    OpenOptions::new().write(true).open(&other).unwrap().write_all_at(&content, 0).unwrap();
    let blocks = |path: &Path| {
        fs::File::open(path).unwrap().sync_all().unwrap();
        fs::metadata(path).unwrap().blocks()
    };
    assert_same(&fs::read(&one).unwrap(), &content);
    assert_eq!(blocks(&one), blocks(&other));
    assert!(blocks(&one) * 512 >= content.len() as u64);
}

fn coarse_clock() -> (i64, i64) {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a struct of ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) }, 0);
    (now.tv_sec, now.tv_nsec)
}

#[test]
fn times_move_and_set_uid_falls() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    for path in [&one, &other] {
        common::create(path, bytes(1, LEN)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o6755)).unwrap();
    }
    let mut buffer = elision::edit(&one).unwrap();
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    // By name: opening the file would break its lease.
    let set = |path: &Path| {
        let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
        let times = [libc::timespec { tv_sec: 1_000_000_000, tv_nsec: 0 }; 2];
        // SAFETY: a C string and two structs of ours.
        assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }, 0);
    };
    // Nothing was altered, so all but a little is elided; then once more, from the tracked pages.
    for round in 0..3 {
        set(&one);
        let before = elision::stats::snapshot();
        let begun = fs::metadata(&one).unwrap();
        // Before Linux 6.13 times have the steps of this clock.
        while coarse_clock() <= (begun.ctime(), begun.ctime_nsec()) {
            std::thread::yield_now();
        }
        elision::write(&one, &mut buffer).unwrap();
        let after = fs::metadata(&one).unwrap();
        assert!(after.modified().unwrap() > long_ago, "round {round}");
        assert!(after.modified().unwrap() > begun.modified().unwrap(), "round {round}");
        assert!((after.ctime(), after.ctime_nsec()) > (begun.ctime(), begun.ctime_nsec()), "round {round}");
        if common::defers(dir.path()) {
            let elided = elision::stats::snapshot().elided_bytes - before.elided_bytes;
            assert_eq!(elided, 39 * PAGE as u64, "round {round}");
        }
    }
    fs::write(&other, bytes(1, LEN)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode();
    assert_eq!(mode(&one), mode(&other), "{:o} instead of {:o}", mode(&one), mode(&other));
    // Nothing in place of nothing is a change as well.
    fs::write(&one, b"").unwrap();
    set(&one);
    elision::write(&one, Buffer::new(0).unwrap()).unwrap();
    assert!(fs::metadata(&one).unwrap().modified().unwrap() > long_ago);
}

/// Bytes beyond the end of file in the last page stay what they were, and reads stop there.
#[test]
fn the_end_of_file_inside_a_page() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(11, LEN);
    common::create(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    let mut buffer = Buffer::new(LEN + 3 * PAGE).unwrap();
    buffer.fill(0xAB);
    assert_eq!(buffer.read_at(0, LEN + 3 * PAGE, &file, 0).unwrap(), LEN);
    assert_same(&buffer[..LEN], &content);
    assert!(buffer[LEN..].iter().all(|&byte| byte == 0xAB));
    assert_eq!(buffer.read_at(0, 4 * PAGE, &file, LEN as u64).unwrap(), 0);
    assert_eq!(buffer.read_at(0, 4 * PAGE, &file, 1 << 40).unwrap(), 0);
    assert_same(&buffer[..LEN], &content);
    assert_eq!(file.read(LEN as u64 - 5, 100).unwrap()[..], content[LEN - 5..]);
    assert_eq!(file.read(1 << 40, 100).unwrap().len(), 0);
}

/// Writing through a handle that may not be written to fails as it would, and changes nothing.
/// The crate chooses where the buffer begins in its first page.
#[test]
fn a_part_of_a_file_is_deferred_wherever_it_begins() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("file");
    let content = bytes(1, 64 * PAGE + 1000);
    common::create(&path, &content).unwrap();
    let file = File::open(&path).unwrap();
    for offset in [0, 16, 128, PAGE - 16, PAGE, 3 * PAGE + 2048] {
        for len in [40 * PAGE, 40 * PAGE + 123, content.len() - offset] {
            let part = &content[offset..offset + len];
            let mut buffer = file.read(offset as u64, len).unwrap();
            assert_eq!((buffer.as_ptr() as usize - offset) % PAGE, 0);
            let deferred = |buffer: &Buffer| {
                let ranges = buffer.ranges();
                assert!(ranges.windows(2).all(|pair| pair[0].0.end == pair[1].0.start));
                assert_eq!(ranges.iter().map(|(range, _)| range.len()).sum::<usize>(), buffer.len());
                let deferred = ranges.iter().filter(|(_, state)| *state != PageState::Plain);
                deferred.map(|(range, _)| range.len()).sum::<usize>()
            };
            let least = if common::defers_reads(dir.path()) { len - 2 * PAGE } else { 0 };
            assert!(deferred(&buffer) >= least, "{offset} {len}: {:?}", buffer.ranges());
            buffer.load(PAGE..9 * PAGE).unwrap();
            assert!(buffer.unload(PAGE / 2..9 * PAGE).unwrap() <= 9 * PAGE);
            // Beyond its segment, so that it moves.
            buffer.resize(len + (256 << 20)).unwrap();
            assert!(deferred(&buffer) >= least, "{offset} {len}: {:?}", buffer.ranges());
            buffer.resize(len - 77).unwrap();
            buffer.resize(len).unwrap();
            assert_same(&buffer[..len - 77], &part[..len - 77]);
            assert_eq!(buffer[len - 77..], [0; 77]);
            buffer[len - 77..].copy_from_slice(&part[len - 77..]);
            file_with(&dir.path().join("other"), &content, |other| {
                buffer[5 * PAGE] ^= 1;
                other.write(offset as u64, &mut buffer).unwrap();
            });
            let mut expected = content.clone();
            expected[offset + 5 * PAGE] ^= 1;
            assert_same(&fs::read(dir.path().join("other")).unwrap(), &expected);
        }
    }
    // Another phase than malloc's alignment allows.
    assert!((file.read(77, 40 * PAGE).unwrap().as_ptr() as usize).is_multiple_of(PAGE));
}

fn file_with(path: &Path, content: &[u8], change: impl FnOnce(&File)) {
    common::create(path, content).unwrap();
    change(&File::open_with(OpenOptions::new().read(true).write(true), path).unwrap());
}

#[test]
fn errors_are_those_of_the_calls() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(12, LEN);
    common::create(&path, &content).unwrap();
    let mut buffer = elision::read(&path).unwrap();
    let read_only = File::open(&path).unwrap();
    buffer[0] ^= 1;
    assert_eq!(read_only.write(0, &mut buffer).unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert_eq!(read_only.set_len(1).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    let write_only = File::open_with(OpenOptions::new().write(true), &path).unwrap();
    assert_eq!(buffer.read_at(0, LEN, &write_only, 0).unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert_same(&buffer[1..], &content[1..]);
    assert_same(&fs::read(&path).unwrap(), &content);
}

/// Each call of a synchronous write waits for the disk. So few are made of what is scattered, with what lies between; what is far apart
/// is still all that is written.
#[test]
fn a_synchronous_save_is_few_calls() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let calls = || {
        let text = fs::read_to_string("/proc/self/io").ok()?;
        text.lines().find_map(|line| line.strip_prefix("syscw: "))?.parse::<u64>().ok()
    };
    for flag in [libc::O_SYNC, libc::O_DSYNC, 0] {
        for (len, first, step, runs) in
            [(8 << 20, 1, 2, 1), ((8 << 20) + 123, 0, 2, 1), ((24 << 20) + 123, 1000, 1500, 5)]
        {
            // Each case has a file of its own, which stays. A new file may get the inode number of a removed one, and the library
            // would judge the new file by what it learned of the removed one.
            let path = dir.path().join(format!("{flag:x}-{len}-{step}"));
            let mut content = bytes(20, len);
            common::create(&path, &content).unwrap();
            if flag == 0 {
                // Every write to it, however it was opened (chattr +S).
                const SET: u64 = 0x4008_6602;
                let (plain, attributes) = (fs::File::open(&path).unwrap(), 8u32);
                // SAFETY: an `int` of ours is read.
                if unsafe { libc::ioctl(plain.as_raw_fd(), SET as _, &raw const attributes) } != 0 {
                    println!("skipped: a file that is synchronous by its attributes");
                    continue;
                }
            }
            let mut options = OpenOptions::new();
            let file = File::open_with(options.read(true).write(true).custom_flags(flag), &path).unwrap();
            let mut buffer = file.read(0, len).unwrap();
            let other = file.read(0, len).unwrap();
            let before = content.clone();
            for page in (first..len / PAGE).step_by(step) {
                (buffer[page * PAGE], content[page * PAGE]) = (7, 7);
            }
            let (begun, stats) = (calls(), elision::stats::snapshot());
            file.write(0, &mut buffer).unwrap();
            let what = format!("{flag:#x}, each {step}th page of {len} bytes");
            if let (Some(begun), Some(now)) = (begun, calls()) {
                assert!(now - begun <= runs + 1, "{what}: {} calls", now - begun);
            }
            let now = elision::stats::snapshot();
            let (written, elided) =
                (now.written_bytes - stats.written_bytes, now.elided_bytes - stats.elided_bytes);
            let whole = written + elided == len as u64;
            assert!(step == 2 || whole && written <= 8 * PAGE as u64, "{what}: {written}, {elided} bytes");
            assert_same(&other, &before);
            assert_same(&buffer, &content);
            // While they were held, this would want them for somebody else. Files of their size would not be deferred again.
            drop((buffer, other, file));
            assert_same(&fs::read(&path).unwrap(), &content);
        }
    }
}

/// Into the std world and back: once the plain file is out, nothing may depend on it.
#[test]
fn into_std_lets_go() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(13, LEN);
    common::create(&path, &content).unwrap();
    let file = File::open_with(OpenOptions::new().read(true).write(true), &path).unwrap();
    let mut buffer = file.read(0, LEN).unwrap();
    let plain = file.into_std();
    plain.write_all_at(&bytes(14, 10 * PAGE), 3 * PAGE as u64).unwrap();
    plain.set_len(20 * PAGE as u64).unwrap();
    assert_same(&buffer, &content);
    let deferred = |(_, state): &(_, PageState)| matches!(state, PageState::Deferred | PageState::Loaded);
    assert!(!buffer.ranges().iter().any(deferred));
    elision::write(&path, &mut buffer).unwrap();
    assert_same(&fs::read(&path).unwrap(), &content);
}

fn play(role: &str, arguments: &[String]) {
    match role {
        "other" => common::play_other(),
        "ordinary" => {
            ordinary(Path::new(&arguments[0]));
            common::say("done");
        }
        other => panic!("no such part: {other}"),
    }
}

/// The helper once let go of a file's guard between planning a write and hearing that it was done, if that took longer than
/// a few milliseconds and nothing was tracked yet. So of a large buffer nothing was ever elided, and no test wrote one.
#[test]
fn a_large_checkpoint_writes_what_has_changed() {
    const LARGE: usize = 96 << 20;
    let dir = directory();
    let path = dir.path().join("checkpoint");
    let mut buffer = elision::Buffer::new(LARGE).unwrap();
    for (page, bytes) in buffer.chunks_mut(PAGE).enumerate() {
        bytes.fill(page as u8 | 1);
    }
    elision::write(&path, &mut buffer).unwrap();
    for round in 1..3 {
        let before = elision::stats::snapshot().elided_bytes;
        buffer[round * 1_000_000] ^= 0xff;
        elision::write(&path, &mut buffer).unwrap();
        if common::defers(dir.path()) {
            let elided = elision::stats::snapshot().elided_bytes - before;
            assert_eq!(elided, (LARGE - 2 * PAGE) as u64, "round {round}");
        }
    }
    assert_same(&fs::read(&path).unwrap(), &buffer);
}

/// What was cut off does not come back in a copy, whose last page is the file's to begin with.
#[test]
fn a_copy_of_a_shorter_buffer_grows_by_zeroes() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let content = bytes(11, 40 * PAGE);
    common::create(&path, &content).unwrap();
    for len in [2 * PAGE + 100, 3 * PAGE, 39 * PAGE + 1] {
        let mut buffer = elision::read(&path).unwrap();
        buffer.resize(len).unwrap();
        let mut copy = buffer.try_clone().unwrap();
        copy.resize(60 * PAGE).unwrap();
        assert_same(&copy[..len], &content[..len]);
        assert!(copy[len..].iter().all(|&byte| byte == 0), "{len}");
    }
}

/// A file that was open already: reads through it are deferred if nobody can write through it, and never otherwise.
#[test]
fn a_file_that_was_opened_by_std() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    let path = dir.path().join("data");
    let mut content = bytes(3, 40 * PAGE);
    common::create(&path, &content).unwrap();
    let deferred = || elision::stats::snapshot().deferred_bytes;
    let before = deferred();
    let buffer = File::from(fs::File::open(&path).unwrap()).read(0, usize::MAX).unwrap();
    assert!(buffer[..] == content[..]);
    assert_eq!(deferred() - before, if common::defers_reads(dir.path()) { 40 * PAGE as u64 } else { 0 });
    drop(buffer);

    let plain = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let clone = plain.try_clone().unwrap();
    let file = File::from(plain);
    let before = deferred();
    let mut buffer = file.read(0, usize::MAX).unwrap();
    assert_eq!(deferred(), before);
    clone.write_all_at(&bytes(4, PAGE), 0).unwrap();
    assert!(buffer[..] == content[..]);
    buffer[PAGE] ^= 1;
    content[PAGE] ^= 1;
    file.write(0, &mut buffer).unwrap();
    clone.write_all_at(&bytes(5, PAGE), 2 * PAGE as u64).unwrap();
    file.write(0, &mut buffer).unwrap();
    assert!(fs::read(&path).unwrap() == content, "a write was left out that a clone had undone");
}

/// Where everything is altered each time, reading at once costs less than a fault for each page.
#[test]
fn a_file_that_is_altered_throughout_is_soon_read_at_once() {
    elision::set_min_bytes(PAGE);
    let dir = directory();
    if !common::defers(dir.path()) {
        return;
    }
    let path = dir.path().join("data");
    common::create(&path, bytes(6, 40 * PAGE)).unwrap();
    let edit = |seed: u64, pages: usize| {
        let before = elision::stats::snapshot().deferred_bytes;
        let mut buffer = elision::edit(&path).unwrap();
        let deferred = elision::stats::snapshot().deferred_bytes - before;
        for (page, new) in buffer.chunks_mut(PAGE).zip(bytes(seed, 40 * PAGE).chunks(PAGE)).take(pages) {
            page.copy_from_slice(new);
        }
        elision::write(&path, &mut buffer).unwrap();
        let expected = bytes(seed, pages * PAGE);
        assert!(fs::read(&path).unwrap()[..pages * PAGE] == expected[..]);
        deferred / PAGE as u64
    };
    assert_eq!([1, 2, 3, 4, 5].map(|seed| edit(seed, 40)), [40, 0, 0, 0, 40]);
    let declined = elision::stats::snapshot().declined;
    assert!(declined.contains(&(elision::stats::Reason::MostlyAltered, 3)), "{declined:?}");
    // Until it is found out that little is altered now.
    assert_eq!((0..8).map(|seed| edit(10 + seed, 1)).filter(|&pages| pages == 40).count(), 1);
    assert_eq!(edit(30, 1), 40);
}
