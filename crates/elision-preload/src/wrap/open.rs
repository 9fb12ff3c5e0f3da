//! Where descriptors come from and go to, for [`crate::state::descriptions`].
#![allow(unsafe_code)] // The program's pointers.

use core::ops::RangeInclusive;

use elision_core::client;
use elision_core::client::offer::TransferOptions;
use libc::{DIR, FILE, c_char, c_int, c_uint, mode_t};

use crate::abi::interpose::interpose;
use crate::abi::{kernel, raw};
use crate::state::descriptions::{self, Moment};
use crate::state::heap::{block, expected};
use crate::state::stop::{active, stop, stopped};
use crate::wrap::stdio;

/// Attempts are a tenth of a millisecond or more apart.
const ATTEMPTS: usize = 10_000;

/// `open` gets `flags`, or others in their place.
#[inline]
pub(crate) fn opening(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    open: impl Fn(c_int) -> c_int,
) -> c_int {
    let later = may_wait(flags) && saves(directory, path, flags);
    opening_later(directory, path, flags, later, open)
}

/// `later`: a truncation may wait.
#[inline]
fn opening_later(
    directory: c_int,
    path: *const c_char,
    flags: c_int,
    later: bool,
    open: impl Fn(c_int) -> c_int,
) -> c_int {
    let since = descriptions::moment();
    let look = || kernel::open_path(directory, path, flags);
    let fd = past_guards(if later { flags & !libc::O_TRUNC } else { flags }, look, &open);
    if fd < 0 {
        return fd;
    }
    expected::used(fd);
    descriptions::opened(fd, flags, since);
    if later { emptied(fd, || past_guards(flags, look, &open), since) } else { fd }
}

/// May the truncation by such an open wait ([`client::truncate`])?
#[inline]
fn may_wait(flags: c_int) -> bool {
    const NOT: c_int = libc::O_APPEND | libc::O_DIRECT | libc::O_PATH | libc::O_EXCL | libc::O_SYNC;
    flags & libc::O_TRUNC != 0
        && flags & libc::O_ACCMODE != libc::O_RDONLY
        && flags & NOT == 0
        && client::life::at_work()
        && client::truncate::may_wait()
        && (client::memory::touched(0, usize::MAX) || has_big_block())
}

fn has_big_block() -> bool {
    let least = client::truncate::recognised_from(client::life::min_bytes());
    block::live().any(|(len, _)| len >= least)
}

/// Is it a file that is worth it, and may the program have its bytes?
#[cold]
fn saves(directory: c_int, path: *const c_char, flags: c_int) -> bool {
    let least = client::life::min_bytes();
    let Some(fd) = kernel::open_path(directory, path, flags) else { return false };
    let stat = elision_sys::file::stat(fd).ok().filter(|stat| stat.is_regular() && stat.size >= least as u64);
    if let Some(stat) = &stat
        && let Some(addr) = block::like_a_file(stat.size)
        && let Some(file) = kernel::open_to_look(fd)
    {
        client::truncate::recognise(file, stat, addr, least);
        kernel::close(file);
    }
    kernel::close(fd);
    stat.is_some() && client::memory::touched(0, usize::MAX)
}

/// Truncates a file that was opened to be emptied, at once or later. `again` opens it as the program wanted.
#[cold]
fn emptied(fd: c_int, again: impl FnOnce() -> c_int, since: Moment) -> c_int {
    let Ok(stat) = elision_sys::file::stat(fd) else { return fd };
    if !stat.is_regular() {
        return fd;
    }
    let owned = descriptions::owned(fd, &stat);
    if client::truncate::put_off(fd, &stat, TransferOptions::for_program(None, owned)) {
        if since != descriptions::moment() {
            // The description may be shared by now.
            client::changes::before_change(fd);
        }
        return fd;
    }
    if elision_sys::file::set_len(fd, 0).is_ok() {
        return fd;
    }
    // The call itself gives the error.
    closing(fd);
    kernel::close(fd);
    again()
}

/// Does such an open truncate, and break no lease?
pub(crate) fn truncates(flags: c_int) -> bool {
    flags & (libc::O_ACCMODE | libc::O_TRUNC | libc::O_PATH) == libc::O_RDONLY | libc::O_TRUNC
}

/// Two kinds of open do not wait for a lease break: one that truncates what it opens to read breaks no lease, and one that may
/// not wait is refused. `look` gives an O_PATH descriptor.
#[inline]
fn past_guards(flags: c_int, look: impl Fn() -> Option<c_int>, open: &impl Fn(c_int) -> c_int) -> c_int {
    let truncates = truncates(flags);
    let impatient = flags & (libc::O_NONBLOCK | libc::O_PATH) == libc::O_NONBLOCK;
    if flags & libc::O_ACCMODE != libc::O_RDONLY || truncates {
        client::life::look_after();
    }
    if truncates && client::memory::touched(0, usize::MAX) || impatient && client::life::at_work() {
        let_go(truncates || flags & libc::O_ACCMODE != libc::O_RDONLY, &look);
    }
    if truncates {
        return opening_to_truncate(flags, &look, open);
    }
    opening_past(flags, impatient, &look, open)
}

#[inline]
fn opening_past(
    flags: c_int,
    impatient: bool,
    look: &impl Fn() -> Option<c_int>,
    open: &impl Fn(c_int) -> c_int,
) -> c_int {
    let errno = if impatient { raw::errno() } else { 0 };
    let fd = open(flags);
    if fd < 0 && impatient && raw::errno() == libc::EWOULDBLOCK {
        let fd = open_again(fd, look, || open(flags));
        if fd >= 0 {
            raw::set_errno(errno);
        }
        return fd;
    }
    fd
}

/// Truncates in a way that breaks leases: memory of other processes, such as children, may depend on the file.
#[cold]
fn opening_to_truncate(
    flags: c_int,
    look: &impl Fn() -> Option<c_int>,
    open: &impl Fn(c_int) -> c_int,
) -> c_int {
    let impatient = flags & libc::O_NONBLOCK != 0;
    let apart = look().is_some_and(|fd| {
        let apart = client::offer::fs(fd).is_some() && kernel::truncatable(fd);
        kernel::close(fd);
        apart
    });
    if !apart {
        return opening_past(flags, impatient, look, open);
    }
    let fd = opening_past(flags & !libc::O_TRUNC, impatient, look, open);
    if fd < 0 || !kernel::regular(fd) || kernel::truncate(fd) {
        return fd;
    }
    // Perhaps it is being executed: the call itself gives the error.
    kernel::close(fd);
    opening_past(flags, impatient, look, open)
}

/// Releases this process's guards: all, or what keeps readers out.
#[cold]
fn let_go(all: bool, look: &impl Fn() -> Option<c_int>) {
    if let Some(fd) = look() {
        if all {
            client::changes::release_behind(fd);
        } else {
            client::changes::before_change(fd);
        }
        kernel::close(fd);
    }
}

/// Repeats an open that may not wait until a lease, likely another Elision's, is released: no program expects a refusal by a
/// regular file. Any other lease costs a second or two.
#[cold]
fn open_again(refused: c_int, look: &impl Fn() -> Option<c_int>, open: impl Fn() -> c_int) -> c_int {
    let regular = look().is_some_and(|fd| {
        let regular = kernel::regular(fd);
        kernel::close(fd);
        regular
    });
    if !regular {
        return refused;
    }
    for _ in 0..ATTEMPTS {
        kernel::sleep_briefly();
        let fd = open();
        if fd >= 0 || raw::errno() != libc::EWOULDBLOCK {
            return fd;
        }
    }
    refused
}

pub(crate) fn opening_by_rules(
    directory: c_int,
    path: *const c_char,
    how: usize,
    len: usize,
    open: impl Fn(usize) -> c_int,
) -> c_int {
    // A later version of the structure is not understood.
    if len != size_of::<libc::open_how>() || !kernel::readable(how, len) {
        return open(how);
    }
    // SAFETY: just found readable.
    let rules = unsafe { (how as *const libc::open_how).read_unaligned() };
    let flags = rules.flags as c_int;
    past_guards(flags, || kernel::open_path2(directory, path, rules), &|now| {
        let mut rules = rules;
        rules.flags &= !u64::from((flags & !now) as u32);
        open(if now == flags { how } else { &raw const rules as usize })
    })
}

pub(crate) fn opening_handle(
    mount: c_int,
    handle: usize,
    flags: c_int,
    open: impl Fn(c_int) -> c_int,
) -> c_int {
    past_guards(flags, || kernel::open_handle(mount, handle), &open)
}

fn opening_shared_memory(name: *const c_char, flags: c_int, open: impl Fn(c_int) -> c_int) -> c_int {
    let look = || {
        if name.is_null() {
            return None;
        }
        // SAFETY: the program's name, which libc reads likewise.
        let name = unsafe { core::ffi::CStr::from_ptr(name) }.to_bytes();
        let slashes = name.iter().take_while(|byte| **byte == b'/').count();
        let name = name.get(slashes..).filter(|name| name.len() <= LONGEST)?;
        const LONGEST: usize = 255;
        let mut path = [0u8; 10 + LONGEST];
        path.get_mut(..9)?.copy_from_slice(b"/dev/shm/");
        path.get_mut(9..9 + name.len())?.copy_from_slice(name);
        kernel::open_path(HERE, path.as_ptr().cast(), flags | libc::O_NOFOLLOW)
    };
    past_guards(flags, look, &open)
}

#[inline]
pub(crate) fn duplicating(from: c_int, over: Option<c_int>, duplicate: impl FnOnce() -> c_int) -> c_int {
    let since = descriptions::moment();
    if let Some(over) = over
        && over != from
    {
        closing(over);
    }
    let to = duplicate();
    if to >= 0 {
        descriptions::copied(from, to, since);
    }
    to
}

#[inline]
pub(crate) fn closing(fd: c_int) {
    descriptions::closing(fd);
}

pub(crate) fn closing_range(first: c_uint, last: c_uint, flags: c_int) {
    if flags & libc::CLOSE_RANGE_UNSHARE as c_int != 0 {
        descriptions::share_table_for_good();
    }
    // Descriptors that exec will close stay as they are.
    if flags & libc::CLOSE_RANGE_CLOEXEC as c_int == 0 {
        descriptions::closing_range(first, last);
    }
}

/// The descriptor is recorded only if stdio's calls are seen here.
fn opening_stream(open: impl FnOnce() -> *mut FILE) -> *mut FILE {
    let since = descriptions::moment();
    client::life::look_after();
    let file = open();
    if !file.is_null() && stdio::visible() {
        // SAFETY: libc has just made the FILE.
        let (fd, seen) = unsafe { (stdio::descriptor(file), stdio::led_through_here(file)) };
        if seen {
            expected::used(fd);
            descriptions::found(fd, since);
        }
    }
    file
}

/// As `fopen`. A file that is to be emptied is opened here, where its truncation may wait.
fn opening_stream_by_name(
    path: *const c_char,
    mode: *const c_char,
    plainly: impl FnOnce() -> *mut FILE,
) -> *mut FILE {
    let flags = if mode.is_null() { None } else { emptying_mode(mode) };
    let Some(flags) = flags.filter(|&flags| may_wait(flags)) else { return opening_stream(plainly) };
    if !saves(HERE, path, flags) {
        return opening_stream(plainly);
    }
    // SAFETY: the program's path.
    let fd = opening_later(HERE, path, flags, true, |flags| unsafe { open::real(path, flags, 0o666) });
    if fd < 0 {
        return core::ptr::null_mut();
    }
    opening_stream(|| {
        // SAFETY: a descriptor that is nobody's yet, and the program's string.
        let file = unsafe { fdopen::real(fd, mode) };
        if file.is_null() {
            closing(fd);
            kernel::close(fd);
        }
        file
    })
}

/// The flags of a plain mode that empties a file.
fn emptying_mode(mode: *const c_char) -> Option<c_int> {
    // SAFETY: libc reads the program's string likewise.
    let mode = unsafe { core::ffi::CStr::from_ptr(mode) }.to_bytes();
    let rest = mode.strip_prefix(b"w")?;
    let mut flags = CREATE;
    for letter in rest {
        match letter {
            b'b' => (),
            b'+' => flags = flags & !libc::O_ACCMODE | libc::O_RDWR,
            b'e' => flags |= libc::O_CLOEXEC,
            _ => return None,
        }
    }
    Some(flags)
}

/// libc closes the descriptor, or duplicates over it.
fn reopening_stream(file: *mut FILE, reopen: impl FnOnce() -> *mut FILE) -> *mut FILE {
    if stdio::visible() && !file.is_null() {
        // SAFETY: the program's FILE.
        closing(unsafe { stdio::descriptor(file) });
    }
    opening_stream(reopen)
}

fn surrendering_to_libc(fd: c_int) {
    descriptions::disown(fd);
    closing(fd);
}

/// F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG.
const OWNER: RangeInclusive<c_int> = 8..=11;
/// F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS.
const OWNER_EX: RangeInclusive<c_int> = 15..=17;

/// The kernel signals the helper about a description under a write lease: the program would not answer a break.
pub(crate) fn control(fd: c_int, command: c_int, argument: usize, call: impl FnOnce() -> c_int) -> c_int {
    match command {
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => return duplicating(fd, None, call),
        libc::F_GETFL => return without_async(fd, call()),
        // The helper's leases and descriptors would clash with the program's.
        libc::F_SETLEASE if argument as c_int != libc::F_UNLCK => stop("leases of its own"),
        // The helper's lease must neither show nor be given up.
        _ if descriptions::writable(fd) => descriptions::disown(fd),
        _ => {}
    }
    call()
}

/// Hides O_ASYNC, which on a regular file only the helper's lease sets.
fn without_async(fd: c_int, flags: c_int) -> c_int {
    let ours = flags >= 0 && flags & libc::O_ASYNC != 0 && descriptions::writable(fd) && kernel::regular(fd);
    if ours { flags & !libc::O_ASYNC } else { flags }
}

#[inline]
pub(crate) fn control_matters(command: c_int) -> bool {
    match command {
        // Before the constructor, too: the lease may outlive it.
        libc::F_SETLEASE => !stopped(),
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC | libc::F_GETLEASE | libc::F_GETFL => active(),
        _ => (OWNER.contains(&command) || OWNER_EX.contains(&command)) && active(),
    }
}

const CREATE: c_int = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
const HERE: c_int = libc::AT_FDCWD;

macro_rules! call {
    ($name:ident($($arg:ident),*) but $other:ident) => {
        // SAFETY: the program's call.
        |$other| unsafe { $name::real($($arg),*) }
    };
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: as above.
        || unsafe { $name::real($($arg),*) }
    };
}

// C may leave `mode` out: nothing reads the register then.
interpose! {
    fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, mode);
        if active() => opening(HERE, path, flags, call!(open(path, flags, mode) but flags));

    fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, mode);
        if active() => opening(HERE, path, flags, call!(open64(path, flags, mode) but flags));

    fn __open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, mode);
        if active() => opening(HERE, path, flags, call!(__open(path, flags, mode) but flags));

    fn __open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, mode);
        if active() => opening(HERE, path, flags, call!(__open64(path, flags, mode) but flags));

    fn __open_2(path: *const c_char, flags: c_int) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, 0);
        if active() => opening(HERE, path, flags, call!(__open_2(path, flags) but flags));

    fn __open64_2(path: *const c_char, flags: c_int) -> c_int,
        until kernel(libc::SYS_openat, HERE, path, flags, 0);
        if active() => opening(HERE, path, flags, call!(__open64_2(path, flags) but flags));

    fn openat(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat);
        if active() => opening(directory, path, flags, call!(openat(directory, path, flags, mode) but flags));

    fn openat64(directory: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        until kernel(libc::SYS_openat);
        if active() => opening(directory, path, flags, call!(openat64(directory, path, flags, mode) but flags));

    fn __openat_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int,
        until kernel(libc::SYS_openat, directory, path, flags, 0);
        if active() => opening(directory, path, flags, call!(__openat_2(directory, path, flags) but flags));

    fn __openat64_2(directory: c_int, path: *const c_char, flags: c_int) -> c_int,
        until kernel(libc::SYS_openat, directory, path, flags, 0);
        if active() => opening(directory, path, flags, call!(__openat64_2(directory, path, flags) but flags));

    fn creat(path: *const c_char, mode: mode_t) -> c_int, until kernel(libc::SYS_openat, HERE, path, CREATE, mode);
        if active() => opening(HERE, path, CREATE, call!(open(path, flags, mode) but flags));

    fn creat64(path: *const c_char, mode: mode_t) -> c_int, until kernel(libc::SYS_openat, HERE, path, CREATE, mode);
        if active() => opening(HERE, path, CREATE, call!(open(path, flags, mode) but flags));

    fn openat2(directory: c_int, path: *const c_char, how: usize, len: usize) -> c_int,
        until kernel(libc::SYS_openat2);
        if active() => opening_by_rules(directory, path, how, len, call!(openat2(directory, path, how, len) but how));

    fn open_by_handle_at(mount: c_int, handle: usize, flags: c_int) -> c_int,
        until kernel(libc::SYS_open_by_handle_at);
        if active() => opening_handle(mount, handle, flags, call!(open_by_handle_at(mount, handle, flags) but flags));

    fn shm_open(name: *const c_char, flags: c_int, mode: mode_t) -> c_int, until lookup(-1, &[c"librt.so.1"]);
        if active() => opening_shared_memory(name, flags, call!(shm_open(name, flags, mode) but flags));

    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => opening_stream_by_name(path, mode, call!(fopen(path, mode)));

    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() => opening_stream_by_name(path, mode, call!(fopen64(path, mode)));

    fn freopen(path: *const c_char, mode: *const c_char, file: *mut FILE) -> *mut FILE,
        until lookup(core::ptr::null_mut());
        if active() => reopening_stream(file, call!(freopen(path, mode, file)));

    fn freopen64(path: *const c_char, mode: *const c_char, file: *mut FILE) -> *mut FILE,
        until lookup(core::ptr::null_mut());
        if active() => reopening_stream(file, call!(freopen64(path, mode, file)));

    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE, until lookup(core::ptr::null_mut());
        if active() && !stdio::visible() => {
            surrendering_to_libc(fd);
            // SAFETY: as above.
            unsafe { fdopen::real(fd, mode) }
        };

    fn fdopendir(fd: c_int) -> *mut DIR, until lookup(core::ptr::null_mut());
        if active() => {
            surrendering_to_libc(fd);
            // SAFETY: as above.
            unsafe { fdopendir::real(fd) }
        };

    fn dup(fd: c_int) -> c_int, until kernel(libc::SYS_dup);
        if active() => duplicating(fd, None, call!(dup(fd)));

    fn dup2(fd: c_int, over: c_int) -> c_int, until early(-1);
        if active() => duplicating(fd, Some(over), call!(dup2(fd, over)));

    fn __dup2(fd: c_int, over: c_int) -> c_int, until early(-1);
        if active() => duplicating(fd, Some(over), call!(__dup2(fd, over)));

    fn dup3(fd: c_int, over: c_int, flags: c_int) -> c_int, until kernel(libc::SYS_dup3);
        if active() => duplicating(fd, Some(over), call!(dup3(fd, over, flags)));

    /// What C passes behind the command fits one register.
    fn fcntl(fd: c_int, command: c_int, argument: usize) -> c_int, until kernel(libc::SYS_fcntl);
        if control_matters(command) => control(fd, command, argument, call!(fcntl(fd, command, argument)));

    fn __fcntl(fd: c_int, command: c_int, argument: usize) -> c_int, until kernel(libc::SYS_fcntl);
        if control_matters(command) => control(fd, command, argument, call!(__fcntl(fd, command, argument)));

    fn fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int, until kernel(libc::SYS_fcntl);
        if control_matters(command) => control(fd, command, argument, call!(fcntl64(fd, command, argument)));

    fn close(fd: c_int) -> c_int, until kernel(libc::SYS_close);
        if active() => {
            closing(fd);
            // SAFETY: as above.
            unsafe { close::real(fd) }
        };

    fn __close(fd: c_int) -> c_int, until kernel(libc::SYS_close);
        if active() => {
            closing(fd);
            // SAFETY: as above.
            unsafe { __close::real(fd) }
        };

    fn login_tty(fd: c_int) -> c_int, until lookup(-1, &[c"libutil.so.1"]);
        if active() => {
            surrendering_to_libc(fd);
            // SAFETY: as above.
            unsafe { login_tty::real(fd) }
        };

    fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int, until kernel(libc::SYS_close_range);
        if active() => {
            closing_range(first, last, flags);
            // SAFETY: as above.
            unsafe { close_range::real(first, last, flags) }
        };

    /// C declares void.
    fn closefrom(first: c_int) -> c_int, until lookup(0);
        if active() => {
            closing_range(first.max(0) as c_uint, c_uint::MAX, 0);
            // SAFETY: as above.
            unsafe { closefrom::real(first) }
        };
}
