//! How a call gets from the program to here, and from here to libc or to the kernel.

pub mod arch;
pub mod interpose;
pub mod kernel;
pub mod next;
pub(crate) mod objects;
pub mod raw;
