//! What is known of the program: its descriptors, its memory, and whether anything is deferred at all.

pub mod descriptions;
pub mod heap;
pub mod in_flight;
pub mod memory;
pub mod process;
pub mod ranges;
pub mod stop;
