//! What is specific to a processor: entering the kernel, starting the helper, registers of a stopped thread.
//!
//! Every processor has the same functions. One without an implementation refuses to start the helper (ENOSYS), and thereby declines everything.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
