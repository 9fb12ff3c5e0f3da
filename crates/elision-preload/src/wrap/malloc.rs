//! The heap's exported names: large requests become blocks, everything else is the next malloc's.
//!
//! # Finding the next malloc
//!
//! The first call comes from the dynamic loader, long before the constructor. It cannot simply go to glibc's own
//! `__libc_malloc`: with another allocator behind us, what is allocated now would later be freed by that one. So each name is looked
//! up when it is first called, which allocates nothing. From then on it costs one load and an indirect call.
//!
//! # When blocks are placed
//!
//! Only if the whole family is ours and glibc's is next. A program that brings its own `malloc` may leave, say,
//! `posix_memalign` to libc's default, that is to us, and free the result itself; another allocator behind us
//! has doors of its own (`sdallocx`, `mi_free`) by which a block of ours could reach it. With a limit on address space or data
//! (RLIMIT_AS, RLIMIT_DATA) reservations and kept blocks would count against the program.
#![allow(unsafe_code)] // Implements and calls malloc, whose contract is the program's to keep.

use super::malloc_info;
use crate::abi::next::Next;
use crate::abi::objects;
use crate::abi::raw::{raw_call, set_errno};
use crate::state::heap::{self, block, least};
use crate::state::memory;
use crate::state::stop;
use core::ffi::{CStr, c_int, c_void};
use core::ptr;
use elision_core::client;
use elision_sys::PAGE;
use elision_sys::limits;

type Malloc = unsafe extern "C" fn(usize) -> *mut c_void;
type Two = unsafe extern "C" fn(usize, usize) -> *mut c_void;
type Realloc = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
type Free = unsafe extern "C" fn(*mut c_void);

static MALLOC: Next<Malloc> = Next::new(c"malloc");
static CALLOC: Next<Two> = Next::new(c"calloc");
static REALLOC: Next<Realloc> = Next::new(c"realloc");
static MEMALIGN: Next<Two> = Next::new(c"memalign");
static FREE: Next<Free> = Next::new(c"free");

static LIBC_FREE: Next<Free> = Next::new(c"__libc_free");
static LIBC_REALLOC: Next<Realloc> = Next::new(c"__libc_realloc");

static ALIGNED_ALLOC: Next<Two> = Next::new(c"aligned_alloc");
static POSIX_MEMALIGN: Next<unsafe extern "C" fn(*mut *mut c_void, usize, usize) -> c_int> =
    Next::new(c"posix_memalign");
static USABLE_SIZE: Next<unsafe extern "C" fn(*mut c_void) -> usize> = Next::new(c"malloc_usable_size");
static REALLOCARRAY: Next<unsafe extern "C" fn(*mut c_void, usize, usize) -> *mut c_void> =
    Next::new(c"reallocarray");
static VALLOC: Next<Malloc> = Next::new(c"valloc");
static PVALLOC: Next<Malloc> = Next::new(c"pvalloc");

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
}

/// Calls the next definition; `$absent` where there is none.
macro_rules! next_call {
    ($next:ident($($argument:expr),*), $absent:expr) => {
        match $next.get_or_find() {
            // SAFETY: the arguments are those that the program gave to this very name, or a size, or a
            // pointer that the next malloc gave out.
            Some(function) => unsafe { function($($argument),*) },
            None => $absent,
        }
    };
}

/// No block is smaller, whatever the threshold says: below a page there is nothing to associate.
const SMALLEST: usize = PAGE;

/// What malloc aligns to.
const ALIGNMENT: usize = 16;

/// From the constructor: the search order is complete by now, so it can be asked who owns the heap.
pub(crate) fn init() {
    MALLOC.resolve();
    if memory::active() && heap_is_ours() && !limits::memory_is_limited() {
        heap::place(true);
        heap::place(calls_arrive());
        malloc_info::begin();
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
        && ptr::eq(MALLOC.address(), __libc_malloc as *const c_void)
}

/// Does a call of malloc by its name come here? (An executable's entry does not tell whom it leads to.)
fn calls_arrive() -> bool {
    let (Some(malloc), Some(free)) = (objects::first(c"malloc"), objects::first(c"free")) else {
        return false;
    };
    // SAFETY: whoever has the name has malloc's type; what it gives is given back to its own free.
    unsafe {
        let malloc: unsafe extern "C" fn(usize) -> *mut c_void = core::mem::transmute(malloc.address);
        let free: unsafe extern "C" fn(*mut c_void) = core::mem::transmute(free.address);
        let memory = malloc(client::life::min_bytes());
        let ours = block::in_window(memory.addr());
        free(memory);
        ours
    }
}

/// A block for the request, if it is large enough and blocks are placed: the payload, and whether it is zero.
#[cold]
fn place(size: usize, align: usize) -> Option<(*mut c_void, bool)> {
    if size < least() {
        return None;
    }
    let (payload, fresh) = block::allocate(size, align)?;
    Some((ptr::with_exposed_provenance_mut(payload), fresh))
}

fn next_malloc(size: usize) -> *mut c_void {
    next_call!(MALLOC(size), ptr::null_mut())
}

fn allocate(size: usize) -> *mut c_void {
    if size >= SMALLEST
        && let Some((payload, _)) = place(size, ALIGNMENT)
    {
        return payload;
    }
    next_malloc(size)
}

/// As glibc does, with the message glibc has: going on would corrupt somebody's memory.
#[cold]
fn invalid(function: &[u8]) -> ! {
    for part in [function, b"(): invalid pointer\n"] {
        // SAFETY: writes bytes of ours to standard error.
        let _ = unsafe { raw_call(libc::SYS_write, &[2, part.as_ptr() as usize, part.len()]) };
    }
    // SAFETY: ends the process.
    unsafe { libc::abort() }
}

/// What lies in the window and is not the drop-in's is another's: once a program has mapped some terabytes, the kernel puts its
/// mappings here, and with them large blocks of the next malloc's.
fn is_anothers(payload: *mut c_void) -> bool {
    !block::holds(payload.addr())
}

/// Frees what lies in the window.
#[cold]
fn release_placed(payload: *mut c_void) {
    let addr = payload.expose_provenance();
    // A filter may kill for a call that glibc's heap would not make.
    let least = (!stop::filtered()).then(least);
    if block::free(addr, least) {
        return;
    }
    if is_anothers(payload) {
        return next_call!(FREE(payload), ());
    }
    invalid(b"free")
}

fn release(payload: *mut c_void) {
    if block::in_window(payload.addr()) {
        release_placed(payload);
    } else {
        next_call!(FREE(payload), ());
    }
}

/// Bytes usable at an address in the window; `None` if it is not ours.
fn usable_placed(payload: *mut c_void) -> Option<usize> {
    block::usable(payload.expose_provenance())
}

fn next_usable(payload: *mut c_void) -> usize {
    next_call!(USABLE_SIZE(payload), 0)
}

/// `realloc`.
///
/// # Safety
/// The program's promise to realloc: `payload` is null or one that this heap gave out.
unsafe fn resize(payload: *mut c_void, size: usize) -> *mut c_void {
    if payload.is_null() {
        return allocate(size);
    }
    if block::in_window(payload.addr()) {
        // SAFETY: the caller's promise.
        return unsafe { resize_placed(payload, size) };
    }
    // A block that outgrows the threshold becomes one of ours, by one copy of what little it had.
    if size >= SMALLEST && size >= least() {
        let had = next_usable(payload);
        if had != 0
            && had < client::life::min_bytes().max(SMALLEST)
            && let Some((new, _)) = place(size, ALIGNMENT)
        {
            // SAFETY: both are live allocations of at least this many bytes, by usable size and by request.
            unsafe { ptr::copy_nonoverlapping(payload.cast::<u8>(), new.cast(), had.min(size)) };
            next_call!(FREE(payload), ());
            return new;
        }
    }
    next_call!(REALLOC(payload, size), ptr::null_mut())
}

/// # Safety
/// As for [`resize`].
#[cold]
unsafe fn resize_placed(payload: *mut c_void, size: usize) -> *mut c_void {
    let Some(had) = usable_placed(payload) else {
        if is_anothers(payload) {
            return next_call!(REALLOC(payload, size), ptr::null_mut());
        }
        invalid(b"realloc")
    };
    if size == 0 {
        release_placed(payload);
        return ptr::null_mut();
    }
    // A block that shrinks far below the threshold goes back to the next malloc; not at the threshold itself, or a size
    // that moves to and fro across it would be copied every time. (And not merely because no more are placed, but for a filter.)
    let (threshold, keeps) = match least() {
        usize::MAX => (SMALLEST, false),
        least => (least, true),
    };
    let small = size < threshold / 2;
    if !small
        && !stop::filtered()
        && size <= isize::MAX as usize
        && let Some(kept) = block::resize(payload.expose_provenance(), size, keeps)
    {
        return ptr::with_exposed_provenance_mut(kept);
    }
    let new = if small { next_malloc(size) } else { allocate(size) };
    if !new.is_null() {
        // SAFETY: `had` bytes are usable at the old place, `size` at the new, and the two are distinct.
        unsafe { ptr::copy_nonoverlapping(payload.cast::<u8>(), new.cast(), had.min(size)) };
        release_placed(payload);
    }
    new
}

fn place_aligned(align: usize, size: usize) -> Option<*mut c_void> {
    if size < SMALLEST || !align.is_power_of_two() {
        return None;
    }
    place(size, align.max(ALIGNMENT)).map(|(payload, _)| payload)
}

/// `malloc(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc(size: usize) -> *mut c_void {
    allocate(size)
}

/// `calloc(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    if let Some(bytes) = count.checked_mul(size)
        && bytes >= SMALLEST
        && let Some((payload, fresh)) = place(bytes, ALIGNMENT)
    {
        if !fresh && let Some(usable) = block::usable(payload.addr()) {
            // All of it, as glibc does: some programs use what malloc_usable_size says they have.
            // SAFETY: a live block that nobody else knows of yet, of that many bytes.
            unsafe { ptr::write_bytes(payload.cast::<u8>(), 0, usable) };
        }
        return payload;
    }
    next_call!(CALLOC(count, size), ptr::null_mut())
}

/// `realloc(3)`.
///
/// # Safety
/// `payload` is null or was given out by this family and not freed since.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn realloc(payload: *mut c_void, size: usize) -> *mut c_void {
    // SAFETY: the program's promise.
    unsafe { resize(payload, size) }
}

/// `reallocarray(3)`.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn reallocarray(payload: *mut c_void, count: usize, size: usize) -> *mut c_void {
    if !heap::placing() && REALLOCARRAY.get_or_find().is_some() {
        // libc's calls whatever realloc comes first, which may not be ours.
        return next_call!(REALLOCARRAY(payload, count, size), ptr::null_mut());
    }
    match count.checked_mul(size) {
        // SAFETY: the program's promise.
        Some(bytes) => unsafe { resize(payload, bytes) },
        None => {
            set_errno(libc::ENOMEM);
            ptr::null_mut()
        }
    }
}

/// `free(3)`. Leaves `errno` alone.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn free(payload: *mut c_void) {
    release(payload);
}

/// The old name of [`free`], which old programs are still bound to.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn cfree(payload: *mut c_void) {
    release(payload);
}

/// glibc's own name of [`free`].
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __libc_free(payload: *mut c_void) {
    if block::in_window(payload.addr()) && !is_anothers(payload) {
        return release_placed(payload);
    }
    next_call!(LIBC_FREE(payload), ())
}

/// glibc's own name of [`realloc`].
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __libc_realloc(payload: *mut c_void, size: usize) -> *mut c_void {
    if block::in_window(payload.addr()) && !is_anothers(payload) {
        // SAFETY: the program's promise.
        return unsafe { resize_placed(payload, size) };
    }
    next_call!(LIBC_REALLOC(payload, size), ptr::null_mut())
}

/// C23's `free_sized`.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn free_sized(payload: *mut c_void, _size: usize) {
    release(payload);
}

/// C23's `free_aligned_sized`.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn free_aligned_sized(payload: *mut c_void, _align: usize, _size: usize) {
    release(payload);
}

/// `memalign(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    place_aligned(align, size).unwrap_or_else(|| next_call!(MEMALIGN(align, size), ptr::null_mut()))
}

/// `aligned_alloc(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    let through =
        || next_call!(ALIGNED_ALLOC(align, size), next_call!(MEMALIGN(align, size), ptr::null_mut()));
    place_aligned(align, size).unwrap_or_else(through)
}

/// `posix_memalign(3)`.
///
/// # Safety
/// `out` is where the program wants the pointer.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if align.is_multiple_of(size_of::<*mut c_void>())
        && let Some(payload) = place_aligned(align, size)
    {
        // SAFETY: the program's promise.
        unsafe { *out = payload };
        return 0;
    }
    next_call!(POSIX_MEMALIGN(out, align, size), libc::ENOMEM)
}

/// `valloc(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn valloc(size: usize) -> *mut c_void {
    let through = || next_call!(VALLOC(size), next_call!(MEMALIGN(PAGE, size), ptr::null_mut()));
    place_aligned(PAGE, size).unwrap_or_else(through)
}

/// `pvalloc(3)`.
///
/// # Safety
/// None beyond C's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn pvalloc(size: usize) -> *mut c_void {
    if let Some(payload) = crate::abi::kernel::whole_pages(size).and_then(|size| place_aligned(PAGE, size)) {
        return payload;
    }
    next_call!(PVALLOC(size), ptr::null_mut())
}

/// `malloc_usable_size(3)`.
///
/// # Safety
/// As for [`realloc`].
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn malloc_usable_size(payload: *mut c_void) -> usize {
    if block::in_window(payload.addr())
        && let Some(usable) = usable_placed(payload)
    {
        return usable;
    }
    next_usable(payload)
}
