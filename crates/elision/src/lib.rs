//! Elision.

#[doc(hidden)]
pub mod dropin;
pub mod stats;
#[doc(hidden)]
pub mod sys;
