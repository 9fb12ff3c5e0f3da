//! The next definition of a libc name, to which a call passes through.
//!
//! The constructor fills each [`Next`] in; until then wrappers make raw system calls. The heap's names are looked up on first
//! use.
#![allow(unsafe_code)] // An address becomes a function by assertion alone.

use core::ffi::{CStr, c_void};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, Ordering};

/// The next definition of a name, a function pointer of type `F`.
pub struct Next<F> {
    symbol: &'static CStr,
    address: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// Unresolved.
    pub const fn new(symbol: &'static CStr) -> Self {
        Next { symbol, address: AtomicPtr::new(core::ptr::null_mut()), function: PhantomData }
    }

    /// Looks the name up.
    pub fn resolve(&self) {
        if let Some(found) = crate::abi::objects::next(self.symbol) {
            self.address.store(found, Ordering::Release);
        }
    }

    #[cold]
    fn found(&self) -> Option<F> {
        self.resolve();
        self.get()
    }

    /// As [`get`](Self::get), after a lookup if need be.
    #[inline(always)]
    pub fn get_or_find(&self) -> Option<F> {
        self.get().or_else(|| self.found())
    }

    /// The definition, if resolved.
    #[inline(always)]
    pub fn get(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            return None;
        }
        // SAFETY: a definition of `symbol`, whose type the static declares as `F`; the size is checked above.
        Some(unsafe { core::mem::transmute_copy::<*mut c_void, F>(&address) })
    }

    /// The address, or null.
    pub fn address(&self) -> *mut c_void {
        self.address.load(Ordering::Acquire)
    }
}

/// Declares the next definitions of a family, and `resolve()` for all of them:
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

        /// Looks the family's names up.
        pub fn resolve() {
            $($name.resolve();)*
        }
    };
}
pub(crate) use next;

/// Where a call passes on to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The next definition of its name.
    Next,
    /// The kernel: the call came through `syscall`, perhaps from that definition (tcmalloc's mmap), which would recurse for ever.
    Kernel,
}

/// Passes a call to the next definition if that is wanted and known, else to the kernel. For wrappers that pass on their own
/// arguments, in an `unsafe` block.
macro_rules! pass {
    ($to:expr, $next:expr, $number:expr, ($($argument:expr),*)) => {
        match $next.get().filter(|_| $to == $crate::abi::next::To::Next) {
            Some(function) => function($($argument),*),
            None => $crate::abi::raw::answer($crate::abi::raw::raw_call($number, &[$($argument as usize),*])) as _,
        }
    };
}
pub(crate) use pass;
