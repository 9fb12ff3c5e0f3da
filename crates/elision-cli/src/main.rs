//! The `elision` command.
fn main() {}
