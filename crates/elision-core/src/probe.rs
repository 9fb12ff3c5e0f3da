//! What this kernel, file system and file allow, found out by trying: versions and filters mislead. `Ok(())`: it works. An error
//! is the kernel's, or [`Unsupported`](io::ErrorKind::Unsupported) if the call lacked the effect.
#![allow(unsafe_code)] // System calls that no safe wrapper offers.

use elision_sys::file::only_in_lower_layer;
use elision_sys::hand_over::{self, Listener};
use elision_sys::pages::{self, Run, Wanted, category};
use elision_sys::{PAGE, maps, memory, task};
use std::ffi::{CString, c_int, c_long};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr;

/// The kernel's release, as in `uname -r`.
pub fn release() -> String {
    sysctl_text("kernel/osrelease").unwrap_or_else(release_without_proc)
}

fn release_without_proc() -> String {
    // SAFETY: utsname holds only characters.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: writes one utsname.
    unsafe { libc::uname(&mut name) };
    let letters = name.release.iter().map(|&letter| letter as u8).take_while(|&letter| letter != 0);
    String::from_utf8_lossy(&letters.collect::<Vec<_>>()).into_owned()
}

/// `PAGEMAP_SCAN` (Linux 6.7).
pub fn pagemap_scan() -> io::Result<()> {
    let pages = Pages::new(1)?;
    pages.store(0);
    let wanted = Wanted { all: category::PRESENT, ..Wanted::default() };
    match scan(&pages, wanted)? {
        Some(found) if found.start == pages.addr(0) as u64 => Ok(()),
        _ => Err(unlike("the page just stored into was not reported")),
    }
}

/// Unprivileged userfaultfd with asynchronous write protection (Linux 6.7): of two armed pages, the altered one is reported.
pub fn write_tracking() -> io::Result<()> {
    // SAFETY: the kernel just made this descriptor.
    let tracker = unsafe { OwnedFd::from_raw_fd(pages::tracker()?) };
    let pages = Pages::new(2)?;
    pages.store(0);
    pages.store(1);
    pages::track(tracker.as_raw_fd(), pages.addr(0), 2 * PAGE)?;
    let rearm = Wanted { all: category::WRITTEN, protect: true, ..Wanted::default() };
    scan(&pages, rearm)?;
    pages.store(1);
    match scan(&pages, rearm)? {
        Some(found) if (found.start, found.end) == (pages.addr(1) as u64, pages.addr(2) as u64) => Ok(()),
        _ => Err(unlike("the scan did not name the page that was stored into")),
    }
}

/// Are the mappings in /proc/PID/maps?
pub fn mappings() -> io::Result<()> {
    let maps = File::open("/proc/self/maps")?;
    let pages = Pages::new(1)?;
    let found = maps::mapping(maps.as_raw_fd(), pages.addr(0))?;
    if (found.start..found.end).contains(&pages.addr(0)) {
        Ok(())
    } else {
        Err(unlike("the answer does not cover the address asked for"))
    }
}

/// `futex_waitv` (Linux 5.16).
pub fn futex_waitv() -> io::Result<()> {
    let nothing = ptr::null::<u8>();
    // SAFETY: without waiters the kernel looks at no memory.
    let answer = check(unsafe { libc::syscall(libc::SYS_futex_waitv, nothing, 0, 0, nothing, 0) });
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(unlike("waiting for nothing succeeded")),
    }
}

/// `pidfd_open` (Linux 5.3) and `pidfd_getfd` (5.6).
pub fn pidfd_getfd() -> io::Result<()> {
    let file = File::open("/dev/null")?;
    // SAFETY: integers only; the results are this function's.
    unsafe {
        let pidfd = check(libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0))?;
        let pidfd = OwnedFd::from_raw_fd(pidfd as c_int);
        let got = check(libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), file.as_raw_fd(), 0))?;
        drop(OwnedFd::from_raw_fd(got as c_int));
    }
    Ok(())
}

/// Can a process be given a descriptor of this one? By `pidfd_getfd`, or through a socket.
pub fn descriptors() -> io::Result<()> {
    pidfd_getfd().or_else(|refused| hand_over().map_err(|_| refused))
}

fn hand_over() -> io::Result<()> {
    let (file, listener) = (File::open("/dev/null")?, Listener::new()?);
    let mask = task::block_signals();
    let sender = hand_over::hand_over(file.as_raw_fd(), listener.address, task::pid());
    task::restore_signals(mask);
    let got = listener.take(sender?)?;
    // SAFETY: this function's.
    drop(unsafe { OwnedFd::from_raw_fd(got) });
    Ok(())
}

/// May a descendant trace this process? Forks a child; the calling thread should be the only one.
pub fn ptrace() -> io::Result<()> {
    // SAFETY: integers only. Without Yama it fails, harmlessly.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY) };
    let parent = std::process::id() as c_int;
    // SAFETY: the child makes system calls only, and ends.
    let child = check(unsafe { libc::fork() }.into())? as c_int;
    if child == 0 {
        // SAFETY: integers, null, and a status on the child's own stack; `errno` is the child's.
        unsafe {
            let mut status = 0;
            let nothing = ptr::null_mut::<u8>();
            let held = libc::ptrace(libc::PTRACE_SEIZE, parent, nothing, nothing) == 0
                && libc::ptrace(libc::PTRACE_INTERRUPT, parent, nothing, nothing) == 0
                && libc::waitpid(parent, &mut status, libc::__WALL) == parent
                && libc::ptrace(libc::PTRACE_DETACH, parent, nothing, nothing) == 0;
            libc::_exit(if held { 0 } else { *libc::__errno_location() });
        }
    }
    let mut status = 0;
    let waited = loop {
        // SAFETY: writes one integer.
        let waited = check(unsafe { libc::waitpid(child, &mut status, 0) }.into());
        if !waited.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            break waited;
        }
    };
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, 0) };
    waited?;
    match (libc::WIFSIGNALED(status), libc::WEXITSTATUS(status)) {
        (false, 0) => Ok(()),
        (false, errno) => Err(io::Error::from_raw_os_error(errno)),
        (true, _) if libc::WTERMSIG(status) == libc::SIGSYS => Err(unlike("killed by SIGSYS")),
        (true, _) => Err(unlike("the process that tried was killed")),
    }
}

/// The library's system calls, by name (`SYS_…`) and number, without those that end or make a process.
pub fn calls() -> &'static [(&'static str, c_long)] {
    &elision_sys::calls::CALLS
}

/// Does a filter let this call through? It is made with meaningless arguments, so it must do nothing then.
pub fn call(number: c_long) -> io::Result<()> {
    // Containers refuse new namespaces, which -1 would ask clone for; handlers without memory are shared by nobody.
    let first = if number == libc::SYS_clone { c_long::from(libc::CLONE_SIGHAND) } else { -1 };
    // SAFETY: no address, length, process or descriptor is -1.
    match unsafe { check(libc::syscall(number, first, -1, -1, -1, -1, -1)) } {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        _ => Ok(()),
    }
}

/// Is /proc mounted, for this process's PID namespace?
pub fn proc() -> io::Result<()> {
    match fs::read_link("/proc/self")?.to_str().and_then(|number| number.parse::<u32>().ok()) {
        Some(number) if number == std::process::id() => Ok(()),
        _ => Err(unlike("/proc is that of another PID namespace")),
    }
}

/// Is there a system call filter (seccomp)?
pub fn filtered() -> bool {
    status_field("Seccomp:").is_some_and(|mode| mode == "2")
}

/// `kernel.yama.ptrace_scope`: 0 same user, 1 descendants and invited, 2 administrators, 3 nobody. `None` (no Yama) is as 0.
pub fn ptrace_scope() -> Option<u64> {
    sysctl("kernel/yama/ptrace_scope")
}

/// The pid of this process's tracer, if any.
pub fn tracer() -> Option<u32> {
    status_field("TracerPid:").and_then(|pid| pid.parse().ok()).filter(|pid| *pid != 0)
}

/// Is this capability (`<linux/capability.h>`) in effect?
pub fn has_capability(number: u32) -> bool {
    let set = status_field("CapEff:").and_then(|set| u64::from_str_radix(&set, 16).ok());
    set.is_some_and(|set| set >> number & 1 == 1)
}

/// CAP_LEASE: leases on files of other owners.
pub const CAP_LEASE: u32 = 28;
/// CAP_SYS_PTRACE: trace under scope 2.
pub const CAP_SYS_PTRACE: u32 = 19;

/// A number under /proc/sys (`"vm/max_map_count"`).
pub fn sysctl(name: &str) -> Option<u64> {
    sysctl_text(name)?.parse().ok()
}

/// What a path is on.
///
/// ```
/// use elision_core::probe; // in the crate `elision`: `elision::probe`
///
/// let here = probe::file_system(std::path::Path::new("."))?;
/// println!("{}: {}", here.name, if here.supported { "may be deferred" } else { "is left alone" });
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSystem {
    /// `f_type`.
    pub magic: u32,
    /// Its usual name, or "unknown".
    pub name: &'static str,
    /// May it be deferred? A granted lease is not enough: /proc grants leases, and its bytes change. Of an overlay, only a file that is in a
    /// lower layer alone, and that is yours.
    pub supported: bool,
}

const OVERLAY: u32 = 0x794c_7630;

const FILE_SYSTEMS: &[(u32, &str, bool)] = &[
    (0x0000_ef53, "ext2/ext3/ext4", true),
    (0x5846_5342, "XFS", true),
    (0x9123_683e, "btrfs", true),
    (0x0102_1994, "tmpfs", true),
    (OVERLAY, "overlayfs", false),
    (0x6573_5546, "FUSE", false),
    (0x0000_6969, "NFS", false),
    (0xff53_4d42, "CIFS", false),
    (0xfe53_4d42, "SMB2", false),
    (0x0102_1997, "9p", false),
    (0x00c3_6400, "Ceph", false),
    (0x2fc1_2fc1, "ZFS", false),
    (0xca45_1a4e, "bcachefs", false),
    (0xf2f5_2010, "F2FS", false),
    (0x8584_58f6, "ramfs", false),
    (0x9584_58f6, "hugetlbfs", false),
    (0x7371_7368, "squashfs", true),
    (0xe0f5_e1e2, "EROFS", true),
    (0x0000_9660, "ISO 9660", true),
    (0x0000_4d44, "FAT", false),
    (0x2011_bab0, "exFAT", false),
    (0x7366_746e, "NTFS", false),
    (0x0000_f15f, "eCryptfs", false),
    (0x0000_9fa0, "proc", false),
    (0x6265_6572, "sysfs", false),
    (0x6462_6720, "debugfs", false),
    (0x6367_7270, "cgroup2", false),
];

/// The file system that holds `path`.
pub fn file_system(path: &Path) -> io::Result<FileSystem> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: statfs holds only integers.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `name` ends in a zero byte; one statfs is written.
    check(unsafe { libc::statfs(name.as_ptr(), &mut answer) }.into())?;
    let found = name_file_system(answer.f_type as u32);
    Ok(FileSystem {
        supported: found.supported || found.magic == OVERLAY && is_of_lower_layer(path),
        ..found
    })
}

fn is_of_lower_layer(path: &Path) -> bool {
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    open.is_ok_and(|file| only_in_lower_layer(file.as_raw_fd()))
}

fn name_file_system(magic: u32) -> FileSystem {
    let known = FILE_SYSTEMS.iter().find(|known| known.0 == magic);
    known.map_or(FileSystem { magic, name: "unknown", supported: false }, |&(magic, name, supported)| {
        FileSystem { magic, name, supported }
    })
}

/// Takes a read lease on this file, and releases it.
///
/// # Errors
/// EAGAIN: open for writing. EACCES: another owner's, without CAP_LEASE. EINVAL: no leases here. Otherwise those of `open`.
pub fn read_lease(file: &Path) -> io::Result<()> {
    lease(file, libc::F_RDLCK)
}

/// The same for a write lease, for which a read-only opening suffices.
///
/// # Errors
/// As [`read_lease`], but EAGAIN: open anywhere else.
pub fn write_lease(file: &Path) -> io::Result<()> {
    lease(file, libc::F_WRLCK)
}

fn lease(file: &Path, kind: c_int) -> io::Result<()> {
    const F_SETSIG: c_int = 10;
    // O_NONBLOCK: neither a pipe nor another's lease blocks this.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let fd = open.as_raw_fd();
    // An open between the calls signals: SIGIO would end the process, SIGURG is ignored. SAFETY: integers only.
    unsafe {
        check(libc::fcntl(fd, F_SETSIG, libc::SIGURG).into())?;
        check(libc::fcntl(fd, libc::F_SETLEASE, kind).into())?;
        check(libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK).into())?;
    }
    Ok(())
}

/// Anonymous private pages, stored into only through [`store`](Pages::store).
struct Pages {
    start: usize,
    count: usize,
}

impl Pages {
    fn new(count: usize) -> io::Result<Pages> {
        Ok(Pages { start: memory::allocate(count * PAGE, false)?, count })
    }

    fn addr(&self, index: usize) -> usize {
        self.start + index * PAGE
    }

    fn store(&self, index: usize) {
        assert!(index < self.count);
        // SAFETY: inside the writable, unshared mapping. Volatile, because only the kernel sees the effect.
        unsafe { (self.addr(index) as *mut u8).write_volatile(1) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: `new` mapped exactly this range, and no reference leaves.
        unsafe { memory::unmap(self.start, self.count * PAGE) };
    }
}

fn scan(pages: &Pages, wanted: Wanted) -> io::Result<Option<Run>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut found = [Run::default(); 4];
    let end = pages.addr(pages.count);
    let (count, _) = pages::scan(pagemap.as_raw_fd(), pages.addr(0), end, wanted, &mut found)?;
    Ok(found[..count].first().copied())
}

fn check(returned: c_long) -> io::Result<c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

fn unlike(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

fn sysctl_text(name: &str) -> Option<String> {
    Some(fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().to_owned())
}

fn status_field(name: &str) -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    Some(line[name.len()..].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary directory")
    }

    #[test]
    fn scanning_agrees_with_the_release() {
        let mut numbers = release().split(['.', '-']).map(str::parse::<u32>).collect::<Vec<_>>().into_iter();
        let mut next = || numbers.next().expect("a release has two numbers").expect("digits");
        let release = (next(), next());
        if let Err(error) = pagemap_scan() {
            assert!(release < (6, 7), "Linux {release:?} has PAGEMAP_SCAN, yet: {error}");
            assert!(write_tracking().is_err(), "tracking needs the scan");
        }
    }

    #[test]
    fn a_writer_keeps_the_lease_from_us() {
        let dir = dir();
        let path = dir.path().join("file");
        let writer = File::create(&path).expect("create");
        let refused = read_lease(&path).expect_err("a file open for writing has no read lease");
        assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{refused}");
        drop(writer);
        if file_system(dir.path()).expect("statfs").supported {
            read_lease(&path).expect("nobody has it open now");
            write_lease(&path).expect("nobody has it open now");
            let reader = File::open(&path).expect("open");
            let refused = write_lease(&path).expect_err("a file that is open has no write lease for another");
            assert_eq!(refused.raw_os_error(), Some(libc::EAGAIN), "{refused}");
            drop(reader);
        }
    }

    #[test]
    fn file_systems_are_told_apart() {
        let proc = file_system(Path::new("/proc/self")).expect("statfs");
        assert_eq!((proc.name, proc.supported), ("proc", false));
        assert!(name_file_system(0xef53).supported);
        assert_eq!(name_file_system(1).name, "unknown");
        let missing = file_system(Path::new("/nonexistent/file")).expect_err("missing");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_release_is_known_without_proc() {
        assert_eq!(release_without_proc(), release());
    }

    #[test]
    fn sysctls_are_numbers() {
        assert!(sysctl("vm/max_map_count").is_some_and(|count| count > 0));
        assert_eq!(sysctl("vm/no_such_thing"), None);
    }
}
