//! The next definition of a libc name: what a call passes through to.
//!
//! Each name has a [`Next`], filled in by the constructor; until then a wrapper makes the raw system call. The heap's names
//! are needed earlier, and are looked up on first use.
#![allow(unsafe_code)] // Turning the address of a definition into a function can only be asserted.

use core::ffi::{CStr, c_void};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The next definition of one name, of function pointer type `F`.
pub struct Next<F> {
    symbol: &'static CStr,
    address: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// Not known yet.
    pub const fn new(symbol: &'static CStr) -> Self {
        Next { symbol, address: AtomicPtr::new(core::ptr::null_mut()), function: PhantomData }
    }

    /// Looks the name up.
    pub fn resolve(&self) {
        if let Some(found) = crate::abi::objects::next(self.symbol) {
            self.address.store(found, Ordering::Release);
        }
    }

    /// [`resolve`](Self::resolve), then [`get`](Self::get).
    #[cold]
    fn found(&self) -> Option<F> {
        self.resolve();
        self.get()
    }

    /// As [`get`](Self::get), with the name looked up if need be.
    #[inline(always)]
    pub fn get_or_find(&self) -> Option<F> {
        self.get().or_else(|| self.found())
    }

    /// What [`resolve`](Self::resolve) found.
    #[inline(always)]
    pub fn get(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            return None;
        }
        // SAFETY: a definition of `symbol`, which is of type `F` by the declaration of the static; of the same size.
        Some(unsafe { core::mem::transmute_copy::<*mut c_void, F>(&address) })
    }

    /// The bare address, null while unknown.
    pub fn address(&self) -> *mut c_void {
        self.address.load(Ordering::Acquire)
    }
}

/// Declares the next definitions of a family of names, and `resolve()`, which looks all of them up:
///
/// ```ignore
/// next! {
///     MUNMAP = c"munmap": fn(*mut c_void, usize) -> c_int;
/// }
/// ```
macro_rules! next {
    ($($(#[$meta:meta])* $name:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        $($(#[$meta])*
        static $name: $crate::abi::next::Next<unsafe extern "C" fn($($argument),*) $(-> $result)?> =
            $crate::abi::next::Next::new($symbol);)*

        /// Looks every name of the family up.
        pub fn resolve() {
            $($name.resolve();)*
        }
    };
}
pub(crate) use next;

/// Where a call is passed on to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The next definition of its name.
    Next,
    /// The kernel: the call came through `syscall`, perhaps from that very definition, as tcmalloc's mmap does. Led back
    /// there, it would never end.
    Kernel,
}

/// Passes a call through: to the next definition if that is wanted and known, else to the kernel. To be used in an `unsafe`
/// block of a wrapper that hands on its own arguments, which keeps the caller's promise to libc.
macro_rules! pass {
    ($to:expr, $next:expr, $number:expr, ($($argument:expr),*)) => {
        match $next.get().filter(|_| $to == $crate::abi::next::To::Next) {
            Some(function) => function($($argument),*),
            None => $crate::abi::raw::answer($crate::abi::raw::raw_call($number, &[$($argument as usize),*])) as _,
        }
    };
}
pub(crate) use pass;
