//! The engine of Elision. Internal to it: no stable interface, and no protection against a caller that says what is not so.
//!
//! | module | what, and in which process it runs |
//! | --- | --- |
//! | `transfer`, `extent`, `history`, `free_list`, `fs_traits`, `settings`, `executable` | decisions: no system calls, no shared memory |
//! | `stats`, `probe` | what happened, and what could |
//! | [`shared`] | what client and helper both see |
//! | [`client`] | runs in the program's threads |
//! | [`helper`] | runs in the helper process |
//! | [`supervisor`] | runs in the helper's parent |
#![allow(missing_docs)] // Internal.

#[cfg(target_os = "linux")]
pub mod client;
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
pub mod settings;
#[cfg(target_os = "linux")]
pub mod shared;
pub mod stats;
#[cfg(target_os = "linux")]
pub mod supervisor;
pub mod transfer;

#[cfg(target_os = "linux")]
pub use shared::verbose::{decline, unavailable};
