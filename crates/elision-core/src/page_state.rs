//! The page states that a buffer reports.

/// The state of a run of bytes.
///
/// ```
/// use elision_core::page_state::PageState; // in the crate `elision`: `elision::PageState`
///
/// let costs_memory = |state| matches!(state, PageState::Plain | PageState::Tracked | PageState::Altered);
/// assert!(!costs_memory(PageState::Loaded)); // the page cache has it anyway
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageState {
    /// Associated with no file.
    Plain,
    /// Stands for file bytes that are not loaded.
    Deferred,
    /// Stands for file bytes, loaded into the page cache.
    Loaded,
    /// Memory of its own, equal to the file when last transferred; stores are noticed.
    Tracked,
    /// Altered since it was read or written.
    Altered,
}
