//! The kernel, behind narrow modules.

pub mod raw;
