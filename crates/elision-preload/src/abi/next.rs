//! The next definition of a libc name.
//!
//! The constructor resolves each [`Next`]; wrappers make raw system calls until then, or (the heap's) resolve it on first use.
#![allow(unsafe_code)] // An address becomes a function by assertion.

use core::ffi::{CStr, c_void};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicPtr, Ordering};

/// `F` is the type of a pointer to the function.
pub struct Next<F> {
    symbol: &'static CStr,
    address: AtomicPtr<c_void>,
    function: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    pub const fn new(symbol: &'static CStr) -> Self {
        Next { symbol, address: AtomicPtr::new(core::ptr::null_mut()), function: PhantomData }
    }

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

    #[inline(always)]
    pub fn get_or_find(&self) -> Option<F> {
        self.get().or_else(|| self.found())
    }

    #[inline(always)]
    pub fn get(&self) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        let address = self.address.load(Ordering::Acquire);
        if address.is_null() {
            return None;
        }
        // SAFETY: a definition of `symbol`, declared as `F`; sizes agree.
        Some(unsafe { core::mem::transmute_copy::<*mut c_void, F>(&address) })
    }

    pub fn address(&self) -> *mut c_void {
        self.address.load(Ordering::Acquire)
    }
}

/// Declares a family's next definitions, and `resolve()`:
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

        pub fn resolve() {
            $($name.resolve();)*
        }
    };
}
pub(crate) use next;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum To {
    Next,
    /// The kernel: the call came through `syscall`, perhaps from that definition (tcmalloc's mmap), which would recurse.
    Kernel,
}

/// Passes a wrapper's own arguments, in an `unsafe` block, to the next definition if wanted and known, else to the kernel.
macro_rules! pass {
    ($to:expr, $next:expr, $number:expr, ($($argument:expr),*)) => {
        match $next.get().filter(|_| $to == $crate::abi::next::To::Next) {
            Some(function) => function($($argument),*),
            None => $crate::abi::raw::answer($crate::abi::raw::raw_call($number, &[$($argument as usize),*])) as _,
        }
    };
}
pub(crate) use pass;
