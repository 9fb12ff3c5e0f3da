//! What the heap says of itself: glibc's account, and our blocks as glibc would have entered them. Large requests are mappings of
//! their own there, smaller ones part of the arena. And what it is told.
#![allow(unsafe_code)] // Exported names, whose contract is the program's.

use super::{block, malloc};
use crate::real::Next;
use core::ffi::c_int;

static MALLINFO: Next<unsafe extern "C" fn() -> libc::mallinfo> = Next::new(c"mallinfo");
static MALLINFO2: Next<unsafe extern "C" fn() -> libc::mallinfo2> = Next::new(c"mallinfo2");

static TRIM: Next<unsafe extern "C" fn(usize) -> c_int> = Next::new(c"malloc_trim");
static OPTION: Next<unsafe extern "C" fn(c_int, c_int) -> c_int> = Next::new(c"mallopt");

/// From this size on a request is a mapping of its own (M_MMAP_THRESHOLD as it is unless it was set).
const MAPPED_FROM: usize = 128 << 10;

/// Our blocks: bytes that would be in the arena, and how many mappings there would be, with how many bytes.
fn ours() -> (usize, usize, usize) {
    let (mut arena, mut mappings, mut mapped) = (0, 0, 0);
    block::each_live(|len| match len < MAPPED_FROM {
        true => arena += len,
        false => (mappings, mapped) = (mappings + 1, mapped + len),
    });
    (arena, mappings, mapped)
}

/// The next definition's answer; all zeroes where there is none.
fn next<T: Copy>(function: &Next<unsafe extern "C" fn() -> T>) -> T {
    match found(function) {
        // SAFETY: takes nothing, and gives numbers.
        Some(function) => unsafe { function() },
        // SAFETY: of zeroes: both structures are numbers.
        None => unsafe { core::mem::zeroed() },
    }
}

/// `mallinfo2(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mallinfo2() -> libc::mallinfo2 {
    let mut info = next(&MALLINFO2);
    let (arena, mappings, mapped) = ours();
    info.arena += arena;
    info.uordblks += arena;
    info.hblks += mappings;
    info.hblkhd += mapped;
    info
}

/// `mallinfo(3)`: the same in numbers that are too small for it.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mallinfo() -> libc::mallinfo {
    let mut info = next(&MALLINFO);
    let (arena, mappings, mapped) = ours();
    let add = |number: &mut i32, more: usize| *number = number.wrapping_add(more as i32);
    add(&mut info.arena, arena);
    add(&mut info.uordblks, arena);
    add(&mut info.hblks, mappings);
    add(&mut info.hblkhd, mapped);
    info
}

/// glibc's own name of [`mallinfo`].
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __libc_mallinfo() -> libc::mallinfo {
    // SAFETY: the same contract.
    unsafe { mallinfo() }
}

/// The next definition, looked up when it is first wanted.
fn found<F: Copy>(function: &Next<F>) -> Option<F> {
    if function.get().is_none() {
        function.resolve();
    }
    function.get()
}

/// `malloc_trim(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_trim(pad: usize) -> c_int {
    let ours = block::empty_cache();
    // SAFETY: takes a number.
    let theirs = found(&TRIM).map_or(0, |trim| unsafe { trim(pad) });
    (theirs != 0 || ours).into()
}

/// `mallopt(3)`. What is to be filled with a certain byte is glibc's to give out.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mallopt(option: c_int, value: c_int) -> c_int {
    if option == libc::M_PERTURB && value != 0 {
        malloc::place_no_more();
    }
    // SAFETY: takes numbers.
    found(&OPTION).map_or(0, |next| unsafe { next(option, value) })
}
