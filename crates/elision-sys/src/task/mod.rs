//! Processes and threads.

mod futex;
mod identity;
mod peek;
mod process;
mod signals;
mod trace;

pub use crate::arch::{Registers, on_valgrind};
pub use crate::time::*;
pub use futex::*;
pub use identity::*;
pub use peek::*;
pub use process::*;
pub use signals::*;
pub use trace::*;
