//! dlmopen and RTLD_DEEPBIND load libraries past the wrapped names: deferral ends.
#![allow(unsafe_code)] // Naked functions: libc takes the search path from the return address.

use core::ffi::{c_int, c_long, c_void};

use crate::abi::arch::forward;
use crate::abi::interpose::{Function, onward};
use crate::abi::next::Next;
use crate::state::stop::stop;

static DLOPEN: Next<Function> = Next::new(c"dlopen");
static DLMOPEN: Next<Function> = Next::new(c"dlmopen");

pub(crate) fn resolve() {
    onward(&DLOPEN);
    onward(&DLMOPEN);
}

extern "C" fn before_dlopen(_path: usize, flags: c_int) -> *const c_void {
    if flags & libc::RTLD_DEEPBIND != 0 {
        stop("RTLD_DEEPBIND");
    }
    onward(&DLOPEN)
}

extern "C" fn before_dlmopen(namespace: c_long, _path: usize, flags: c_int) -> *const c_void {
    if namespace != libc::LM_ID_BASE || flags & libc::RTLD_DEEPBIND != 0 {
        stop("dlmopen");
    }
    onward(&DLMOPEN)
}

forward!(dlopen, before_dlopen);
forward!(dlmopen, before_dlmopen);
