//! Files: descriptors, status, leases, and paths below /proc.

mod descriptor;
mod extents;
mod lease;
mod proc_path;
mod status;

pub use descriptor::*;
pub(crate) use extents::SYS_cachestat;
pub use extents::has_hole;
pub use lease::*;
pub use proc_path::{ProcPath, decimal};
pub use status::*;
