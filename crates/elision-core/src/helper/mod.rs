//! The helper process: it shares the program's memory, and nothing else of it.
//!
//! The helper owns everything that must outlive a stopped program and stay out of the program's sight: leases, the association map, the
//! page map, the write tracker. The program's threads send it requests ([`crate::shared::channel`]) and wait. It answers one request at
//! a time, and lease breaks in between, so nothing needs a lock.
//!
//! Rules for code that runs here: raw system calls only, no allocation, no panics, no thread-local storage, no libc.

/// The helper's name in a process list, and its parent's.
const NAME: &core::ffi::CStr = c"elision";
pub(crate) const SUPERVISORS_NAME: &core::ffi::CStr = c"elision-watch";

pub mod associate;
pub mod fault;
pub mod files;
pub mod guard;
pub mod materialise;
pub mod plan;
pub mod processes;
pub mod relocate;
pub mod serve;
pub mod spare;
pub mod state;
pub mod stop_world;
pub mod waits;
