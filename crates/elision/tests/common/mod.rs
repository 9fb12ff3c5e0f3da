//! What the tests share: a place for files, bytes to fill them with, and processes to play a part.
//!
//! A part is played by the test program itself, started anew with [`ROLE`] set: it never reaches the test
//! harness, but goes to the function that [`roles!`](crate::roles) names. So a test starts with other processes that
//! are real, cost one exec and need no interpreter.
#![allow(dead_code)] // Each test file uses its share.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const PAGE: usize = 4096;

/// Names the part that a process is to play.
pub const ROLE: &str = "TEST_ROLE";

/// Says where processes begin that play a part: a function from the part's name and the arguments.
#[macro_export]
macro_rules! roles {
    ($play:path) => {
        #[used]
        #[unsafe(link_section = ".init_array")]
        static BEGIN: extern "C" fn() = {
            extern "C" fn begin() {
                elision_core::client::life::watch_faults();
                // The files of these tests have this size or more.
                elision::set_min_bytes(1 << 20);
                if let Ok(role) = std::env::var($crate::common::ROLE) {
                    let arguments: Vec<String> = std::env::args().skip(1).collect();
                    let good = std::panic::catch_unwind(|| $play(&role, &arguments)).is_ok();
                    let _ = std::io::Write::flush(&mut std::io::stdout());
                    // SAFETY: ends the process before a test harness begins.
                    unsafe { libc::_exit(if good { 0 } else { 101 }) };
                }
            }
            begin
        };
    };
}

/// Plays up to `usual` random cases in portions (`play` is told how many), and says how many were played: no more than a fifth on a
/// machine where that many take [`AMPLE`]. `PROPTEST_CASES` sets the number, however long that takes.
pub fn in_ample_time(usual: u32, mut play: impl FnMut(u32)) -> u32 {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok());
    let (wanted, least) = asked.map_or((usual, usual / 5), |asked| (asked, asked));
    let (portion, begun) = ((usual / 20).max(1), Instant::now());
    let mut played = 0;
    while played < wanted && (played < least || begun.elapsed() < AMPLE) {
        let next = portion.min(wanted - played);
        play(next);
        played += next;
    }
    played
}

/// What one test of random cases may take. The runner ends a test after five minutes.
const AMPLE: Duration = Duration::from_secs(30);

/// A test's own directory, gone with the value.
pub struct Directory {
    path: PathBuf,
    /// Where `path` is on an overlay: what the overlay finds there in its lower layer.
    below: Option<PathBuf>,
}

impl Directory {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsRef<Path> for Directory {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for path in Some(&self.path).into_iter().chain(&self.below) {
            let _ = fs::remove_dir_all(path);
        }
    }
}

/// A new directory in the place that the tests are run for. On an overlay its files are in the upper layer, but for those that
/// [`create`] makes.
pub fn directory() -> Directory {
    match (std::env::var_os("ELISION_TEST_DIR"), lower()) {
        (Some(dir), Some(lower)) => {
            let below = tempfile::tempdir_in(lower).unwrap().keep();
            Directory { path: Path::new(&dir).join(below.file_name().unwrap()), below: Some(below) }
        }
        (dir, _) => directory_in(&dir.map_or_else(std::env::temp_dir, PathBuf::from)),
    }
}

pub fn directory_in(dir: &Path) -> Directory {
    Directory { path: tempfile::tempdir_in(dir).unwrap().keep(), below: None }
}

/// The lower layer, where the place that the tests are run for is an overlay.
pub fn lower() -> Option<PathBuf> {
    std::env::var_os("ELISION_TEST_LOWER").map(PathBuf::from)
}

/// As `fs::write`. On an overlay a file that is new, and that nobody has looked for yet, is made in the lower layer.
pub fn create(path: &Path, content: impl AsRef<[u8]>) -> io::Result<()> {
    static MADE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let below = std::env::var_os("ELISION_TEST_DIR")
        .zip(lower())
        .filter(|_| MADE.lock().unwrap().insert(path.into()));
    let below = below.and_then(|(dir, lower)| Some(lower.join(path.strip_prefix(dir).ok()?)));
    fs::write(below.as_deref().unwrap_or(path), content)
}

const TMPFS: i64 = 0x0102_1994;

/// Which file system is it?
fn file_system(dir: &Path) -> i64 {
    let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: plain data, filled by the kernel.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        assert_eq!(libc::statfs(path.as_ptr(), &mut stat), 0);
        stat.f_type
    }
}

/// Is what was known of a file's pages still worth something after its guard was let go for a moment? Not where a file
/// can change without its times.
#[allow(dead_code)] // Not every test asks.
pub fn remembers(dir: &Path) -> bool {
    file_system(dir) != TMPFS
}

/// Numbers that look random and are the same each time.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Must a read of a file that [`create`] made be deferred?
pub fn defers_reads(dir: &Path) -> bool {
    let layer = lower();
    defers(layer.as_deref().unwrap_or(dir))
}

/// Must a read of a file of ours in `dir` be deferred? Not where leases are not trusted, nor before Linux 6.7.
pub fn defers(dir: &Path) -> bool {
    if let Err(error) = elision_core::probe::pagemap_scan() {
        println!("skipped: nothing is deferred by this kernel: PAGEMAP_SCAN: {error}");
        return false;
    }
    let magic = file_system(dir);
    let known = [0xEF53, 0x5846_5342, 0x9123_683E, TMPFS].contains(&magic);
    if !known {
        println!("skipped: file system {magic:#x} is not one that reads are deferred from");
    }
    known
}

/// Bytes that depend on `seed` and on nothing else; seed 0 gives zeroes.
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    if seed == 0 {
        return vec![0; len];
    }
    let mut words = vec![0u64; len.div_ceil(8)];
    let mut word = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for slot in &mut words {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        *slot = word;
    }
    // SAFETY: any eight bytes of a u64 are bytes; the slice is no longer than the words.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<u8>(), len) }.to_vec()
}

/// Where two byte strings begin to differ, in words; `None` if they do not.
pub fn difference(got: &[u8], expected: &[u8]) -> Option<String> {
    if got == expected {
        return None;
    }
    if got.len() != expected.len() {
        return Some(format!("{} bytes instead of {}", got.len(), expected.len()));
    }
    let at = (0..got.len()).find(|&i| got[i] != expected[i]).unwrap_or(0);
    let count = (0..got.len()).filter(|&i| got[i] != expected[i]).count();
    Some(format!(
        "{count} bytes differ, the first at {at} (page {}): {:#x} instead of {:#x}",
        at / PAGE,
        got[at],
        expected[at]
    ))
}

/// Polls where the kernel offers no event.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Descriptors that this process has open, by number.
pub fn descriptors() -> Vec<i32> {
    let mut numbers: Vec<i32> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    // The one of the listing itself is closed by now.
    // SAFETY: no memory is involved.
    numbers.retain(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0);
    numbers.sort_unstable();
    numbers
}

/// The helpers of a process: children of its children that go by these names.
pub fn helpers(pid: i32) -> Vec<i32> {
    children("elision", &supervisors(pid))
}

/// What starts them.
pub fn supervisors(pid: i32) -> Vec<i32> {
    children("elision-watch", &[pid])
}

/// The processes of this name that are children of one of these, and not dead.
fn children(name: &str, parents: &[i32]) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(candidate) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((comm, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let (state, parent) = (fields.next(), fields.next());
        let parent = parent.and_then(|pid| pid.parse().ok());
        if comm.split_once('(').is_some_and(|(_, comm)| comm == name)
            && state != Some("Z")
            && parent.is_some_and(|pid| parents.contains(&pid))
        {
            found.push(candidate);
        }
    }
    found
}

/// A process that plays a part, and lines to and from it.
pub struct Part {
    pub child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Part {
    /// Starts a process that plays `role`.
    pub fn start(role: &str, arguments: &[&str]) -> Part {
        Part::start_with(role, arguments, |_| ())
    }

    /// The same, with a say in how.
    pub fn start_with(role: &str, arguments: &[&str], with: impl FnOnce(&mut Command)) -> Part {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(arguments).env(ROLE, role).stdin(Stdio::piped()).stdout(Stdio::piped());
        with(&mut command);
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Part { child, stdin, stdout }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Says a line to it.
    pub fn say(&mut self, line: &str) {
        writeln!(self.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line that it says; panics if there is none within a minute.
    pub fn hear(&mut self) -> String {
        self.hear_within(60).expect("the other process says nothing")
    }

    /// The next line that it says; `None` if there is none in time.
    pub fn hear_within(&mut self, seconds: u64) -> Option<String> {
        if self.stdout.buffer().is_empty() {
            let mut wait =
                libc::pollfd { fd: self.stdout.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one struct of ours.
            let ready = unsafe { libc::poll(&mut wait, 1, (seconds * 1000) as i32) };
            if ready == 0 {
                return None;
            }
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        Some(line.trim_end().to_owned())
    }

    /// Is it waited for with `said`? Says what it heard if not.
    pub fn expect(&mut self, said: &str) {
        assert_eq!(self.hear(), said);
    }

    /// Lets it end, and sees that it ended well.
    pub fn finish(mut self) {
        drop(self.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// Asks a process that plays `other` to do something to files.
    pub fn ask(&mut self, command: &Foreign) -> io::Result<Vec<u8>> {
        let text = command.encode();
        self.stdin.as_mut().unwrap().write_all(&text).unwrap();
        let mut wait =
            libc::pollfd { fd: self.stdout.get_ref().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        if self.stdout.buffer().is_empty() {
            // SAFETY: one struct of ours.
            let ready = unsafe { libc::poll(&mut wait, 1, 60_000) };
            assert!(ready > 0, "the other process does not get through: {command:?}");
        }
        let mut head = [0; 12];
        self.stdout.read_exact(&mut head).unwrap();
        let errno = i32::from_le_bytes(head[..4].try_into().unwrap());
        let mut answer = vec![0; u64::from_le_bytes(head[4..].try_into().unwrap()) as usize];
        self.stdout.read_exact(&mut answer).unwrap();
        if errno == 0 { Ok(answer) } else { Err(io::Error::from_raw_os_error(errno)) }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if std::thread::panicking() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// In a process that plays a part: says a line.
pub fn say(line: &str) {
    println!("{line}");
    io::stdout().flush().unwrap();
}

/// In a process that plays a part: the next line that was said to it; empty at the end.
pub fn hear() -> String {
    // Byte by byte, so that what follows the line stays for whoever reads next.
    let mut line = String::new();
    let mut byte = 0u8;
    // SAFETY: one byte of ours.
    while unsafe { libc::read(0, (&raw mut byte).cast(), 1) } == 1 && byte != b'\n' {
        line.push(byte as char);
    }
    line
}

/// What another process can do to a file.
#[derive(Clone, Debug)]
pub enum Foreign {
    /// Writes `len` bytes of `seed` at `offset`.
    Write { path: PathBuf, offset: u64, len: usize, seed: u64 },
    /// truncate(2).
    Truncate { path: PathBuf, len: u64 },
    /// Opens with O_TRUNC and writes.
    Rewrite { path: PathBuf, len: usize, seed: u64 },
    /// Opens with O_APPEND and writes.
    Append { path: PathBuf, len: usize, seed: u64 },
    /// Makes a new file and renames it over the old one.
    Replace { path: PathBuf, len: usize, seed: u64 },
    /// Unlinks and creates.
    Recreate { path: PathBuf, len: usize, seed: u64 },
    /// Unlinks.
    Unlink { path: PathBuf },
    /// chmod(2): an overlay copies the file to its upper layer.
    Mode { path: PathBuf, mode: u32 },
    /// Opens, to write as well or not, and keeps it open (one at a time).
    Hold { path: PathBuf, write: bool },
    /// Writes through what it holds.
    WriteHeld { offset: u64, len: usize, seed: u64 },
    /// Lets go of what it holds.
    LetGo,
    /// Reads everything.
    Read { path: PathBuf },
}

impl Foreign {
    fn encode(&self) -> Vec<u8> {
        let none = Path::new("");
        let (code, path, offset, len, seed) = match self {
            Foreign::Write { path, offset, len, seed } => (0u64, &**path, *offset, *len as u64, *seed),
            Foreign::Truncate { path, len } => (1, &**path, 0, *len, 0),
            Foreign::Rewrite { path, len, seed } => (2, &**path, 0, *len as u64, *seed),
            Foreign::Append { path, len, seed } => (3, &**path, 0, *len as u64, *seed),
            Foreign::Replace { path, len, seed } => (4, &**path, 0, *len as u64, *seed),
            Foreign::Recreate { path, len, seed } => (5, &**path, 0, *len as u64, *seed),
            Foreign::Unlink { path } => (6, &**path, 0, 0, 0),
            Foreign::Hold { path, write } => (7, &**path, 0, u64::from(*write), 0),
            Foreign::WriteHeld { offset, len, seed } => (8, none, *offset, *len as u64, *seed),
            Foreign::LetGo => (9, none, 0, 0, 0),
            Foreign::Read { path } => (10, &**path, 0, 0, 0),
            Foreign::Mode { path, mode } => (11, &**path, 0, u64::from(*mode), 0),
        };
        let path = path.as_os_str().as_encoded_bytes();
        let mut text = Vec::new();
        for number in [code, offset, len, seed, path.len() as u64] {
            text.extend(number.to_le_bytes());
        }
        text.extend(path);
        text
    }
}

/// The part of the other process: does what it is asked, until its input ends.
pub fn play_other() {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut held: Option<fs::File> = None;
    let mut head = [0; 40];
    while input.read_exact(&mut head).is_ok() {
        let number = |i: usize| u64::from_le_bytes(head[i * 8..i * 8 + 8].try_into().unwrap());
        let (code, offset, len, seed) = (number(0), number(1), number(2), number(3));
        let mut path = vec![0; number(4) as usize];
        input.read_exact(&mut path).unwrap();
        let path = PathBuf::from(String::from_utf8(path).unwrap());
        let content = || bytes(seed, len as usize);
        let done = (|| -> io::Result<Vec<u8>> {
            let writer = || fs::OpenOptions::new().write(true).open(&path);
            match code {
                0 => writer()?.write_all_at(&content(), offset)?,
                1 => {
                    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
                    // SAFETY: a C string of ours.
                    if unsafe { libc::truncate(path.as_ptr(), len as i64) } != 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                2 => fs::write(&path, content())?,
                3 => fs::OpenOptions::new().append(true).open(&path)?.write_all(&content())?,
                4 => {
                    let beside = path.with_extension("new");
                    fs::write(&beside, content())?;
                    fs::rename(&beside, &path)?;
                }
                5 => {
                    fs::remove_file(&path)?;
                    fs::write(&path, content())?;
                }
                6 => fs::remove_file(&path)?,
                7 => held = Some(fs::OpenOptions::new().read(true).write(len != 0).open(&path)?),
                8 => held.as_ref().unwrap().write_all_at(&content(), offset)?,
                9 => held = None,
                11 => fs::set_permissions(&path, fs::Permissions::from_mode(len as u32))?,
                _ => return fs::read(&path),
            }
            Ok(Vec::new())
        })();
        let errno = done.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
        let answer = done.unwrap_or_default();
        output.write_all(&errno.to_le_bytes()).unwrap();
        output.write_all(&(answer.len() as u64).to_le_bytes()).unwrap();
        output.write_all(&answer).unwrap();
        output.flush().unwrap();
    }
}

/// Opens as `std::fs::File::open` does, with flags.
pub fn open_flags(path: &Path, flags: i32) -> io::Result<fs::File> {
    fs::OpenOptions::new().read(true).custom_flags(flags).open(path)
}
