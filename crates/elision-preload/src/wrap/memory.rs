//! The calls that make, move, reshape and drop mappings: by name, and as `sys_…` for `syscall(2)`, each with its manual page's
//! safety contract. What is deferred is forgotten before an unmap, zeroed before `MADV_DONTNEED` or `MADV_FREE`, and dissolved
//! before it is mapped over, moved or reprotected.
//!
//! A call that the kernel will refuse must change nothing: `span` checks what the kernel checks first. Where a failure may come
//! later, the range is dissolved, which loses nothing.
#![allow(unsafe_code)] // The program keeps mmap's contract.

use crate::abi::arch;
use crate::abi::kernel::whole_pages;
use crate::abi::next::{To, next, pass};
use crate::abi::raw::{answer, raw_call};
use crate::state::descriptions;
use crate::state::memory::{
    Span, active, eligible, nothing_eligible, record, settle, settle_all, span, span_around,
};
use core::ffi::{c_int, c_uint, c_ulong, c_void};
use elision_core::client;
use elision_sys::raw::{Errno, Result};

next! {
    MMAP = c"mmap": fn(*mut c_void, usize, c_int, c_int, c_int, i64) -> *mut c_void;
    MUNMAP = c"munmap": fn(*mut c_void, usize) -> c_int;
    MREMAP = c"mremap": fn(*mut c_void, usize, usize, c_int, *mut c_void) -> *mut c_void;
    MPROTECT = c"mprotect": fn(*mut c_void, usize, c_int) -> c_int;
    PKEY_MPROTECT = c"pkey_mprotect": fn(*mut c_void, usize, c_int, c_int) -> c_int;
    PROCESS_MADVISE = c"process_madvise": fn(c_int, *const libc::iovec, usize, c_int, c_uint) -> isize;
    MADVISE = c"madvise": fn(*mut c_void, usize, c_int) -> c_int;
    MLOCK = c"mlock": fn(*const c_void, usize) -> c_int;
    MLOCK2 = c"mlock2": fn(*const c_void, usize, c_uint) -> c_int;
    MLOCKALL = c"mlockall": fn(c_int) -> c_int;
    MSEAL = c"mseal": fn(*mut c_void, usize, c_ulong) -> c_int;
    SHMAT = c"shmat": fn(c_int, *const c_void, c_int) -> *mut c_void;
}

/// Not in every libc.
pub(crate) const SYS_MSEAL: libc::c_long = 462;

const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;

pub unsafe fn sys_mmap(
    to: To,
    addr: *mut c_void,
    len: usize,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    if active() {
        if flags & libc::MAP_FIXED != 0
            && let Some(target) = span(addr, len)
        {
            target.replace();
        }
        let shared = flags & libc::MAP_SHARED != 0;
        if shared && flags & libc::MAP_ANONYMOUS == 0 && (prot & libc::PROT_WRITE != 0 || writable(fd)) {
            // The library does not see stores through the mapping.
            descriptions::disown(fd);
        }
    }
    // SAFETY: the program's own arguments.
    let mapped = unsafe { pass!(to, MMAP, libc::SYS_mmap, (addr, len, prot, flags, fd, offset)) };
    if active() && mapped != libc::MAP_FAILED && recordable(prot, flags) {
        record(mapped, len);
    }
    mapped
}

fn recordable(prot: c_int, flags: c_int) -> bool {
    let plain = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | libc::MAP_FIXED
        | libc::MAP_FIXED_NOREPLACE
        | libc::MAP_NORESERVE
        | libc::MAP_POPULATE
        | arch::MAP_32BIT;
    let needed = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    prot == READ_WRITE && flags & needed == needed && flags & !plain == 0
}

/// A descriptor open for writing lets even a readable mapping become writable.
fn writable(fd: c_int) -> bool {
    // SAFETY: F_GETFL takes no pointer.
    let flags = unsafe { raw_call(libc::SYS_fcntl, &[fd as usize, libc::F_GETFL as usize, 0]) };
    flags.is_ok_and(|flags| flags as c_int & libc::O_ACCMODE != libc::O_RDONLY)
}

pub unsafe fn sys_munmap(to: To, addr: *mut c_void, len: usize) -> c_int {
    let pages = if active() { span(addr, len) } else { None };
    let touched = pages.is_some_and(Span::touched);
    if let Some(pages) = pages {
        pages.forget();
        pages.disqualify();
    }
    // SAFETY: the program's own arguments.
    let result = unsafe { pass!(to, MUNMAP, libc::SYS_munmap, (addr, len)) };
    if result != 0 && touched {
        // The kernel cannot split the mapping. The deferred pages have lost their guard: they are loaded at once.
        // SAFETY: loads pages, and changes no byte.
        let _ =
            unsafe { raw_call(libc::SYS_madvise, &[addr.addr(), len, libc::MADV_POPULATE_WRITE as usize]) };
    }
    result
}

pub unsafe fn sys_mremap(
    to: To,
    old: *mut c_void,
    old_len: usize,
    new_len: usize,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let from = if active() { span(old, old_len) } else { None };
    let Some(from) = from else {
        // SAFETY: the program's own arguments.
        return unsafe { pass!(to, MREMAP, libc::SYS_mremap, (old, old_len, new_len, flags, new)) };
    };
    let errno = crate::abi::raw::errno();
    let plain = eligible(from.start, from.len());
    let touched = from.touched();
    from.dissolve();
    from.disqualify();
    if flags & libc::MREMAP_FIXED != 0
        && let Some(target) = span(new, new_len)
    {
        target.replace();
    }
    let arguments = [old.addr(), old_len, new_len, flags as usize, new.addr()];
    // To a given place Linux 6.17 moves mapping by mapping, and may stop at any with EFAULT.
    let moved = if plain
        && sound_to_fixed(from, new_len, flags, new.addr())
        && pieces::several(from.start, from.end)
    {
        remap_pieces(from, new_len, flags, new.addr())
    } else if plain || touched {
        // SAFETY: the program's own arguments. libc would set errno for a refusal mended here.
        match unsafe { raw_call(libc::SYS_mremap, &arguments) } {
            // Deferral made several mappings of the program's one.
            Err(Errno(libc::EFAULT)) if plain || pieces::are_alike(from.start, from.end) => {
                remap_pieces(from, new_len, flags, new.addr())
            }
            result => result,
        }
    } else {
        // SAFETY: as above.
        match unsafe { pass!(to, MREMAP, libc::SYS_mremap, (old, old_len, new_len, flags, new)) } {
            // The program may have locked or protected a part once.
            libc::MAP_FAILED
                if crate::abi::raw::errno() == libc::EFAULT && pieces::are_alike(from.start, from.end) =>
            {
                crate::abi::raw::set_errno(errno);
                remap_pieces(from, new_len, flags, new.addr())
            }
            libc::MAP_FAILED => Err(Errno(crate::abi::raw::errno())),
            addr => Ok(addr.addr()),
        }
    };
    if plain {
        match moved {
            Ok(addr) => {
                record(core::ptr::without_provenance(addr), new_len);
                if flags & libc::MREMAP_DONTUNMAP != 0 {
                    record(old, from.len());
                }
            }
            Err(_) => record(old, from.len()),
        }
    }
    core::ptr::with_exposed_provenance_mut(answer(moved) as usize)
}

fn sound_to_fixed(from: Span, new_len: usize, flags: c_int, new: usize) -> bool {
    let known = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let needed = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    flags & needed == needed
        && flags & !known == 0
        && span(core::ptr::without_provenance(new), new_len).is_some_and(|to| {
            let apart = to.end <= from.start || from.end <= to.start;
            apart && (flags & libc::MREMAP_DONTUNMAP == 0 || to.len() == from.len())
        })
}

/// Does mremap's work on the several mappings that deferral made of one.
fn remap_pieces(from: Span, new_len: usize, flags: c_int, new: usize) -> Result<usize> {
    // Leaves fresh memory, of the same length, or the kernel would not say EFAULT.
    let stays = flags & libc::MREMAP_DONTUNMAP;
    let new_len = whole_pages(new_len).filter(|len| *len != 0).ok_or(Errno(libc::EINVAL))?;
    let fixed = flags & libc::MREMAP_FIXED != 0;
    let kept = from.len().min(new_len);
    let map = |addr: usize, len: usize, extra: c_int| {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | extra;
        // SAFETY: replaces nothing but what the program wants replaced.
        unsafe { raw_call(libc::SYS_mmap, &[addr, len, READ_WRITE as usize, flags as usize, usize::MAX, 0]) }
    };
    if !fixed && stays == 0 {
        if new_len <= from.len() {
            if new_len < from.len() {
                unmap(from.start + new_len, from.len() - new_len)?;
            }
            return Ok(from.start);
        }
        if let Ok(at) = map(from.end, new_len - from.len(), libc::MAP_FIXED_NOREPLACE) {
            if at == from.end {
                return Ok(from.start);
            }
            unmap(at, new_len - from.len())?;
        }
        if flags & libc::MREMAP_MAYMOVE == 0 {
            return Err(Errno(libc::ENOMEM));
        }
    }
    let to = if fixed { map(new, new_len, libc::MAP_FIXED)? } else { map(0, new_len, 0)? };
    let leave = |start: usize, len: usize| {
        let _ = if stays == 0 { unmap(start, len) } else { map(start, len, libc::MAP_FIXED) };
    };
    let mut done = from.start;
    pieces::each(from.start, from.start + kept, |start, end| {
        let place = to + (start - from.start);
        let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | stays) as usize;
        // SAFETY: from the program's range to its new place.
        let moved = unsafe { raw_call(libc::SYS_mremap, &[start, end - start, end - start, flags, place]) };
        if moved.is_err() {
            copy(start, place, end - start);
            leave(start, end - start);
        }
        done = end;
    });
    // Only the rest is unmapped: another thread may have mapped where a piece has left.
    let kept_end = from.start + kept;
    if done < kept_end {
        copy(done, to + (done - from.start), kept_end - done);
        leave(done, kept_end - done);
    }
    if kept < from.len() {
        let _ = unmap(kept_end, from.len() - kept);
    }
    Ok(to)
}

fn copy(from: usize, to: usize, len: usize) {
    let source: *const u8 = core::ptr::with_exposed_provenance(from);
    // SAFETY: from the program's readable mapping to its new place.
    unsafe { core::ptr::copy_nonoverlapping(source, core::ptr::with_exposed_provenance_mut(to), len) };
}

fn unmap(addr: usize, len: usize) -> Result<usize> {
    // SAFETY: what the program moves away or cuts off.
    unsafe { raw_call(libc::SYS_munmap, &[addr, len]) }
}

mod pieces {
    use crate::abi::kernel;
    use elision_sys::{file, maps};

    pub(super) fn several(from: usize, to: usize) -> bool {
        let mut count = 0;
        if elision_core::client::life::ever_at_work() {
            each(from, to, |_, _| count += 1);
        }
        count > 1
    }

    /// Is the range mapped throughout, in pieces that could be one?
    pub(super) fn are_alike(from: usize, to: usize) -> bool {
        let (mut end, mut count) = (from, 0);
        if elision_core::client::life::ever_at_work() {
            each_mapping(from, to, |mapping| {
                let plain = mapping.readable && mapping.writable && !mapping.shared && mapping.ino == 0;
                if plain && mapping.start <= end {
                    (end, count) = (mapping.end, count + 1);
                }
            });
        }
        end >= to && count > 1
    }

    /// `piece` may unmap its part. Ends early where the kernel does not say.
    pub(super) fn each(from: usize, to: usize, mut piece: impl FnMut(usize, usize)) {
        each_mapping(from, to, |mapping| piece(mapping.start.max(from), mapping.end.min(to)));
    }

    fn each_mapping(from: usize, to: usize, mut act: impl FnMut(&maps::Mapping)) {
        let Ok(maps) = file::open(c"/proc/self/maps", libc::O_RDONLY | libc::O_CLOEXEC, 0) else { return };
        let mut at = from;
        while at < to
            && let Ok(mapping) = maps::mapping(maps, at)
            && mapping.start < to
        {
            act(&mapping);
            at = mapping.end;
        }
        kernel::close(maps);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_pieces_of_a_range_cover_it() {
            let bytes = vec![0u8; 1 << 20];
            let (start, end) = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
            let mut covered = 0;
            each(start, end, |from, to| {
                assert!(start <= from && to <= end);
                covered += to - from;
            });
            assert_eq!(covered, bytes.len());
        }
    }
}

pub unsafe fn sys_mprotect(to: To, addr: *mut c_void, len: usize, prot: c_int) -> c_int {
    if active()
        && let Some(pages) = span(addr, len)
    {
        pages.dissolve();
        if prot != READ_WRITE {
            pages.disqualify();
        }
    }
    // SAFETY: the program's own arguments.
    unsafe { pass!(to, MPROTECT, libc::SYS_mprotect, (addr, len, prot)) }
}

pub unsafe fn sys_pkey_mprotect(to: To, addr: *mut c_void, len: usize, prot: c_int, key: c_int) -> c_int {
    if active()
        && let Some(pages) = span(addr, len)
    {
        pages.dissolve();
        pages.disqualify();
    }
    // SAFETY: as above.
    unsafe { pass!(to, PKEY_MPROTECT, libc::SYS_pkey_mprotect, (addr, len, prot, key)) }
}

/// Is the advice only about when pages are loaded, and their size?
fn harmless(advice: c_int) -> bool {
    matches!(
        advice,
        libc::MADV_NORMAL
            | libc::MADV_RANDOM
            | libc::MADV_SEQUENTIAL
            | libc::MADV_WILLNEED
            | libc::MADV_HUGEPAGE
            | libc::MADV_NOHUGEPAGE
            | libc::MADV_COLD
            | libc::MADV_PAGEOUT
            | libc::MADV_POPULATE_READ
            | libc::MADV_POPULATE_WRITE
    )
}

pub unsafe fn sys_madvise(to: To, addr: *mut c_void, len: usize, advice: c_int) -> c_int {
    const MADV_DONTNEED_LOCKED: c_int = 24;
    if active()
        && let Some(pages) = span(addr, len)
    {
        match advice {
            libc::MADV_DONTNEED | MADV_DONTNEED_LOCKED | libc::MADV_FREE => {
                if pages.touched() {
                    // SAFETY: the program discards it.
                    unsafe { client::memory::zero(pages.start, pages.len()) };
                }
            }
            libc::MADV_HUGEPAGE => client::memory::wants_huge_pages(),
            _ if harmless(advice) => {}
            // The advice is about fork, dumps, merging or guards, or unknown: the range is left alone for good.
            _ => {
                pages.dissolve();
                pages.disqualify();
            }
        }
    }
    // SAFETY: the program's own arguments.
    unsafe { pass!(to, MADVISE, libc::SYS_madvise, (addr, len, advice)) }
}

/// Only the kernel knows whose memory is meant: this process's is settled.
fn before_process_madvise(ranges: *const libc::iovec, count: usize, advice: c_int) {
    if active() && !harmless(advice) {
        settle_all(ranges, count);
    }
}

pub unsafe fn sys_process_madvise(
    to: To,
    process: c_int,
    ranges: *const libc::iovec,
    count: usize,
    advice: c_int,
    flags: c_uint,
) -> isize {
    before_process_madvise(ranges, count, advice);
    // SAFETY: as above.
    unsafe { pass!(to, PROCESS_MADVISE, libc::SYS_process_madvise, (process, ranges, count, advice, flags)) }
}

pub unsafe fn sys_mlock(to: To, addr: *const c_void, len: usize) -> c_int {
    settle(addr.addr(), len);
    // SAFETY: as above.
    unsafe { pass!(to, MLOCK, libc::SYS_mlock, (addr, len)) }
}

pub unsafe fn sys_mlock2(to: To, addr: *const c_void, len: usize, flags: c_uint) -> c_int {
    settle(addr.addr(), len);
    // SAFETY: as above.
    unsafe { pass!(to, MLOCK2, libc::SYS_mlock2, (addr, len, flags)) }
}

pub unsafe fn sys_mlockall(to: To, flags: c_int) -> c_int {
    if active() {
        nothing_eligible();
    }
    // SAFETY: the program's own argument.
    unsafe { pass!(to, MLOCKALL, libc::SYS_mlockall, (flags)) }
}

pub unsafe fn sys_mseal(to: To, addr: *mut c_void, len: usize, flags: c_ulong) -> c_int {
    settle(addr.addr(), len);
    // SAFETY: the program's own arguments.
    unsafe { pass!(to, MSEAL, SYS_MSEAL, (addr, len, flags)) }
}

pub unsafe fn sys_shmat(to: To, id: c_int, addr: *const c_void, flags: c_int) -> *mut c_void {
    if active() && flags & libc::SHM_REMAP != 0 {
        let mut segment = core::mem::MaybeUninit::<libc::shmid_ds>::zeroed();
        let arguments = [id as usize, libc::IPC_STAT as usize, segment.as_mut_ptr().addr()];
        // SAFETY: the kernel fills a local structure, valid with zeroes.
        let (known, segment) = unsafe { (raw_call(libc::SYS_shmctl, &arguments), segment.assume_init()) };
        if known.is_ok()
            && let Some(target) = span_around(addr, segment.shm_segsz)
        {
            target.replace();
        }
    }
    // SAFETY: the program's own arguments.
    unsafe { pass!(to, SHMAT, libc::SYS_shmat, (id, addr, flags)) }
}

macro_rules! export {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $result:ty = $body:ident;)*) => {
        $(#[doc = concat!("`", stringify!($name), "(2)`.\n\n# Safety\nThe program's promise to it.")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            // SAFETY: the program's promise.
            unsafe { $body(To::Next, $($argument),*) }
        })*
    };
}

export! {
    fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void = sys_mmap;
    fn mmap64(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, offset: i64) -> *mut c_void = sys_mmap;
    fn munmap(addr: *mut c_void, len: usize) -> c_int = sys_munmap;
    fn mremap(old: *mut c_void, old_len: usize, new_len: usize, flags: c_int, new: *mut c_void) -> *mut c_void = sys_mremap;
    fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int = sys_mprotect;
    fn pkey_mprotect(addr: *mut c_void, len: usize, prot: c_int, key: c_int) -> c_int = sys_pkey_mprotect;
    fn madvise(addr: *mut c_void, len: usize, advice: c_int) -> c_int = sys_madvise;
    fn process_madvise(process: c_int, ranges: *const libc::iovec, count: usize, advice: c_int, flags: c_uint) -> isize = sys_process_madvise;
    fn mlock(addr: *const c_void, len: usize) -> c_int = sys_mlock;
    fn mlock2(addr: *const c_void, len: usize, flags: c_uint) -> c_int = sys_mlock2;
    fn mlockall(flags: c_int) -> c_int = sys_mlockall;
    fn mseal(addr: *mut c_void, len: usize, flags: c_ulong) -> c_int = sys_mseal;
    fn shmat(id: c_int, addr: *const c_void, flags: c_int) -> *mut c_void = sys_shmat;
}
