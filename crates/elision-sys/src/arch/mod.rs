//! What is specific to a processor: entering the kernel, starting the helper, registers of a stopped thread.
//!
//! Every processor has the same items. Where an item is not implemented, the helper cannot be started (ENOSYS), and nothing is deferred.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
