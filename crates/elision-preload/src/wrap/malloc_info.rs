//! What the heap says of itself: glibc's account, and our blocks as glibc would have entered them. Large requests are mappings of
//! their own there, smaller ones part of the arena. And what it is told.
#![allow(unsafe_code)] // Exported names, whose contract is the program's.

use crate::abi::next::Next;
use crate::state::heap::threshold::THRESHOLD;
use crate::state::heap::{self, block};
use core::ffi::c_int;

static MALLINFO: Next<unsafe extern "C" fn() -> libc::mallinfo> = Next::new(c"mallinfo");
static MALLINFO2: Next<unsafe extern "C" fn() -> libc::mallinfo2> = Next::new(c"mallinfo2");

static TRIM: Next<unsafe extern "C" fn(usize) -> c_int> = Next::new(c"malloc_trim");
static OPTION: Next<unsafe extern "C" fn(c_int, c_int) -> c_int> = Next::new(c"mallopt");

/// Our blocks: bytes that would be in the arena, and how many mappings there would be, with how many bytes.
fn ours() -> (usize, usize, usize) {
    let (mut arena, mut mappings, mut mapped) = (0, 0, 0);
    block::each_len(|len, apart| match apart {
        true => (mappings, mapped) = (mappings + 1, mapped + len),
        false => arena += len,
    });
    (arena, mappings, mapped)
}

/// The next definition's answer; all zeroes where there is none.
fn next<T: Copy>(function: &Next<unsafe extern "C" fn() -> T>) -> T {
    match function.get_or_find() {
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

/// `malloc_trim(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_trim(pad: usize) -> c_int {
    let ours = block::give_back();
    // SAFETY: takes a number.
    let theirs = TRIM.get_or_find().map_or(0, |trim| unsafe { trim(pad) });
    (theirs != 0 || ours).into()
}

/// `mallopt(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mallopt(option: c_int, value: c_int) -> c_int {
    // SAFETY: takes numbers.
    let done = OPTION.get_or_find().map_or(0, |next| unsafe { next(option, value) });
    if done != 0 {
        set(option, usize::try_from(value).ok());
    }
    done
}

/// An option was set that concerns large blocks. (`None`: to more than there can be, or to what is not known.)
fn set(option: c_int, value: Option<usize>) {
    match option {
        // What is to be filled with a certain byte is glibc's to give out. And with mappings ruled out its heap keeps everything.
        libc::M_PERTURB if value != Some(0) => heap::place_no_more(),
        libc::M_MMAP_MAX if value == Some(0) => heap::place_no_more(),
        libc::M_MMAP_THRESHOLD => THRESHOLD.set(value.unwrap_or(usize::MAX)),
        libc::M_TRIM_THRESHOLD => THRESHOLD.set_keeps(value.unwrap_or(usize::MAX)),
        libc::M_MMAP_MAX | libc::M_TOP_PAD => THRESHOLD.fix(),
        _ => (),
    }
}

/// What the environment sets; see mallopt(3), and the tunables in glibc's manual.
const SETTINGS: [(c_int, &str, &str); 5] = [
    (libc::M_PERTURB, "MALLOC_PERTURB_", "glibc.malloc.perturb"),
    (libc::M_MMAP_MAX, "MALLOC_MMAP_MAX_", "glibc.malloc.mmap_max"),
    (libc::M_MMAP_THRESHOLD, "MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),
    (libc::M_TRIM_THRESHOLD, "MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold"),
    (libc::M_TOP_PAD, "MALLOC_TOP_PAD_", "glibc.malloc.top_pad"),
];

/// Begins as the environment says.
pub(super) fn begin() {
    THRESHOLD.begin();
    let tunables = std::env::var_os("GLIBC_TUNABLES");
    let tunables = tunables.as_ref().map(|text| text.to_string_lossy());
    for (option, variable, tunable) in SETTINGS {
        let variable = std::env::var_os(variable);
        let tuned = tunables.iter().flat_map(|text| text.split(':')).filter_map(|one| one.split_once('='));
        let tuned = tuned.filter(|(name, _)| *name == tunable).map(|(_, value)| value);
        let values = variable.iter().map(|value| value.to_string_lossy());
        for value in values.chain(tuned.map(Into::into)) {
            set(option, number(&value));
        }
    }
}

/// As strtoul reads it.
fn number(text: &str) -> Option<usize> {
    let text = text.trim_start();
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return usize::from_str_radix(digits, 16).ok();
    }
    let octal = text.len() > 1 && text.starts_with('0');
    usize::from_str_radix(text, if octal { 8 } else { 10 }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let cases =
            [("65536", Some(65536)), (" 0x10", Some(16)), ("010", Some(8)), ("0", Some(0)), ("", None)];
        assert!(cases.iter().all(|(text, value)| number(text) == *value));
        assert_eq!((number("-1"), number("1M")), (None, None));
    }
}
