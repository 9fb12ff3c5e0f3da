//! The stacks of helper and supervisor, which share the program's memory.
#![allow(unsafe_code)] // Sets up memory for a process that shares it.

use crate::transfer::PAGE;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::*};
use elision_sys::raw::Result;
use elision_sys::{memory, task};

pub(crate) struct Stack {
    stack: AtomicUsize,
    pointer: AtomicUsize,
}

pub(crate) static HELPER: Stack = Stack::new();
pub(crate) static SUPERVISOR: Stack = Stack::new();

impl Stack {
    const STACK: usize = 256 << 10;
    /// One page at the thread pointer, and inaccessible memory below: a panic faults there before it takes a shared lock.
    const AREA: usize = 256 << 10;

    const fn new() -> Self {
        Stack { stack: AtomicUsize::new(0), pointer: AtomicUsize::new(0) }
    }

    /// `storage`: a panic needs thread-local storage to report itself.
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
    /// No other process may use this stack; `entry` keeps the rules of [`crate::helper`].
    pub(crate) unsafe fn start(&self, word: &AtomicU32, entry: extern "C" fn() -> !) -> Result<i32> {
        let (stack, pointer) = (self.stack.load(Acquire), self.pointer.load(Acquire));
        // SAFETY: the stack is this big, a page follows the pointer, and the caller owns both.
        unsafe { task::clone_helper(stack + Self::STACK, pointer, word, entry) }
    }
}
