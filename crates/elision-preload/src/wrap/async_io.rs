//! io_uring, the kernel's asynchronous I/O, and libc's use descriptors unseen: none is owned from then on. The kernel's also pin
//! pages during a transfer, which stopping the threads does not stop: deferral ends. A plugin alone may load their library, so it
//! is also looked for by its file name.
#![allow(unsafe_code)] // The program's pointers.

use core::ffi::CStr;

use libc::c_int;

use crate::abi::interpose::interpose;
use crate::state::descriptions;
use crate::state::stop::stopping;

const URING: &[&CStr] = &[c"liburing.so.2", c"liburing-ffi.so.2", c"liburing.so.1"];
const AIO: &[&CStr] = &[c"libaio.so.1", c"libaio.so.1t64"];
const ABSENT: c_int = -libc::ENOSYS;

macro_rules! stopping {
    ($name:ident($($arg:ident),*)) => {
        // SAFETY: the program's call.
        stopping("rings of requests to the kernel", || unsafe { $name::real($($arg),*) })
    };
}

/// Only descriptors are used unseen: libc's threads are stopped like any other.
macro_rules! shared {
    ($name:ident($($arg:ident),*)) => {{
        descriptions::share_for_good();
        // SAFETY: as above.
        unsafe { $name::real($($arg),*) }
    }};
}

// Arguments as the registers have them: another library's function of such a name gets its call unharmed.
interpose! {
    fn io_uring_setup(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int,
        until lookup(ABSENT, URING);
        if true => stopping!(io_uring_setup(a, b, c, d, e, f));

    fn io_uring_queue_init(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int,
        until lookup(ABSENT, URING);
        if true => stopping!(io_uring_queue_init(a, b, c, d, e, f));

    fn io_uring_queue_init_params(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int,
        until lookup(ABSENT, URING);
        if true => stopping!(io_uring_queue_init_params(a, b, c, d, e, f));

    fn io_uring_queue_init_mem(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int,
        until lookup(ABSENT, URING);
        if true => stopping!(io_uring_queue_init_mem(a, b, c, d, e, f));

    fn io_setup(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int, until lookup(ABSENT, AIO);
        if true => stopping!(io_setup(a, b, c, d, e, f));

    fn io_queue_init(a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_int, until lookup(ABSENT, AIO);
        if true => stopping!(io_queue_init(a, b, c, d, e, f));

    fn aio_write(request: usize) -> c_int, until lookup(-1);
        if true => shared!(aio_write(request));

    fn aio_write64(request: usize) -> c_int, until lookup(-1);
        if true => shared!(aio_write64(request));

    fn lio_listio(mode: c_int, requests: usize, count: c_int, event: usize) -> c_int, until lookup(-1);
        if true => shared!(lio_listio(mode, requests, count, event));

    fn lio_listio64(mode: c_int, requests: usize, count: c_int, event: usize) -> c_int, until lookup(-1);
        if true => shared!(lio_listio64(mode, requests, count, event));
}
