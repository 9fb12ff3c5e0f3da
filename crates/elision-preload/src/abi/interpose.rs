//! The shape of a wrapper: a condition, then the drop-in's code or libc's function.
//!
//! `interpose!` defines an exported function, and a module of its name whose `real(…)` calls libc's.
//!
//! Until the constructor has run, `real` makes the bare system call, or looks libc's function up. Later it calls that function, a
//! cancellation point, which unwinds the wrapper's frame: hence "C-unwind", and nothing in a frame to drop.
//!
//! (Without cancellation points, the memory family uses [`crate::abi::next`].)
#![allow(unsafe_code)] // Function pointers are kept as words.

use core::ffi::{CStr, c_void};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

use crate::abi::objects;

pub(crate) fn lookup(slot: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let found = objects::next(name).unwrap_or(null_mut());
    if !found.is_null() {
        slot.store(found, Ordering::Relaxed);
    }
    found
}

/// As [`lookup`], then in `libraries`; these may be unloaded, so nothing of theirs is stored.
pub(crate) fn lookup_in(slot: &AtomicPtr<c_void>, name: &CStr, libraries: &[&CStr]) -> *mut c_void {
    match lookup(slot, name) {
        found if !found.is_null() => found,
        _ => libraries.iter().find_map(|library| objects::find_in(library, name)).unwrap_or(null_mut()),
    }
}

/// ```text
/// fn name(arguments) -> result, until SOURCE; if CONDITION => OURS;
/// ```
///
/// Without CONDITION, OURS always runs. SOURCE is used until the constructor has run:
///
/// | SOURCE | |
/// | --- | --- |
/// | `kernel(NUMBER)`, `kernel(NUMBER, arguments…)` | a system call |
/// | `lookup(FAILED)` | the function, looked up on first use; else FAILED with ENOSYS |
/// | `lookup(FAILED, libraries)` | the same, also in these |
/// | `early(FAILED)` | as `lookup`, but by the constructor, for signal handlers and forked children |
macro_rules! interpose {
    ($(
        $(#[$meta:meta])*
        fn $name:ident($($arg:ident: $type:ty),* $(,)?) -> $ret:ty,
            until $source:ident($($from:tt)*);
            $(if $condition:expr)? => $ours:expr;
    )*) => {
        $(
            #[allow(missing_docs, non_snake_case)] // Some of libc's names have capitals.
            pub(crate) mod $name {
                #[allow(unused_imports)]
                use super::*;
                use core::sync::atomic::{AtomicPtr, Ordering};

                static POINTER: AtomicPtr<core::ffi::c_void> =
                    AtomicPtr::new(until as *const () as *mut core::ffi::c_void);

                #[allow(unused_variables)] // Some are for libc alone.
                unsafe extern "C-unwind" fn until($($arg: $type),*) -> $ret {
                    interpose!(@$source $name ($($arg: $type),*) -> $ret; $($from)*)
                }

                /// libc's function.
                ///
                /// # Safety
                /// The program's contract with libc.
                #[inline(always)]
                pub(crate) unsafe fn real($($arg: $type),*) -> $ret {
                    // SAFETY: `until`, or a definition of this name: of this type.
                    unsafe { through(POINTER.load(Ordering::Relaxed), $($arg),*) }
                }

                #[inline(always)]
                #[allow(clippy::too_many_arguments)] // The name's, and one.
                unsafe fn through(pointer: *mut core::ffi::c_void, $($arg: $type),*) -> $ret {
                    // SAFETY: as above.
                    let function = unsafe {
                        core::mem::transmute::<
                            *mut core::ffi::c_void,
                            unsafe extern "C-unwind" fn($($type),*) -> $ret,
                        >(pointer)
                    };
                    // SAFETY: the program's arguments.
                    unsafe { function($($arg),*) }
                }

                /// For signal handlers, which must not look names up.
                pub(super) fn resolve() {
                    interpose!(@resolve $source POINTER, $name);
                }
            }

            $(#[$meta])*
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[allow(non_snake_case)]
            #[allow(clippy::missing_safety_doc)] // The program's contract with libc.
            pub unsafe extern "C-unwind" fn $name($($arg: $type),*) -> $ret {
                if interpose!(@condition $($condition)?) {
                    $ours
                } else {
                    // SAFETY: the program's call.
                    unsafe { $name::real($($arg),*) }
                }
            }
        )*

        pub(crate) fn resolve() {
            $($name::resolve();)*
        }
    };

    (@condition) => { true };
    (@condition $condition:expr) => { $condition };
    (@kernel $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty; $number:expr) => {
        interpose!(@kernel $name ($($arg: $type),*) -> $ret; $number, $($arg),*)
    };
    (@kernel $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty; $number:expr, $($given:expr),*) => {{
        // SAFETY: the program's arguments.
        $crate::abi::raw::answer(unsafe { $crate::abi::raw::raw_call($number, &[$($given as usize),*]) }) as $ret
    }};
    (@lookup $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty; $failed:expr) => {
        interpose!(@lookup $name ($($arg: $type),*) -> $ret; $failed, &[])
    };
    (@lookup $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty; $failed:expr, $libraries:expr) => {{
        const NAME: &core::ffi::CStr = $crate::abi::interpose::c_name(concat!(stringify!($name), "\0"));
        let found = $crate::abi::interpose::lookup_in(&POINTER, NAME, $libraries);
        if found.is_null() {
            $crate::abi::raw::set_errno(libc::ENOSYS);
            return $failed;
        }
        // SAFETY: as above.
        unsafe { through(found, $($arg),*) }
    }};
    (@early $name:ident ($($arg:ident: $type:ty),*) -> $ret:ty; $failed:expr) => {
        interpose!(@lookup $name ($($arg: $type),*) -> $ret; $failed)
    };
    (@resolve early $pointer:ident, $name:ident) => {
        interpose!(@resolve kernel $pointer, $name)
    };
    (@resolve kernel $pointer:ident, $name:ident) => {
        const NAME: &core::ffi::CStr = $crate::abi::interpose::c_name(concat!(stringify!($name), "\0"));
        $crate::abi::interpose::lookup(&$pointer, NAME);
    };
    (@resolve lookup $pointer:ident, $name:ident) => {
        let _ = &$pointer;
    };
}
pub(crate) use interpose;

pub(crate) const fn c_name(name: &str) -> &CStr {
    match CStr::from_bytes_with_nul(name.as_bytes()) {
        Ok(name) => name,
        Err(_) => panic!("a name without its terminator"),
    }
}

pub(crate) type Function = unsafe extern "C" fn();

pub(crate) fn onward(next: &crate::abi::next::Next<Function>) -> *const c_void {
    if next.address().is_null() {
        next.resolve();
    }
    next.address()
}
