//! What the crate shows where reads can be deferred.

mod buffer;
mod file;
mod segment;

pub use buffer::Buffer;
pub use file::File;
pub use segment::Segment;
