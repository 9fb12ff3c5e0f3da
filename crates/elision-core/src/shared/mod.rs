//! What the program's threads, the helper and the supervisor share.

pub(crate) mod control;
pub(crate) mod fault;
pub mod forks;
pub mod hot;
pub mod live;
pub mod pending;
pub(crate) mod processes;
pub mod report;
pub mod requests;
pub(crate) mod sharing;
pub(crate) mod stack;
pub mod unmap_queue;
pub mod verbose;
pub mod write_guarded;
