//! The program's descriptors and memory, and whether anything is deferred.

pub mod descriptions;
pub mod heap;
pub mod in_flight;
pub mod memory;
pub mod process;
pub mod ranges;
pub mod runs;
pub mod stop;
