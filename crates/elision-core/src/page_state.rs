//! What a buffer tells of its pages.

/// What a run of bytes of a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageState {
    /// Memory like any other; no file is known to have it.
    Plain,
    /// Stands for file bytes, and nobody has touched it.
    Deferred,
    /// Stands for file bytes, loaded into the page cache's memory.
    Loaded,
    /// Equal to its file bytes when it was last read or written, in memory of its own; the next store will be noticed. If
    /// the file has been changed by others since, the next write notices that, too, and leaves nothing out.
    Tracked,
    /// Altered since it was read or written.
    Altered,
}
