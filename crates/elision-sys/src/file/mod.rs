//! Files: descriptors, status, leases, and paths below /proc.

mod descriptor;
mod extents;
mod layers;
mod lease;
mod memory_file;
mod page_cache;
mod proc_path;
mod replace;
mod status;

pub use descriptor::*;
pub use extents::has_hole;
pub use layers::only_in_lower_layer;
pub use lease::*;
pub use memory_file::{begin_to_share, is_shared, memory_file};
pub(crate) use page_cache::SYS_cachestat;
pub use page_cache::{Cached, begin_to_read, cached, read_ahead, read_cached};
pub use proc_path::{ProcPath, decimal};
pub use replace::*;
pub use status::*;
