//! The kernel, typed: system calls, files and leases, mappings, page tables, processes.
//!
//! No function has policy or state, allocates, or uses libc's functions, `errno` or thread-local storage, which the helper lacks.
//!
//! Internal, without a stable interface. Descriptors and addresses are plain numbers: misuse breaks what the `elision` crate
//! promises.
#![allow(missing_docs)] // Internal.

#[cfg(target_os = "linux")]
pub mod arch;
#[cfg(target_os = "linux")]
pub mod calls;
#[cfg(target_os = "linux")]
pub mod file;
#[cfg(target_os = "linux")]
pub mod limits;
#[cfg(target_os = "linux")]
pub mod memory;
#[cfg(target_os = "linux")]
pub mod pages;
#[cfg(target_os = "linux")]
pub mod raw;
#[cfg(target_os = "linux")]
pub mod task;
#[cfg(all(target_os = "linux", feature = "testing"))]
pub mod testing;
#[cfg(target_os = "linux")]
pub mod time;

/// Bytes in a page; Elision runs on no other.
pub const PAGE: usize = 4096;
