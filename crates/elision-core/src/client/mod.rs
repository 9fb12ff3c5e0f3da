//! What runs in the program's threads. No lock, no allocation, `errno` left alone on success: a signal handler, a cancelled thread or
//! an exec may come at any moment.
//!
//! | module | what |
//! | --- | --- |
//! | [`offer`] | what a caller offers, and what comes of it |
//! | [`read`], [`write`](mod@write) | a transfer, start to end |
//! | [`memory`] | memory that is about to be unmapped, moved or reshaped |
//! | [`changes`] | files that are about to change in another way |
//! | [`life`] | start, exec, fork, credentials and end of the program |
//! | `launch`, `leave`, [`fork`] | the helper's start and end, forks |
//! | [`call`] | a request to the helper |

pub mod call;
pub mod changes;
pub(crate) mod fault;
pub mod fork;
pub(crate) mod launch;
pub(crate) mod leave;
pub mod life;
pub mod memory;
pub mod offer;
pub mod read;
pub mod write;
