//! What running programs have deferred, seen from outside: the helper's leases (`/proc/locks`), the program's mappings of those files
//! (`/proc/PID/maps`), and their pages (`/proc/PID/pagemap`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use elision_sys::pages::{Run, Wanted, category, scan};

const PAGE: u64 = elision_sys::PAGE as u64;

/// A file that memory of a program stands for. Bytes.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Held {
    pub path: String,
    pub deferred: u64,
    pub loaded: u64,
    pub own: u64,
}

/// A program that has a helper.
#[derive(Debug)]
pub struct Program {
    pub pid: i32,
    pub name: String,
    /// Resident memory: its own, and of files.
    pub own: u64,
    pub shared: u64,
    /// The largest first.
    pub files: Vec<Held>,
}

/// The programs that have a helper and may be looked at: all, or the one. Sorted by their number.
pub fn programs(only: Option<i32>) -> Vec<Program> {
    let leases = leases(&fs::read_to_string("/proc/locks").unwrap_or_default());
    let mut helpers: BTreeMap<i32, i32> = BTreeMap::new();
    let mut supervisors: BTreeMap<i32, i32> = BTreeMap::new();
    for pid in processes() {
        let Some((name, parent)) = name_and_parent(pid) else { continue };
        match name.as_str() {
            "elision" => drop(helpers.insert(pid, parent)),
            "elision-watch" => drop(supervisors.insert(pid, parent)),
            _ => (),
        }
    }
    let mut found: BTreeMap<i32, Program> = BTreeMap::new();
    for (helper, supervisor) in helpers {
        let Some(&pid) = supervisors.get(&supervisor).filter(|pid| only.is_none_or(|only| only == **pid))
        else {
            continue;
        };
        let guarded = leases.get(&helper).cloned().unwrap_or_default();
        if let Some(program) = program(pid, &guarded) {
            found.insert(pid, program);
        }
    }
    found.into_values().collect()
}

fn processes() -> impl Iterator<Item = i32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// From `/proc/PID/stat`: `pid (name) state parent …`.
fn name_and_parent(pid: i32) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1;
    Some((name.to_owned(), after.split_whitespace().nth(1)?.parse().ok()?))
}

/// Device and inode, as `/proc/locks` writes them: `fe:00:1234`.
type Key = String;

/// The files that processes have leases on: `1: LEASE  ACTIVE    READ  4711 fe:00:1234 0 EOF`.
fn leases(locks: &str) -> BTreeMap<i32, Vec<Key>> {
    let mut leases: BTreeMap<i32, Vec<Key>> = BTreeMap::new();
    for line in locks.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "LEASE", _, _, pid, key, ..] = fields[..] else { continue };
        if let Ok(pid) = pid.parse() {
            leases.entry(pid).or_default().push(key.to_owned());
        }
    }
    leases
}

fn program(pid: i32, guarded: &[Key]) -> Option<Program> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut files: BTreeMap<Key, Held> = BTreeMap::new();
    for mapping in maps.lines().filter_map(Mapping::of).filter(|mapping| guarded.contains(&mapping.key)) {
        let held = files.entry(mapping.key).or_default();
        held.path = mapping.path;
        count(&pagemap, mapping.start, mapping.end, held);
    }
    let mut files: Vec<Held> = files.into_values().collect();
    files.sort_by_key(|held| std::cmp::Reverse(held.deferred + held.loaded + held.own));
    let size = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    };
    let shared = size("RssFile:").unwrap_or_default() + size("RssShmem:").unwrap_or_default();
    Some(Program { pid, name: command(pid), own: size("RssAnon:").unwrap_or_default(), shared, files })
}

/// The name of the program's file, and the first argument.
fn command(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words =
        line.split(|&byte| byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy);
    let first = words.next().unwrap_or_default();
    let first = Path::new(&*first).file_name().unwrap_or_default().to_string_lossy().into_owned();
    words.next().map_or(first.clone(), |second| format!("{first} {second}"))
}

/// A private mapping that may be stored to.
struct Mapping {
    start: usize,
    end: usize,
    key: Key,
    path: String,
}

impl Mapping {
    /// `7f0000000000-7f0000001000 rw-p 00000000 fe:00 1234    /path`.
    fn of(line: &str) -> Option<Mapping> {
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        if fields.next()? != "rw-p" {
            return None;
        }
        let (device, inode) = (fields.nth(1)?, fields.next()?);
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        let path = fields.next().unwrap_or_default().trim_start().to_owned();
        Some(Mapping { start: address(start)?, end: address(end)?, key: format!("{device}:{inode}"), path })
    }
}

fn count(pagemap: &File, start: usize, end: usize, held: &mut Held) {
    let wanted = Wanted { any: category::PRESENT | category::SWAPPED, ..Wanted::default() };
    let mut runs = [Run::default(); 512];
    let mut at = start;
    let mut there = 0;
    while at < end {
        let Ok((found, reached)) = scan(pagemap.as_raw_fd(), at, end, wanted, &mut runs) else { return };
        for run in &runs[..found] {
            let bytes = run.end - run.start;
            let file = run.categories & category::FILE != 0 && run.categories & category::PRESENT != 0;
            *(if file { &mut held.loaded } else { &mut held.own }) += bytes;
            there += bytes;
        }
        if reached <= at {
            break;
        }
        at = reached;
    }
    held.deferred += (end - start) as u64 / PAGE * PAGE - there;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_told_by_process() {
        let locks = "1: LEASE  ACTIVE    READ 12 fe:00:77 0 EOF\n2: POSIX  ADVISORY  WRITE 12 fe:00:78 0 EOF\n\
                     3: LEASE  BREAKING  READ 12 00:2b:79 0 EOF\n4: LEASE  ACTIVE    WRITE 13 fe:00:80 0 EOF\n";
        let leases = leases(locks);
        assert_eq!(leases[&12], ["fe:00:77", "00:2b:79"]);
        assert_eq!(leases[&13], ["fe:00:80"]);
    }

    #[test]
    fn mappings_are_told_with_their_files() {
        let line = "7f00-7f10 rw-p 00000000 fe:00 77                         /a path (deleted)";
        let mapping = Mapping::of(line).expect("a mapping");
        assert_eq!((mapping.start, mapping.end), (0x7f00, 0x7f10));
        assert_eq!((&*mapping.key, &*mapping.path), ("fe:00:77", "/a path (deleted)"));
        for other in ["7f00-7f10 r--p 00000000 fe:00 77 /a", "7f00-7f10 rw-s 00000000 fe:00 77 /a", ""] {
            assert!(Mapping::of(other).is_none());
        }
        assert_eq!(Mapping::of("7f00-7f10 rw-p 00000000 00:00 0 ").expect("a mapping").key, "00:00:0");
    }

    #[test]
    fn pages_are_counted_by_what_they_are() {
        use std::io::Write;
        let len = 64 * PAGE as usize;
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&vec![1; len]).expect("written");
        let pagemap = File::open("/proc/self/pagemap").expect("pagemap");
        let memory = elision_sys::memory::reserve(len).expect("address space");
        #[allow(unsafe_code)] // A mapping to look at.
        // SAFETY: reserved just now, and of this test alone; the file stays as it is.
        unsafe {
            elision_sys::memory::map_file_at(memory, len, file.as_raw_fd(), 0).expect("mapped");
            elision_sys::memory::advise(memory, len, libc::MADV_RANDOM).expect("advice");
            std::ptr::with_exposed_provenance_mut::<u8>(memory).write(2);
        }
        let mut held = Held::default();
        count(&pagemap, memory, memory + len, &mut held);
        assert_eq!(held.own, PAGE);
        assert_eq!(held.deferred + held.loaded, len as u64 - PAGE);
    }
}
