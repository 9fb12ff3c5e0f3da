//! Runs one program several times, without the drop-in and with it, each time in a fresh directory, and wants
//! the same from all: what it prints, how it ends, and what it leaves behind.

#[allow(dead_code)] // Few tests have a file system of their own.
pub mod image;

use std::collections::BTreeMap;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The drop-in that cargo built for these tests.
pub fn library() -> PathBuf {
    let name = "libelision_preload.so";
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    [deps.join(name), deps.parent().unwrap().join(name)]
        .into_iter()
        .filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path)))
        .max()
        .unwrap_or_else(|| panic!("no {name} in {} or above", deps.display()))
        .1
}

/// How a program ended, and all that it said.
#[allow(dead_code)] // For tests that start programs themselves.
pub fn text(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// One counter of the statistics, summed over all processes.
#[allow(dead_code)] // Not every test counts.
pub fn counter(stats: &str, name: &str) -> u64 {
    let name = format!("\"{name}\":");
    let counts = |line: &str| line.split(",\"declined_read_bytes\"").next().unwrap().to_owned();
    let stats: String = stats.lines().map(counts).collect();
    let digits =
        |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().unwrap();
    stats.split(&name).skip(1).map(digits).sum()
}

/// Has the command run under the drop-in, with every transfer of a page or more offered, and statistics added there.
#[allow(dead_code)] // Nor does every one ask for statistics.
pub fn offer_everything(command: &mut Command, stats: &Path) {
    command.env("LD_PRELOAD", library()).env("ELISION_MIN_BYTES", "4096").env("ELISION_STATS", stats);
}

/// Is there a lease on the file? Then opening it for writing without waiting is refused.
#[allow(dead_code)] // Not every test asks.
pub fn leased(path: &Path) -> bool {
    match std::fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path) {
        Ok(_) => false,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => true,
        Err(error) => panic!("{error}"),
    }
}

#[allow(dead_code)] // Few tests differ there.
#[allow(unsafe_code)] // A structure that the kernel fills.
pub fn on_tmpfs(path: &Path) -> bool {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let mut status = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a C string, and a struct that the kernel fills.
    unsafe {
        libc::statfs(path.as_ptr(), status.as_mut_ptr()) == 0 && status.assume_init().f_type == 0x0102_1994
    }
}

/// Compiles `tests/c/<name>.c`, with `flags`, into `directory`. Where `TEST_PROGRAMS` names a directory, each program is compiled once
/// for all tests, and copied from there.
#[allow(dead_code)] // Not every test has a C program.
pub fn compile(directory: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let program = directory.join(name);
    // A path among the flags is one test's own.
    let shared = std::env::var_os("TEST_PROGRAMS").filter(|_| flags.iter().all(|flag| !flag.contains('/')));
    let kept = shared.map(|shared| Path::new(&shared).join(name.to_owned() + &flags.concat()));
    if kept.as_ref().is_some_and(|kept| std::fs::copy(kept, &program).is_ok()) {
        return program;
    }
    let source = format!("tests/c/{name}.c");
    let output = Command::new("cc")
        .args(["-std=gnu11", "-Wall", "-Wno-unused-result", "-o"])
        .arg(&program)
        .arg(source)
        .args(flags)
        // (Libraries of their own before glibc 2.34.)
        .args(["-pthread", "-ldl"])
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if let Some(kept) = kept {
        // Renamed, so that no other test copies a part.
        let part = kept.with_added_extension(std::process::id().to_string());
        let _ = std::fs::copy(&program, &part).and_then(|_| std::fs::rename(&part, kept));
    }
    program
}

/// How a run goes.
#[derive(Debug, Clone, Copy)]
pub enum With {
    /// Without the drop-in.
    Nothing,
    /// With it, but told to do nothing.
    Off,
    /// With it, and transfers of this size and more offered.
    Least(usize),
}

#[allow(dead_code)] // As above.
pub fn run(with: With, program: &Path, arguments: &[&str]) -> (Output, BTreeMap<String, Vec<u8>>) {
    let place = std::env::var_os("ELISION_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::tempdir_in(place).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&directory).env_remove("LD_PRELOAD").env_remove("ELISION");
    match with {
        With::Nothing => {}
        With::Off => drop(command.env("LD_PRELOAD", library()).env("ELISION", "off")),
        With::Least(bytes) => {
            command.env("LD_PRELOAD", library()).env("ELISION_MIN_BYTES", bytes.to_string());
        }
    }
    let output = command.output().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut left = BTreeMap::new();
    for entry in std::fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            left.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
        }
    }
    (output, left)
}

/// The same in all ways of running it, and not a failure; gives what was printed.
pub fn same(program: &Path, arguments: &[&str]) -> String {
    same_with(program, arguments, &[With::Off, With::Least(4096), With::Least(64 * 1024)])
}

/// The same with these runs under the drop-in.
pub fn same_with(program: &Path, arguments: &[&str], runs: &[With]) -> String {
    let (plain, left) = run(With::Nothing, program, arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(plain.status.success(), "{:?}\n{}{}", plain.status, text(&plain.stdout), text(&plain.stderr));
    for &with in runs {
        let (ours, ours_left) = run(with, program, arguments);
        assert_eq!(text(&plain.stdout), text(&ours.stdout), "stdout, {with:?}");
        assert_eq!(text(&plain.stderr), text(&ours.stderr), "stderr, {with:?}");
        assert_eq!(plain.status, ours.status, "status, {with:?}");
        let names = |left: &BTreeMap<String, Vec<u8>>| left.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&left), names(&ours_left), "files, {with:?}");
        for (name, bytes) in &left {
            assert!(*bytes == ours_left[name], "contents of {name}, {with:?}");
        }
    }
    text(&plain.stdout)
}

/// Numbers that look random and are the same each time.
#[allow(dead_code)] // Few tests have use for chance.
pub struct Dice(pub u64);

#[allow(dead_code)] // As above.
impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Opens the files of a directory at random moments, in every way that breaks a lease and changes nothing, until `done`. Says
/// how often that was, and how often it would have had to wait.
#[allow(dead_code)] // As above.
pub fn want_files(directory: &Path, mut dice: Dice, done: &AtomicBool) -> (u64, u64) {
    use std::os::unix::fs::OpenOptionsExt;
    let (mut opened, mut refused) = (0, 0);
    while !done.load(Relaxed) {
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        for path in files.map(|entry| entry.path()).filter(|path| path.is_file()) {
            let mut open = std::fs::File::options();
            match dice.below(8) {
                0 => open.read(true),
                1 => open.write(true),
                2 => open.read(true).write(true),
                3 | 4 => open.write(true).custom_flags(libc::O_NONBLOCK),
                _ => continue,
            };
            match open.open(&path) {
                Ok(file) => {
                    opened += 1;
                    // Held open now and then, so that leases are refused as well.
                    if dice.below(8) == 0 {
                        std::thread::sleep(Duration::from_micros(dice.below(500)));
                    }
                    drop(file);
                }
                Err(error) => refused += u64::from(error.kind() == std::io::ErrorKind::WouldBlock),
            }
        }
        // The moments are random, and no event could stand for them.
        std::thread::sleep(Duration::from_micros(dice.below(3_000)));
    }
    (opened, refused)
}

/// A cgroup that counts memory, if this machine lets us have one; perhaps with a limit. It goes with the value.
#[allow(dead_code)] // As above.
pub struct Group(pub PathBuf);

#[allow(dead_code)] // As above.
impl Group {
    pub fn new(limit: Option<u64>) -> Option<Group> {
        let name = format!("elision-test-{}", std::process::id());
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        versions.into_iter().find_map(|(place, file)| {
            let group = Group(Path::new(place).join(&name));
            let limit = limit.map_or("-1".to_owned(), |bytes| bytes.to_string());
            let limit = if file == "memory.max" && limit == "-1" { "max".to_owned() } else { limit };
            let made = std::fs::create_dir(&group.0).and_then(|()| std::fs::write(group.0.join(file), limit));
            made.is_ok().then_some(group)
        })
    }

    /// Takes this process in, and all that it starts from then on, until the value goes.
    pub fn join(&self) {
        std::fs::write(self.0.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    }

    /// Has the kernel take away what memory it can. False where it cannot be asked to.
    pub fn reclaim(&self) -> bool {
        // Where less can be taken than was asked for, that is an error.
        let ask = |file: &str| {
            let path = self.0.join(file);
            path.exists()
                && std::fs::write(path, "1G").map_or_else(|error| error.kind() != PERMISSION, |()| true)
        };
        ask("memory.reclaim") || ask("memory.force_empty")
    }
}

const PERMISSION: std::io::ErrorKind = std::io::ErrorKind::PermissionDenied;

impl Drop for Group {
    fn drop(&mut self) {
        let above = self.0.parent().unwrap().join("cgroup.procs");
        let _ = std::fs::write(above, std::process::id().to_string());
        let deadline = Instant::now() + Duration::from_secs(5);
        // Busy until the last process has gone.
        while std::fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
