//! An executed program's LD_PRELOAD loses this library if the program could not load it or would end: if the file is invisible to
//! it, it is of 32 bits, its loader is musl's or another glibc's, it has gcc's address sanitizer (whose runtime must come first),
//! or it is under a seccomp filter.
//!
//! Signal handlers and children of vfork call exec: nothing here allocates, locks, changes `errno` or needs much stack.
#![allow(unsafe_code)] // The program's and the loader's strings.

use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;
use core::ptr;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering::Relaxed};

use elision_core::executable::{self, Program};
use elision_sys::file::{self, FileKey, ProcPath};
use libc::c_int;

use crate::abi::kernel;
use crate::abi::raw::raw_call;
use crate::state::{process, stop};

pub(crate) type Strings = *const *const c_char;

unsafe extern "C" {
    #[link_name = "environ"]
    static mut ENVIRONMENT: Strings;
    fn __tls_get_addr(index: *mut c_void) -> *mut c_void;
}

pub(crate) fn environment() -> Strings {
    // SAFETY: libc's variable, of a pointer's size.
    unsafe { ENVIRONMENT }
}

/// This library as the loader names it; may be null.
static OURS: AtomicPtr<c_char> = AtomicPtr::new(ptr::null_mut());

/// Device and inode; zeroes where unknown.
static LOADER: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Not async-signal-safe.
fn object_of(address: *const c_void) -> Option<&'static CStr> {
    let mut found = MaybeUninit::<libc::Dl_info>::uninit();
    // SAFETY: filled where the answer is not zero; our dependencies' names stay as long as we.
    unsafe {
        let named =
            libc::dladdr(address, found.as_mut_ptr()) != 0 && !found.assume_init().dli_fname.is_null();
        named.then(|| CStr::from_ptr(found.assume_init().dli_fname))
    }
}

pub(crate) fn init() {
    if let Some(name) = object_of(init as *const c_void) {
        OURS.store(name.as_ptr().cast_mut(), Relaxed);
    }
    let loader = object_of(__tls_get_addr as *const c_void);
    if let Some(FileKey { dev, ino }) = loader.and_then(|name| file_of(libc::AT_FDCWD, name.as_ptr())) {
        LOADER[0].store(dev, Relaxed);
        LOADER[1].store(ino, Relaxed);
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Executed {
    At(c_int, *const c_char),
    Open(c_int),
    /// A name, searched for if it has no slash.
    Named(*const c_char),
}

/// `None` keeps the environment.
pub(crate) fn with_environment<T>(
    program: Executed,
    envp: Strings,
    call: impl FnOnce(Option<Strings>) -> T,
) -> T {
    let ours = OURS.load(Relaxed);
    if ours.is_null() {
        return call(None);
    }
    // SAFETY: the loader's name stays.
    let ours = unsafe { CStr::from_ptr(ours) };
    let named = Lists::of(envp).any(|list| list.entries().any(|entry| entry == ours.to_bytes()));
    match named && !can_load(ours, program, envp) {
        true => without(ours, envp, call),
        false => call(None),
    }
}

/// Reads memory that may not be there: the kernel would say EFAULT.
struct Looking {
    page: usize,
}

impl Looking {
    const fn new() -> Looking {
        Looking { page: usize::MAX }
    }

    fn is_there(&mut self, addr: usize) -> bool {
        let page = addr & !4095;
        // A filter may kill for the call that looks.
        if self.page != page && (stop::filtered() || kernel::readable(addr, 1)) {
            self.page = page;
        }
        self.page == page
    }

    fn string(&mut self, start: *const c_char) -> Option<&'static [u8]> {
        let mut len = 0;
        loop {
            let at = start.wrapping_add(len);
            // SAFETY: just found readable.
            if !self.is_there(at as usize) || unsafe { *at } == 0 {
                break;
            }
            len += 1;
        }
        // SAFETY: each byte has been read, and stays until the call is made.
        self.is_there(start.wrapping_add(len) as usize)
            .then(|| unsafe { core::slice::from_raw_parts(start.cast(), len) })
    }

    fn starts_with(&mut self, start: *const c_char, with: &[u8]) -> bool {
        with.iter().enumerate().all(|(at, &byte)| {
            let at = start.wrapping_add(at);
            // SAFETY: just found readable.
            self.is_there(at as usize) && unsafe { *at } as u8 == byte
        })
    }
}

/// The LD_PRELOAD entries of an environment.
struct Lists {
    next: Strings,
    array: Looking,
    strings: Looking,
}

const PRELOAD: &[u8] = b"LD_PRELOAD=";

struct List(&'static [u8]);

impl List {
    fn entries(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        self.0.split(|byte| b" :".contains(byte))
    }
}

impl Lists {
    fn of(envp: Strings) -> Lists {
        Lists { next: envp, array: Looking::new(), strings: Looking::new() }
    }

    fn string(&mut self) -> Option<*const c_char> {
        if self.next.is_null() || !self.array.is_there(self.next as usize) {
            return None;
        }
        // SAFETY: just found readable; the kernel sees to an unaligned array.
        let string = (self.next as usize).is_multiple_of(8).then(|| unsafe { *self.next })?;
        self.next = self.next.wrapping_add(1);
        (!string.is_null()).then_some(string)
    }
}

impl Iterator for Lists {
    type Item = List;

    fn next(&mut self) -> Option<List> {
        loop {
            let string = self.string()?;
            if self.strings.starts_with(string, PRELOAD) {
                return self.strings.string(string.wrapping_add(PRELOAD.len())).map(List);
            }
        }
    }
}

/// Where this cannot be told, the answer is yes.
fn can_load(ours: &CStr, program: Executed, envp: Strings) -> bool {
    let another_first =
        || Lists::of(envp).any(|list| list.entries().any(|entry| executable::must_be_first(entry).is_some()));
    !stop::filtered() && is_visible(ours) && !another_first() && fits(program)
}

/// An ordinary user loses capabilities in exec: access(2) asks without them, open(2) with all other rights.
fn is_visible(ours: &CStr) -> bool {
    let arguments = [libc::AT_FDCWD as usize, ours.as_ptr() as usize, libc::R_OK as usize];
    // SAFETY: the loader's string.
    let accessible = unsafe { raw_call(libc::SYS_faccessat, &arguments) }.map_err(|errno| errno.0);
    let opened = open(libc::AT_FDCWD, ours.as_ptr(), libc::O_RDONLY).map(kernel::close);
    let refuses = |errno| matches!(errno, libc::ENOENT | libc::ENOTDIR | libc::EACCES | libc::ELOOP);
    !accessible.is_err_and(refuses) && !opened.is_err_and(refuses)
}

fn open(directory: c_int, path: *const c_char, flags: c_int) -> Result<c_int, c_int> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    // SAFETY: the kernel refuses a bad path.
    let result = unsafe { raw_call(libc::SYS_openat, &[directory as usize, path as usize, flags as usize]) };
    result.map(|fd| fd as c_int).map_err(|errno| errno.0)
}

/// A pipe or a device is not disturbed.
fn file_of(directory: c_int, path: *const c_char) -> Option<FileKey> {
    let fd = open(directory, path, libc::O_PATH).ok()?;
    let stat = file::stat(fd).ok();
    kernel::close(fd);
    stat.filter(|stat| stat.is_regular()).map(|stat| stat.id)
}

struct Scratch {
    file: executable::Room,
    path: Path,
}

/// Fresh memory of zeroes.
fn map(bytes: usize) -> Option<usize> {
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as usize;
    let kind = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    // SAFETY: fresh memory.
    unsafe { raw_call(libc::SYS_mmap, &[0, bytes, protection, kind, usize::MAX, 0]) }.ok()
}

fn unmap(addr: usize, bytes: usize) {
    // SAFETY: from `map`, and no longer used.
    let _ = unsafe { raw_call(libc::SYS_munmap, &[addr, bytes]) };
}

fn fits(program: Executed) -> bool {
    let Some(addr) = map(size_of::<Scratch>()) else { return true };
    // SAFETY: fresh memory; zeroes are a value of each part.
    let fits = fits_looked_at(program, unsafe { &mut *(addr as *mut Scratch) });
    unmap(addr, size_of::<Scratch>());
    fits
}

fn fits_looked_at(mut program: Executed, Scratch { file, path }: &mut Scratch) -> bool {
    // The kernel follows as many interpreters.
    for _ in 0..5 {
        match look(program, file, path) {
            Program::Script(line) => {
                let mut words = line.split(|byte| b" \t".contains(byte)).filter(|word| !word.is_empty());
                if !words.next().is_some_and(|word| path.set(&[word])) {
                    return true;
                }
                program = Executed::At(libc::AT_FDCWD, path.as_ptr());
            }
            Program::Narrow | Program::Foreign => return false,
            Program::Loaded { loader, first } => {
                return first.is_none() && is_our_loader(loader, path);
            }
            Program::Bare => return !is_another_loader(program),
            Program::Unknown => return true,
        }
    }
    true
}

/// An executed loader preloads into its argument.
fn is_another_loader(program: Executed) -> bool {
    let Executed::At(directory, path) = program else { return false };
    // SAFETY: the kernel has opened this path.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    executable::is_named_like_a_loader(name) && file_of(directory, path).is_some_and(|file| !is_loader(file))
}

/// Any other loader is another C library's or version's.
fn is_our_loader(loader: &[u8], path: &mut Path) -> bool {
    let theirs = path.set(&[loader]).then(|| file_of(libc::AT_FDCWD, path.as_ptr())).flatten();
    executable::is_glibc_loader(loader) && theirs.is_none_or(is_loader)
}

/// Any loader, if this program's is unknown.
fn is_loader(file: FileKey) -> bool {
    let ours = FileKey { dev: LOADER[0].load(Relaxed), ino: LOADER[1].load(Relaxed) };
    ours == FileKey::default() || ours == file
}

fn look<'a>(program: Executed, room: &'a mut executable::Room, found: &mut Path) -> Program<'a> {
    let (directory, path) = match program {
        Executed::Open(fd) if file::flags(fd).is_ok_and(|flags| flags & libc::O_PATH == 0) => {
            return examine(fd, room);
        }
        // An O_PATH descriptor can be opened anew.
        Executed::Open(fd) => {
            let path = ProcPath::new(kernel::process(), "fd", Some(fd));
            return look_at(libc::AT_FDCWD, path.as_c_str().as_ptr(), room);
        }
        Executed::At(directory, path) => (directory, path),
        Executed::Named(name) => {
            // SAFETY: libc's function reads the name as well.
            let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
            match bytes.contains(&b'/') {
                true => (libc::AT_FDCWD, name),
                false if search(bytes, found) => (libc::AT_FDCWD, found.as_ptr()),
                false => return Program::Unknown,
            }
        }
    };
    look_at(directory, path, room)
}

fn look_at(directory: c_int, path: *const c_char, room: &mut executable::Room) -> Program<'_> {
    let readable = file_of(directory, path).and_then(|_| open(directory, path, libc::O_RDONLY).ok());
    let Some(fd) = readable else { return Program::Unknown };
    let found = examine(fd, room);
    kernel::close(fd);
    found
}

fn examine(fd: c_int, room: &mut executable::Room) -> Program<'_> {
    executable::examine(&|room, offset| file::read_at(fd, room, offset).unwrap_or(0), room)
}

struct Path([u8; 512]);

impl Path {
    /// False if it is too long.
    fn set(&mut self, pieces: &[&[u8]]) -> bool {
        let mut at = 0;
        for piece in pieces {
            let Some(place) = self.0[..511].get_mut(at..at + piece.len()) else { return false };
            place.copy_from_slice(piece);
            at += piece.len();
        }
        self.0[at] = 0;
        true
    }

    fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }
}

/// Searches as libc does.
fn search(name: &[u8], found: &mut Path) -> bool {
    let mut looking = Looking::new();
    let mut all = Lists::of(environment());
    let path = core::iter::from_fn(|| all.string()).find(|&string| looking.starts_with(string, b"PATH="));
    let path = path.and_then(|string| looking.string(string.wrapping_add(5))).unwrap_or(b"/bin:/usr/bin");
    path.split(|&byte| byte == b':').any(|directory| {
        let slash: &[u8] = if directory.is_empty() { b"" } else { b"/" };
        let opened = found.set(&[directory, slash, name]);
        let Some(fd) = opened.then(|| open(libc::AT_FDCWD, found.as_ptr(), libc::O_PATH).ok()).flatten()
        else {
            return false;
        };
        let stat = file::stat(fd).ok();
        kernel::close(fd);
        stat.is_some_and(|stat| stat.is_regular() && stat.mode & 0o111 != 0)
    })
}

#[cold]
fn without<T>(ours: &CStr, envp: Strings, call: impl FnOnce(Option<Strings>) -> T) -> T {
    let mut all = Lists::of(envp);
    let strings = core::iter::from_fn(|| all.string()).count();
    let lists: usize = Lists::of(envp).map(|list| PRELOAD.len() + list.0.len() + 1).sum();
    let words = strings + 1 + lists.div_ceil(size_of::<usize>());
    // A child of vfork would leave a mapping to its parent. Otherwise exec unmaps all, and the stack may be a signal handler's.
    match words {
        0..=128 => on_stack::<128, T>(ours, envp, strings, call),
        129..=512 if !process::is_this() => on_stack::<512, T>(ours, envp, strings, call),
        513..=4096 if !process::is_this() => on_stack::<4096, T>(ours, envp, strings, call),
        _ => {
            let bytes = words * size_of::<usize>();
            let Some(addr) = map(bytes) else { return call(None) };
            // SAFETY: fresh memory, all zeroes.
            fill(unsafe { core::slice::from_raw_parts_mut(addr as *mut usize, words) }, ours, envp, strings);
            let result = call(Some(addr as Strings));
            unmap(addr, bytes);
            result
        }
    }
}

#[inline(never)]
fn on_stack<const N: usize, T>(
    ours: &CStr,
    envp: Strings,
    strings: usize,
    call: impl FnOnce(Option<Strings>) -> T,
) -> T {
    let mut room = [0; N];
    fill(&mut room, ours, envp, strings);
    call(Some(room.as_ptr().cast()))
}

/// Writes the array, and behind it the lists. An empty list is left out.
fn fill(room: &mut [usize], ours: &CStr, envp: Strings, strings: usize) {
    let (array, text) = room.split_at_mut(strings + 1);
    // SAFETY: words are bytes as well.
    let text = unsafe { core::slice::from_raw_parts_mut(text.as_mut_ptr().cast::<u8>(), size_of_val(text)) };
    let mut text = text.iter_mut();
    let (mut all, mut looking) = (Lists::of(envp), Looking::new());
    let mut kept = core::iter::from_fn(|| all.string()).take(strings).filter_map(|string| {
        if !looking.starts_with(string, PRELOAD) {
            return Some(string as usize);
        }
        let list = List(looking.string(string.wrapping_add(PRELOAD.len()))?);
        let start = text.as_slice().as_ptr() as usize;
        let mut put = |bytes: &[u8]| bytes.iter().zip(&mut text).for_each(|(&byte, place)| *place = byte);
        let mut separator: &[u8] = b"";
        for entry in list.entries().filter(|&entry| entry != ours.to_bytes() && !entry.is_empty()) {
            if separator.is_empty() {
                put(PRELOAD);
            }
            put(separator);
            put(entry);
            separator = b":";
        }
        if separator.is_empty() {
            return None;
        }
        put(b"\0");
        Some(start)
    });
    array[..strings].fill_with(|| kept.next().unwrap_or(0));
}
