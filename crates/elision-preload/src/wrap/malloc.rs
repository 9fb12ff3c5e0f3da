//! Large requests become blocks, everything else is the next malloc's.
//!
//! The dynamic loader calls before the constructor, and another allocator behind us may free what it gets: so each name is looked
//! up at its first call, which allocates nothing, and glibc's `__libc_malloc` is no shortcut.
//!
//! Blocks are placed only if the whole family is ours, glibc's is next, and memory is not limited: another allocator (through
//! `sdallocx`), or a `free` of the program's, could get a block.
#![allow(unsafe_code)] // The program keeps malloc's contract.

use super::malloc_info;
use crate::abi::interpose::interpose;
use crate::abi::kernel::whole_pages;
use crate::abi::objects;
use crate::abi::raw::raw_call;
use crate::state::heap::{self, block, least};
use crate::state::{memory, stop};
use core::ffi::{CStr, c_int, c_void};
use core::ptr::{self, null_mut};
use elision_core::client;
use elision_sys::{PAGE, limits};

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
}

const ALIGNMENT: usize = 16;

/// The constructor calls this: the search order is complete.
pub(crate) fn init() {
    resolve();
    if memory::active() && heap_is_ours() && !limits::memory_is_limited() {
        // Below a page there is nothing to associate.
        heap::place_from(client::life::min_bytes().max(PAGE));
        if calls_arrive() {
            malloc_info::begin();
        } else {
            heap::place_no_more();
        }
    }
}

fn heap_is_ours() -> bool {
    let names: [&CStr; 8] = [
        c"malloc",
        c"free",
        c"calloc",
        c"realloc",
        c"memalign",
        c"posix_memalign",
        c"aligned_alloc",
        c"malloc_usable_size",
    ];
    names.iter().all(|name| objects::first(name).is_some_and(|first| first.ours || first.entry))
        && objects::next(c"malloc").is_some_and(|next| ptr::eq(next, __libc_malloc as *const c_void))
}

/// Does malloc come here? An executable's entry hides whom it leads to.
fn calls_arrive() -> bool {
    let (Some(malloc), Some(free)) = (objects::first(c"malloc"), objects::first(c"free")) else {
        return false;
    };
    // SAFETY: the name's owner has malloc's type, and gets its memory back.
    unsafe {
        let malloc: unsafe extern "C" fn(usize) -> *mut c_void = core::mem::transmute(malloc.address);
        let free: unsafe extern "C" fn(*mut c_void) = core::mem::transmute(free.address);
        let memory = malloc(least());
        let ours = block::in_window(memory.addr());
        free(memory);
        ours
    }
}

#[inline(always)]
fn place(align: usize, size: usize) -> Option<*mut c_void> {
    if size < least() { None } else { place_large(align, size).map(|(payload, _)| payload) }
}

/// The payload, and whether it is zero.
#[cold]
fn place_large(align: usize, size: usize) -> Option<(*mut c_void, bool)> {
    let align = align.is_power_of_two().then_some(align.max(ALIGNMENT))?;
    let (payload, fresh) = block::allocate(size, align)?;
    Some((ptr::with_exposed_provenance_mut(payload), fresh))
}

#[inline(always)]
fn place_zeroed(size: usize) -> Option<*mut c_void> {
    if size < least() {
        return None;
    }
    let (payload, fresh) = place_large(ALIGNMENT, size)?;
    if !fresh && let Some(usable) = block::usable(payload.addr()) {
        // Zeroes all usable bytes, as glibc does: some programs use them.
        // SAFETY: a live block of so many bytes, known to nobody else.
        unsafe { ptr::write_bytes(payload.cast::<u8>(), 0, usable) };
    }
    Some(payload)
}

/// glibc's answer: going on would corrupt memory.
#[cold]
fn invalid(function: &[u8]) -> ! {
    for part in [function, b"(): invalid pointer\n"] {
        // SAFETY: writes our bytes to standard error.
        let _ = unsafe { raw_call(libc::SYS_write, &[2, part.as_ptr() as usize, part.len()]) };
    }
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}

/// `None`: it is the next malloc's.
#[inline(always)]
fn free_placed(payload: *mut c_void) -> Option<()> {
    if block::in_window(payload.addr()) { free_in_window(payload) } else { None }
}

/// The kernel may put the next malloc's mappings into the window, when a program has terabytes.
#[cold]
fn free_in_window(payload: *mut c_void) -> Option<()> {
    // A filter may kill for calls that glibc's heap would not make.
    if block::free(payload.expose_provenance(), !stop::filtered()) {
        return Some(());
    }
    if block::holds(payload.addr()) {
        invalid(b"free")
    }
    None
}

fn release(payload: *mut c_void) -> Option<()> {
    free_placed(payload).or_else(|| {
        // SAFETY: the program's argument of free.
        unsafe { free::real(payload) };
        Some(())
    })
}

fn resize(payload: *mut c_void, size: usize) -> Option<*mut c_void> {
    if payload.is_null() {
        return place(ALIGNMENT, size);
    }
    if block::in_window(payload.addr()) {
        return resize_placed(payload, size);
    }
    if size < least() {
        return None;
    }
    // What grows to a block's size becomes one, by one copy.
    // SAFETY: the program's argument of realloc is the next malloc's.
    let had = unsafe { malloc_usable_size::real(payload) };
    if had == 0 || had >= least() {
        return None;
    }
    let new = place(ALIGNMENT, size)?;
    // SAFETY: two live allocations of at least so many bytes.
    unsafe {
        ptr::copy_nonoverlapping(payload.cast::<u8>(), new.cast(), had.min(size));
        free::real(payload);
    }
    Some(new)
}

#[cold]
fn resize_placed(payload: *mut c_void, size: usize) -> Option<*mut c_void> {
    let addr = payload.expose_provenance();
    let Some(had) = block::usable(addr) else {
        if block::holds(addr) {
            invalid(b"realloc")
        }
        return None;
    };
    if size == 0 {
        release(payload);
        return Some(null_mut());
    }
    // Only a size far below the least leaves: one that moves across it would be copied each time.
    let small = size < if least() == usize::MAX { PAGE } else { least() } / 2;
    if !small
        && !stop::filtered()
        && size <= isize::MAX as usize
        && let Some(kept) = block::resize(addr, size)
    {
        return Some(ptr::with_exposed_provenance_mut(kept));
    }
    // SAFETY: asks for memory; then copies between distinct places of `had` and `size` bytes.
    unsafe {
        let new = if small { malloc::real(size) } else { malloc(size) };
        if !new.is_null() {
            ptr::copy_nonoverlapping(payload.cast::<u8>(), new.cast(), had.min(size));
            release(payload);
        }
        Some(new)
    }
}

/// `$absent`: the answer without a next definition.
macro_rules! heap {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $absent:expr => $ours:expr;)*) => {
        interpose! {
            $(fn $name($($argument: $type),*) -> $result,
                until lookup($absent); => match $ours {
                    Some(ours) => ours,
                    // SAFETY: the program's call.
                    None => unsafe { $name::real($($argument),*) },
                };)*
        }
    };
}

type Memory = *mut c_void;
type Nothing = ();

heap! {
    malloc(size: usize) -> Memory, null_mut() => place(ALIGNMENT, size);
    calloc(count: usize, size: usize) -> Memory, null_mut() => place_zeroed(count.saturating_mul(size));
    realloc(payload: Memory, size: usize) -> Memory, null_mut() => resize(payload, size);
    reallocarray(payload: Memory, count: usize, size: usize) -> Memory, null_mut() =>
        count.checked_mul(size).and_then(|bytes| resize(payload, bytes));
    __libc_realloc(payload: Memory, size: usize) -> Memory, null_mut() =>
        if block::in_window(payload.addr()) { resize_placed(payload, size) } else { None };
    free(payload: Memory) -> Nothing, Nothing::default() => free_placed(payload);
    __libc_free(payload: Memory) -> Nothing, Nothing::default() => free_placed(payload);
    cfree(payload: Memory) -> Nothing, Nothing::default() => release(payload);
    free_sized(payload: Memory, _size: usize) -> Nothing, Nothing::default() => release(payload);
    free_aligned_sized(payload: Memory, _align: usize, _size: usize) -> Nothing, Nothing::default() => release(payload);
    memalign(align: usize, size: usize) -> Memory, null_mut() => place(align, size);
    aligned_alloc(align: usize, size: usize) -> Memory, null_mut() => place(align, size);
    valloc(size: usize) -> Memory, null_mut() => place(PAGE, size);
    pvalloc(size: usize) -> Memory, null_mut() => place(PAGE, whole_pages(size).unwrap_or(0));
    posix_memalign(out: *mut Memory, align: usize, size: usize) -> c_int, libc::ENOMEM =>
        if align.is_multiple_of(size_of::<Memory>()) { place(align, size) } else { None }.map(|payload| {
            // SAFETY: where the program wants the pointer.
            unsafe { *out = payload };
            0
        });
    malloc_usable_size(payload: Memory) -> usize, 0 => block::usable(payload.addr());
}
