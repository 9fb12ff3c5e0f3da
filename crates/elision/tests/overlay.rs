//! Files of an overlay: reads of a lower layer's files are deferred, and whatever becomes of the file, the buffer keeps what was read.
//!
//! Each test is a process with a mount of its own, of root's or in a user namespace. `scripts/test overlay` runs other tests on an overlay.
#![allow(unsafe_code)] // Mounts and mappings.

mod common;

use common::{Foreign, PAGE, Part, bytes, difference, directory};
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

crate::roles!(play);

fn play(role: &str, arguments: &[String]) {
    elision::set_min_bytes(PAGE);
    if role == "other" {
        return common::play_other();
    }
    if role == "mapper" {
        return map(Path::new(&arguments[0]));
    }
    // (No overlay has its upper layer on an overlay.)
    let dir =
        if common::lower().is_some() { common::directory_in(&std::env::temp_dir()) } else { directory() };
    let layers = match Layers::mount(dir.path()) {
        Ok(layers) => layers,
        Err(error) => return println!("skipped: no overlay: {error}"),
    };
    match role {
        "changes" => changes(&layers),
        "mapped" => mapped(&layers),
        _ => races(&layers),
    }
    println!("done");
}

fn in_a_process_of_its_own(role: &str) {
    let mut part = Part::start(role, &[]);
    let said = part.hear();
    println!("{said}");
    part.finish();
    assert!(said == "done" || said.starts_with("skipped: "), "{said}");
}

/// An overlay of this process's own.
struct Layers {
    lower: PathBuf,
    root: PathBuf,
}

impl Layers {
    fn mount(dir: &Path) -> io::Result<Layers> {
        let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|name| dir.join(name));
        for dir in [&lower, &upper, &work, &root] {
            fs::create_dir(dir)?;
        }
        let done = |result| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: no memory; this process has one thread.
        unsafe {
            let [user, group] = [libc::geteuid(), libc::getegid()];
            let spaces = if user == 0 { libc::CLONE_NEWNS } else { libc::CLONE_NEWNS | libc::CLONE_NEWUSER };
            done(libc::unshare(spaces))?;
            if user != 0 {
                fs::write("/proc/self/setgroups", "deny")?;
                fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
                fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
            }
        }
        let text = |text: &str| CString::new(text).unwrap();
        let [lower_name, upper, work] = [&lower, &upper, &work].map(|dir| dir.display());
        let options = text(&format!("lowerdir={lower_name},upperdir={upper},workdir={work}"));
        let (kind, at) = (text("overlay"), text(root.to_str().unwrap()));
        // SAFETY: C strings.
        unsafe {
            let private = libc::MS_REC | libc::MS_PRIVATE;
            done(libc::mount(kind.as_ptr(), c"/".as_ptr(), kind.as_ptr(), private, std::ptr::null()))?;
            done(libc::mount(kind.as_ptr(), at.as_ptr(), kind.as_ptr(), 0, options.as_ptr().cast()))?;
        }
        Ok(Layers { lower, root })
    }

    /// A new file of the lower layer, by its name on the overlay.
    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        fs::write(self.lower.join(name), content).unwrap();
        self.root.join(name)
    }
}

/// Reads the file, and says how much was deferred.
fn read(path: &Path) -> (elision::Buffer, usize) {
    let deferred = || elision::stats::snapshot().deferred_bytes as usize;
    let before = deferred();
    let buffer = elision::read(path).unwrap();
    (buffer, deferred() - before)
}

fn assert_same(got: &[u8], expected: &[u8], what: &str) {
    if let Some(how) = difference(got, expected) {
        panic!("{what}: {how}");
    }
}

const PAGES: usize = 64;

#[test]
fn a_buffer_outlasts_every_change_of_a_file_of_a_lower_layer() {
    in_a_process_of_its_own("changes");
}

fn changes(layers: &Layers) {
    if !common::defers(&layers.lower) {
        return;
    }
    let mut other = Part::start("other", &[]);
    let len = PAGES * PAGE;
    // With the change, whether the file is copied up.
    let change = |at: usize, path: PathBuf| {
        let text = |path| Foreign::Rewrite { path, len: len / 2, seed: 8 };
        match at {
            0 => Foreign::Write { path, offset: 5, len: len - 9, seed: 2 },
            1 => Foreign::Truncate { path, len: 100 },
            2 => text(path),
            3 => Foreign::Append { path, len, seed: 3 },
            4 => Foreign::Replace { path, len, seed: 4 },
            5 => Foreign::Recreate { path, len, seed: 5 },
            6 => Foreign::Unlink { path },
            7 => Foreign::Mode { path, mode: 0o640 },
            8 => Foreign::Hold { path, write: true },
            _ => Foreign::Write { path, offset: 0, len, seed: 6 },
        }
    };
    for at in 0..10 {
        let path = layers.file(&format!("file{at}"), &bytes(1, len));
        let (mut buffer, deferred) = read(&path);
        assert_eq!(deferred, len, "change {at}");
        let mut expected = bytes(1, len);
        for page in [3, 7, 60] {
            (buffer[page * PAGE], expected[page * PAGE]) = (9, 9);
        }
        assert_eq!(buffer[20 * PAGE], expected[20 * PAGE]);
        if at == 9 {
            // No lease is broken by this. (Elsewhere all pages are lost.)
            drop(common::open_flags(&path, libc::O_TRUNC).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        }
        other.ask(&change(at, path.clone())).unwrap();
        assert_same(&buffer[..PAGE], &expected[..PAGE], "the beginning");
        if at == 7 {
            // It was copied up under the lease. Its next change is announced all the same.
            other.ask(&change(0, path.clone())).unwrap();
        }
        assert_same(&buffer, &expected, &format!("after change {at}"));
        other.ask(&Foreign::LetGo).unwrap();
        if at != 6 {
            let (again, deferred) = read(&path);
            assert_same(&again, &fs::read(&path).unwrap(), &format!("read after change {at}"));
            assert_eq!(deferred, 0, "after change {at} it is of the upper layer");
        }
        elision_core::client::memory::validate().unwrap();
    }
    other.finish();
}

/// Maps the file to be stored into, closes it, and stores a number when it is told one.
fn map(path: &Path) {
    let page = map_and_close(path).unwrap();
    common::say("mapped");
    while let Ok(number) = common::hear().parse() {
        page.store(number, SeqCst);
        common::say("stored");
    }
}

fn map_and_close(path: &Path) -> io::Result<&'static AtomicU64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let may = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping, never unmapped.
    unsafe {
        let addr = libc::mmap(std::ptr::null_mut(), PAGE, may, libc::MAP_SHARED, file.as_raw_fd(), 0);
        if addr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(AtomicU64::from_ptr(addr.cast()))
    }
}

/// A lease is granted beside such a mapping.
#[test]
fn a_file_that_somebody_may_have_mapped_is_not_deferred() {
    in_a_process_of_its_own("mapped");
}

fn mapped(layers: &Layers) {
    let len = PAGES * PAGE;
    let made = layers.root.join("made");
    fs::write(&made, bytes(1, len)).unwrap();
    let [written, moded] = ["written", "moded"].map(|name| layers.file(name, &bytes(1, len)));
    let linked = layers.file("linked", &bytes(1, len));
    fs::hard_link(&linked, layers.root.join("link")).unwrap();
    fs::set_permissions(&moded, PermissionsExt::from_mode(0o600)).unwrap();
    for path in [made, written, moded, linked] {
        let mut mapper = Part::start("mapper", &[path.to_str().unwrap()]);
        mapper.expect("mapped");
        elision::probe::read_lease(&path).unwrap();
        let (buffer, _) = read(&path);
        mapper.say("77");
        mapper.expect("stored");
        assert_same(&buffer, &bytes(1, len), path.to_str().unwrap());
        mapper.finish();
    }
}

/// While it is read, another process copies it up, maps it, and stores.
#[test]
fn a_file_that_is_copied_up_meanwhile_does_not_change_in_the_buffer() {
    in_a_process_of_its_own("races");
}

fn races(layers: &Layers) {
    let (mut early, mut late) = (0, 0);
    for round in 0..150u64 {
        let path = layers.file(&format!("file{round}"), &bytes(1, PAGES * PAGE));
        let (stored, done) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let page = map_and_close(&path).unwrap();
                while done.load(SeqCst) == 0 {
                    page.fetch_add(1, SeqCst);
                    stored.fetch_add(1, SeqCst);
                }
            });
            let mut seen = 0;
            while seen < 3 {
                let (buffer, deferred) = read(&path);
                if deferred > 0 {
                    early += 1
                } else {
                    late += 1
                }
                let now = buffer.to_vec();
                let before = stored.load(SeqCst);
                if before > 0 {
                    seen += 1;
                    while stored.load(SeqCst) < before + 3 {
                        std::hint::spin_loop();
                    }
                }
                if let Some(how) = difference(&buffer, &now) {
                    done.store(1, SeqCst);
                    panic!("round {round}: {how}");
                }
            }
            done.store(1, SeqCst);
        });
    }
    eprintln!("{early} deferred, {late} not");
    assert!(late > 0);
}
