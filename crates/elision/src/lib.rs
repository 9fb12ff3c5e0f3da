//! `read` and `write` that defer and elide their I/O: the mmap that needs no `unsafe`.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("records");
//! # std::fs::write(&path, vec![0u8; 4 << 20])?;
//! let mut records = elision::read(&path)?; // returns at once, whatever the size
//! records[3_000_000] = 1; //                  loads one page
//! elision::write(&path, &mut records)?; //    writes that page, and the first
//! # assert_eq!(std::fs::read(&path)?[3_000_000], 1);
//! # std::io::Result::Ok(())
//! ```
//!
//! [`read`] and [`write()`] stand in for `std::fs::read` and `std::fs::write`; [`write_atomic`] replaces a file in one step. [`read`] returns a [`Buffer`]: a
//! `[u8]` whose pages stand for file bytes until they are touched, or altered. [`Buffer`] says how, and
//! why that is safe where a memory map is not. ARCHITECTURE.md says how it is built, docs/LIMITS.md what it cannot do.
//!
//! # Platform
//! Linux on x86-64, from 6.7 on, for local files on ext4, XFS, btrfs or tmpfs that the process owns, and for files that can never
//! change (squashfs, erofs, ISO 9660, fs-verity, sealed memory files). Everywhere else,
//! and whenever in doubt, the same calls read and write traditionally. [`stats::snapshot`] says how often and why.
//!
//! # What is promised
//! This documentation follows semantic versioning. The crates beneath (`elision-core`, `elision-sys`) are internal.

mod part;
#[cfg_attr(all(target_os = "linux", not(elision_portable)), path = "linux/mod.rs")]
#[cfg_attr(not(all(target_os = "linux", not(elision_portable))), path = "portable.rs")]
mod platform;
mod slice;
mod threshold;
mod whole_file;

pub use elision_core::page_state::PageState;
#[cfg(target_os = "linux")]
pub use elision_core::probe;
pub use platform::{Buffer, File, Segment};
pub use threshold::set_min_bytes;
pub use whole_file::{Contents, edit, read, write, write_atomic, write_atomic_sync};

/// What was deferred, loaded, elided, written and declined, and why.
pub mod stats {
    pub use crate::platform::{count_exactly, snapshot};
    pub use elision_core::stats::{Reason, Stats};
}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadMe;
