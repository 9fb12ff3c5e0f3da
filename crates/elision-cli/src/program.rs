//! What kind of program a name stands for, and whether the drop-in can reach it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use elision_core::executable::{self, Program as Binary, Room};
use rustix::fs::{StatVfsMountFlags, getxattr_query, statvfs};
use rustix::process::{getgid, getuid};
use rustix::thread::no_new_privs;

/// What keeps the drop-in out of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Obstacle {
    /// No dynamic loader runs that could load anything.
    Static,
    /// Its C library is musl, and the drop-in is made for glibc.
    Musl,
    /// It asks for another loader than this command's glibc has.
    Loader(String),
    /// It is made for another kind of machine.
    Foreign(&'static str),
    /// It needs a library that must be loaded before all others.
    First(&'static str),
    /// It gains privileges when it starts, so the loader ignores LD_PRELOAD.
    Privileged(&'static str),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Obstacle::Static => write!(out, "is statically linked"),
            Obstacle::Musl => write!(out, "is linked against musl, not glibc"),
            Obstacle::Loader(path) => {
                write!(out, "asks for the loader {path}, not for that of Elision's own glibc")
            }
            Obstacle::Foreign(what) => write!(out, "{what}"),
            Obstacle::First(library) => write!(out, "needs {library}, which must be loaded first"),
            Obstacle::Privileged(how) => write!(out, "{how}"),
        }
    }
}

/// What is known about a program.
pub struct Program {
    /// From the named file to the binary that is run: more than one for a script.
    pub chain: Vec<PathBuf>,
    /// The binary could be read. If not, no obstacle is assumed.
    pub readable: bool,
    /// What keeps the drop-in out.
    pub obstacles: Vec<Obstacle>,
}

/// The kernel follows this many interpreters, then gives up.
const MOST_INTERPRETERS: usize = 4;

impl Program {
    /// Examines the program in the file `path`.
    ///
    /// # Errors
    /// An interpreter does not exist, or there are too many.
    pub fn examine(path: &Path) -> io::Result<Program> {
        let mut chain = vec![path.to_owned()];
        loop {
            let file = chain.last().expect("starts with one");
            let (readable, obstacles) = match Format::of(file) {
                Ok(Format::Script(interpreter)) => {
                    let missing = || io::Error::new(io::ErrorKind::NotFound, "its interpreter was not found");
                    chain.push(find(&interpreter).ok_or_else(missing)?);
                    if chain.len() > 2 * MOST_INTERPRETERS {
                        return Err(io::Error::from_raw_os_error(libc::ELOOP));
                    }
                    continue;
                }
                Ok(Format::Elf(obstacle)) => (true, obstacle.into_iter().chain(privileged(file)).collect()),
                Err(_) => (false, privileged(file).into_iter().collect()),
            };
            return Ok(Program { chain, readable, obstacles });
        }
    }

    /// The binary that is run in the end.
    pub fn binary(&self) -> &Path {
        self.chain.last().expect("starts with one")
    }
}

/// The file that `name` runs: with a slash the name itself, otherwise the first executable of that name in PATH.
pub fn find(name: &OsStr) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return Some(name.into()).filter(|path: &PathBuf| path.exists());
    }
    // The default of execvp.
    let path = env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
    env::split_paths(&path).map(|dir| dir.join(name)).find(|path| executable(path))
}

/// Is it an executable regular file?
pub fn executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Would the kernel run this file: ELF or `#!`?
pub fn runnable(path: &Path) -> bool {
    // First, because opening a pipe waits for a writer.
    if !executable(path) {
        return false;
    }
    File::open(path)
        .is_ok_and(|file| is_elf(&file) || matches!(examine(&file, &mut Room::default()), Binary::Script(_)))
}

enum Format {
    /// What interprets it.
    Script(OsString),
    Elf(Option<Obstacle>),
}

impl Format {
    fn of(path: &Path) -> io::Result<Format> {
        if !executable(path) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let file = File::open(path)?;
        Ok(Format::Elf(match examine(&file, &mut Room::default()) {
            Binary::Script(line) => {
                let found = interpreter(line).ok_or(io::ErrorKind::InvalidData)?;
                return Ok(Format::Script(found));
            }
            // execvp has the shell run files that the kernel does not know.
            Binary::Unknown if !is_elf(&file) => return Ok(Format::Script("/bin/sh".into())),
            // A damaged ELF file: the kernel refuses it.
            Binary::Unknown => None,
            Binary::Narrow => Some(Obstacle::Foreign("is a 32-bit program")),
            Binary::Foreign => Some(Obstacle::Foreign("is made for another processor")),
            // A loader itself: it heeds LD_PRELOAD for the program that it is given.
            Binary::Bare if executable::is_named_like_a_loader(path.as_os_str().as_bytes()) => {
                loaded(path.as_os_str().as_bytes(), None)
                    .map(|_| Obstacle::Foreign("is the loader of another C library"))
            }
            Binary::Bare => Some(Obstacle::Static),
            Binary::Loaded { loader, first } => loaded(loader, first),
        }))
    }
}

fn examine<'a>(file: &File, room: &'a mut Room) -> Binary<'a> {
    executable::examine(&|room, offset| file.read_at(room, offset).unwrap_or(0), room)
}

fn is_elf(file: &File) -> bool {
    let mut start = [0; 4];
    file.read_exact_at(&mut start, 0).is_ok() && start == *b"\x7fELF"
}

fn loaded(loader: &[u8], first: Option<&'static str>) -> Option<Obstacle> {
    let name = loader.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if name.starts_with(b"ld-musl") {
        return Some(Obstacle::Musl);
    }
    if !executable::is_glibc_loader(loader) || !is_our_loader(Path::new(OsStr::from_bytes(loader))) {
        return Some(Obstacle::Loader(String::from_utf8_lossy(loader).into_owned()));
    }
    first.map(Obstacle::First)
}

/// Another glibc may be too old for the drop-in, and end the program. True if unknown.
fn is_our_loader(loader: &Path) -> bool {
    let mut room = Room::default();
    let ours = File::open("/proc/self/exe").map(|file| examine(&file, &mut room));
    let Ok(Binary::Loaded { loader: ours, .. }) = ours else { return true };
    let number = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let (ours, theirs) = (number(Path::new(OsStr::from_bytes(ours))), number(loader));
    ours.is_none() || theirs.is_none() || ours == theirs
}

/// A library in LD_PRELOAD that must be loaded before all others.
pub fn first_among(preloaded: &OsStr) -> Option<&'static str> {
    preloaded.as_bytes().split(|byte| b" :".contains(byte)).find_map(executable::must_be_first)
}

/// The program that the first line of a script (after `#!`) runs, also by way of `env`.
fn interpreter(line: &[u8]) -> Option<OsString> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let first = words.next()?;
    if first.rsplit(|&byte| byte == b'/').next() != Some(b"env") {
        return Some(OsStr::from_bytes(first).into());
    }
    // The options and assignments of env come before the name; it may be attached to -S.
    let name = words.find_map(|word| match word {
        [b'-', b'S', attached @ ..] if !attached.is_empty() => Some(attached),
        [b'-', ..] => None,
        word if word.contains(&b'=') => None,
        word => Some(word),
    });
    Some(OsStr::from_bytes(name.unwrap_or(first)).into())
}

/// How the program in this file gains privileges, if it does.
fn privileged(path: &Path) -> Option<Obstacle> {
    let meta = fs::metadata(path).ok()?;
    let ignored = statvfs(path).is_ok_and(|fs| fs.f_flag.contains(StatVfsMountFlags::NOSUID))
        || no_new_privs().unwrap_or(false);
    if ignored {
        return None;
    }
    let mode = meta.permissions().mode();
    if mode & libc::S_ISUID != 0 && meta.uid() != getuid().as_raw() {
        return Some(Obstacle::Privileged("is set-uid, so the loader ignores LD_PRELOAD"));
    }
    // Without execute permission for the group, the bit has no effect.
    let set_gid = libc::S_ISGID | libc::S_IXGRP;
    if mode & set_gid == set_gid && meta.gid() != getgid().as_raw() {
        return Some(Obstacle::Privileged("is set-gid, so the loader ignores LD_PRELOAD"));
    }
    if !getuid().is_root() && getxattr_query(path, "security.capability").is_ok() {
        return Some(Obstacle::Privileged("has file capabilities, so the loader ignores LD_PRELOAD"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines_lead_to_interpreters() {
        let cases = [
            ("/bin/sh", "/bin/sh"),
            (" /bin/sh -e", "/bin/sh"),
            ("/usr/bin/env python3", "python3"),
            ("/usr/bin/env -S python3 -u", "python3"),
            ("/usr/bin/env -Spython3 -u", "python3"),
            ("/usr/bin/env -i A=b ruby", "ruby"),
            ("/usr/bin/env", "/usr/bin/env"),
            ("/opt/environment x", "/opt/environment"),
        ];
        for (line, expected) in cases {
            assert_eq!(interpreter(line.as_bytes()), Some(expected.into()), "#!{line}");
        }
        assert_eq!(interpreter(b"  "), None);
    }

    #[test]
    fn this_test_is_within_reach() {
        let program = Program::examine(&env::current_exe().expect("a path")).expect("examined");
        assert!(program.readable && program.chain.len() == 1);
        assert_eq!(program.obstacles, []);
    }

    /// An ELF header and nothing else, of the class and for the machine given.
    fn header(class: u8, machine: u16) -> Vec<u8> {
        let mut header = vec![0; 64];
        header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1, 1]);
        header[16] = 2; // ET_EXEC
        header[18..20].copy_from_slice(&machine.to_le_bytes());
        header[20] = 1;
        header[54] = 56; // the size of a program header
        header
    }

    #[test]
    fn other_machines_are_told_apart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let of = |bytes: &[u8]| {
            let path = dir.path().join("program");
            fs::write(&path, bytes).expect("write");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
            Program::examine(&path).expect("examined").obstacles
        };
        const S390: u16 = 22;
        assert_eq!(of(&header(1, 3)), [Obstacle::Foreign("is a 32-bit program")]);
        assert_eq!(of(&header(2, S390)), [Obstacle::Foreign("is made for another processor")]);
        assert_eq!(of(&header(2, executable::MACHINE)), [Obstacle::Static]);
    }

    #[test]
    fn scripts_are_followed_to_the_binary() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (outer, inner) = (dir.path().join("outer"), dir.path().join("inner"));
        for script in [&inner, &outer] {
            fs::write(script, "").expect("write");
            fs::set_permissions(script, fs::Permissions::from_mode(0o755)).expect("chmod");
        }
        fs::write(&inner, "#!/usr/bin/env sh\n").expect("write");
        fs::write(&outer, format!("#!{} -x\n", inner.display())).expect("write");
        let program = Program::examine(&outer).expect("examined");
        assert_eq!(program.chain[..2], [outer.clone(), inner]);
        assert_eq!(program.binary().file_name(), Some(OsStr::new("sh")));
        fs::write(&outer, format!("#!{}\n", outer.display())).expect("write");
        assert!(Program::examine(&outer).is_err(), "a script that interprets itself");
        fs::write(&outer, "#!/nonexistent/interpreter\n").expect("write");
        assert!(Program::examine(&outer).is_err(), "an interpreter that is missing");
    }
}
