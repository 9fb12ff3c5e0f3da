//! What was deferred, loaded, elided, materialised, written, and declined, and why.

/// Why a transfer was done the traditional way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Reason {
    /// Not a regular file.
    NotRegular,
}
