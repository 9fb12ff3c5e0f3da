//! The engine of Elision. Internal: no stable interface, no protection against false promises of a caller.
#![allow(missing_docs)] // Internal.

#[cfg(target_os = "linux")]
pub mod client;
#[cfg(target_os = "linux")]
pub mod cold;
pub mod executable;
#[cfg(target_os = "linux")]
pub mod extent;
#[cfg(target_os = "linux")]
pub mod free_list;
pub mod fs_traits;
#[cfg(target_os = "linux")]
pub mod helper;
#[cfg(target_os = "linux")]
pub mod history;
pub mod page_state;
#[cfg(target_os = "linux")]
pub mod probe;
#[cfg(target_os = "linux")]
pub(crate) mod quiet;
pub mod settings;
#[cfg(target_os = "linux")]
pub mod shared;
pub mod stats;
#[cfg(target_os = "linux")]
pub mod supervisor;
pub mod transfer;

#[cfg(target_os = "linux")]
pub use shared::verbose::{decline_read, decline_write, unavailable};
