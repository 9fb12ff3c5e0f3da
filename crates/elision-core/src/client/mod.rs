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
//! | [`launch`], [`fork`], [`report`] | the helper's start and end, forks, statistics |

pub mod changes;
pub mod fork;
pub mod launch;
pub mod life;
pub mod memory;
pub mod offer;
pub mod read;
pub mod report;
pub mod write;
