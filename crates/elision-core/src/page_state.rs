//! The states of pages that a buffer reports.

/// What a run of bytes of a buffer is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageState {
    /// Plain memory, associated with no file.
    Plain,
    /// Stands for file bytes that are not loaded.
    Deferred,
    /// Stands for file bytes, loaded into the page cache's memory.
    Loaded,
    /// In memory of its own, equal to the file when it was last read or written; the next store will be noticed. If
    /// others changed the file since, the next write notices that, and leaves nothing out.
    Tracked,
    /// Altered since it was read or written.
    Altered,
}
