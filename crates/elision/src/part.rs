use std::ops::RangeBounds;

/// The bytes of a range of any form (`..`, `2..`, `..=5`).
///
/// # Panics
/// As indexing.
pub(crate) fn part<'a>(bytes: &'a [u8], range: &impl RangeBounds<usize>) -> &'a [u8] {
    &bytes[(range.start_bound().cloned(), range.end_bound().cloned())]
}
