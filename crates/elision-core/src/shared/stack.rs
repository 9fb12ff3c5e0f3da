//! What the helper and its parent stand on, who share the program's memory.
#![allow(unsafe_code)] // Sets up memory for a process that shares it.

use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use elision_sys::raw::Result;
use elision_sys::{memory, task};

/// A stack, and what is in the place of thread-local storage.
pub(crate) struct Stack {
    stack: AtomicUsize,
    /// The thread pointer.
    pointer: AtomicUsize,
}

/// The helper's.
pub(crate) static HELPER: Stack = Stack::new();
/// The supervisor's.
pub(crate) static SUPERVISOR: Stack = Stack::new();

impl Stack {
    const STACK: usize = 256 << 10;
    /// A page that the thread pointer points to, and below it, where thread-local storage would be, memory that cannot be touched: a panic
    /// ends there at its first step, before it takes a lock that the program would find left.
    const AREA: usize = 256 << 10;

    const fn new() -> Self {
        Stack { stack: AtomicUsize::new(0), pointer: AtomicUsize::new(0) }
    }

    /// Allocates it. `storage`: a panic is to say what it is about, and needs some thread-local storage.
    pub(crate) fn prepare(&self, storage: bool) -> bool {
        let (Ok(stack), Ok(area)) = (memory::allocate(Self::STACK, false), memory::reserve(Self::AREA))
        else {
            return false;
        };
        let pointer = area + Self::AREA - PAGE;
        let usable = if storage { area } else { pointer };
        self.stack.store(stack, Release);
        self.pointer.store(pointer, Release);
        // SAFETY: reserved just now.
        unsafe { memory::protect(usable, area + Self::AREA - usable, libc::PROT_READ | libc::PROT_WRITE) }
            .is_ok()
    }

    /// Starts a process that has its pid in `word` while it lives.
    ///
    /// # Safety
    /// No other process may be on this stack; `entry` keeps the rules of [`crate::helper`].
    pub(crate) unsafe fn start(&self, word: &AtomicU32, entry: extern "C" fn() -> !) -> Result<i32> {
        let (stack, pointer) = (self.stack.load(Acquire), self.pointer.load(Acquire));
        // SAFETY: the stack is this big, there is a page behind the pointer, and both are nobody else's by the caller's promise.
        unsafe { task::clone_helper(stack + Self::STACK, pointer, word, entry) }
    }
}
