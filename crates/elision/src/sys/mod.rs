//! The kernel, behind narrow modules: one for system calls as such, one each for files, memory, tasks and
//! page tables. Everything is errno results and plain values; policy lives elsewhere.
//!
//! The drop-in uses a few of them. Only such are `pub` as only look, or are `unsafe`: whoever could close, move or write to a descriptor by
//! its number, or take a lease away, could change what a [`Buffer`](crate::Buffer) shows.

pub mod file;
pub(crate) mod memory;
pub mod pages;
pub mod raw;
pub mod task;
