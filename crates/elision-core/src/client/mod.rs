//! What runs in the program's threads. No lock, no allocation, `errno` left alone: a signal handler, a cancelled thread or an exec
//! may come at any moment.

pub mod dropin;
pub mod fork;
pub mod launch;
pub mod read;
pub mod report;
pub mod write;
