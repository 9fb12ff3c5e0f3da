//! What the crate shows where reads can be deferred.

mod buffer;
mod file;
mod replace;
mod segment;

pub use buffer::Buffer;
pub use elision_core::client::engine::{count_exactly, snapshot};
pub use file::File;
pub(crate) use replace::replace;
pub use segment::Segment;
