//! Elision.
