//! What runs in the program's threads. No lock, no allocation, `errno` untouched on success: a signal handler, a cancellation or
//! an exec may come at any moment.

pub mod call;
pub mod changes;
pub mod clone;
pub mod engine;
pub(crate) mod equal;
pub(crate) mod fault;
pub mod fork;
pub(crate) mod launch;
pub(crate) mod leave;
pub mod life;
mod meeting;
pub mod memory;
pub mod offer;
pub mod read;
pub mod truncate;
pub mod write;
