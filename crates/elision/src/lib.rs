//! Elision.

#[doc(hidden)]
pub mod dropin;
pub mod probe;
pub mod stats;
#[doc(hidden)]
pub mod sys;
