//! Calls from the program to the drop-in, and on to libc or the kernel.

pub mod arch;
pub mod interpose;
pub mod kernel;
pub mod next;
pub(crate) mod objects;
pub mod raw;
