//! The kernel, typed.
//!
//! No function has policy or state, allocates, or uses libc's functions, `errno` or thread-local storage, which the helper lacks.
//!
//! Internal and unstable. Descriptors and addresses are plain numbers: misuse breaks the promises of the `elision` crate.
#![allow(missing_docs)] // Internal.

#[cfg(target_os = "linux")]
pub mod arch;
#[cfg(target_os = "linux")]
pub mod calls;
#[cfg(target_os = "linux")]
pub mod file;
#[cfg(target_os = "linux")]
pub mod hand_over;
#[cfg(target_os = "linux")]
pub mod limits;
#[cfg(target_os = "linux")]
pub mod maps;
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

/// Elision runs on no other page size.
pub const PAGE: usize = 4096;
