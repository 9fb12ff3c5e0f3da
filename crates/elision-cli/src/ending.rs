//! How this process ends.

/// How this process is to end.
pub enum Ending {
    /// By exiting with this status.
    Code(u8),
    /// By this signal.
    Signal(i32),
}
