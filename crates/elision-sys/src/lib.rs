//! The kernel, typed: system calls as such, files and leases, mappings, page tables, processes.
//!
//! Every function gives a plain value or an errno. None keeps a policy or a state, allocates, or uses libc's functions, `errno` or
//! thread-local storage: most of them run in the helper process, which has none of these.
//!
//! Internal to Elision, with no stable interface. Descriptors and addresses are plain numbers here: whoever closes, moves or unmaps
//! what is not theirs breaks what the `elision` crate promises.
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

/// Bytes in a page. Elision runs where this is what the kernel uses.
pub const PAGE: usize = 4096;
