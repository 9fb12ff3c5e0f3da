//! Libraries that are loaded past the wrapped names: into a namespace of their own (dlmopen), or so that they look for names
//! among their own dependencies first (RTLD_DEEPBIND). What they write is not seen here.
#![allow(unsafe_code)] // Naked functions: libc's look at the return address, to see whose search path counts.

use core::ffi::{c_int, c_long, c_void};

use crate::abi::arch::forward;
use crate::abi::interpose::{Function, onward};
use crate::abi::next::Next;
use crate::state::stop::stop;

static DLOPEN: Next<Function> = Next::new(c"dlopen");
static DLMOPEN: Next<Function> = Next::new(c"dlmopen");

/// Finds both, unless a call has already.
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
