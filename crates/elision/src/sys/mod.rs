//! The kernel, behind narrow modules: one for system calls as such, one each for files, memory, tasks and
//! page tables. Everything is errno results and plain values; policy lives elsewhere.

pub mod file;
pub mod memory;
pub mod pages;
pub mod raw;
pub mod task;
