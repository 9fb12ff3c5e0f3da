//! What the heap says of itself, our blocks included, and what it is told.
#![allow(unsafe_code)] // The program's contract.

use crate::abi::next::Next;
use crate::state::heap::{self, block};
use core::ffi::c_int;
use std::ffi::CString;

/// What glibc would map counts as a mapping, the rest as the arena's.
macro_rules! account {
    ($($name:ident = $symbol:literal -> $info:ty;)*) => {
        $(#[doc = concat!("`", stringify!($name), "`.\n\n# Safety\nNone beyond C's.")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name() -> $info {
            static NEXT: Next<unsafe extern "C" fn() -> $info> = Next::new($symbol);
            // SAFETY: takes nothing, and gives numbers.
            let mut info = unsafe { NEXT.get_or_find().map_or(core::mem::zeroed(), |next| next()) };
            let add = |number: &mut _, more: usize| *number = more.wrapping_add(*number as usize) as _;
            for (len, separate) in block::live() {
                if separate {
                    add(&mut info.hblks, 1);
                    add(&mut info.hblkhd, len);
                } else {
                    add(&mut info.arena, len);
                    add(&mut info.uordblks, len);
                }
            }
            info
        })*
    };
}

account! {
    mallinfo = c"mallinfo" -> libc::mallinfo;
    __libc_mallinfo = c"mallinfo" -> libc::mallinfo;
    mallinfo2 = c"mallinfo2" -> libc::mallinfo2;
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_trim(pad: usize) -> c_int {
    static NEXT: Next<unsafe extern "C" fn(usize) -> c_int> = Next::new(c"malloc_trim");
    let ours = block::give_back();
    // SAFETY: takes a number.
    let theirs = NEXT.get_or_find().map_or(0, |trim| unsafe { trim(pad) });
    (theirs != 0 || ours).into()
}

#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn mallopt(option: c_int, value: c_int) -> c_int {
    static NEXT: Next<unsafe extern "C" fn(c_int, c_int) -> c_int> = Next::new(c"mallopt");
    // SAFETY: takes numbers.
    let done = NEXT.get_or_find().map_or(0, |next| unsafe { next(option, value) });
    if done != 0 {
        set(option, value as usize);
    }
    done
}

/// Each such setting fixes glibc's threshold: a freed block above it is unmapped, one below it is glibc's from now on.
fn set(option: c_int, value: usize) {
    match option {
        // glibc must fill memory itself, or maps nothing.
        libc::M_PERTURB if value != 0 => heap::place_no_more(),
        libc::M_MMAP_MAX if value == 0 => heap::place_no_more(),
        libc::M_MMAP_THRESHOLD if value > block::HIGHEST_THRESHOLD => {}
        libc::M_MMAP_THRESHOLD => {
            heap::place_none_below(value);
            block::keep_nothing();
        }
        libc::M_TRIM_THRESHOLD | libc::M_MMAP_MAX | libc::M_TOP_PAD => block::keep_nothing(),
        _ => (),
    }
}

/// `MALLOC_PERTURB_`, `glibc.malloc.perturb`: see mallopt(3).
const SETTINGS: [(c_int, &str); 5] = [
    (libc::M_PERTURB, "perturb"),
    (libc::M_MMAP_MAX, "mmap_max"),
    (libc::M_MMAP_THRESHOLD, "mmap_threshold"),
    (libc::M_TRIM_THRESHOLD, "trim_threshold"),
    (libc::M_TOP_PAD, "top_pad"),
];

pub(super) fn begin() {
    block::begin_keeping();
    let tunables = std::env::var("GLIBC_TUNABLES").unwrap_or_default();
    let tunables = || tunables.split(':').filter_map(|one| one.strip_prefix("glibc.malloc."));
    for (option, name) in SETTINGS {
        let variable = std::env::var(format!("MALLOC_{}_", name.to_uppercase()));
        let tuned = tunables().filter_map(|one| one.strip_prefix(name)?.strip_prefix('='));
        for value in variable.as_deref().into_iter().chain(tuned) {
            // SAFETY: a string, and no place for its end.
            let number = |text: CString| unsafe { libc::strtoul(text.as_ptr(), core::ptr::null_mut(), 0) };
            set(option, CString::new(value).map_or(0, number) as usize);
        }
    }
}
