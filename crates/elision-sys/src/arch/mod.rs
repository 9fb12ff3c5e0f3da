//! Processors: entering the kernel, starting the helper, a stopped thread's registers.
//!
//! Every processor has the same items. Where one is missing, no helper starts (ENOSYS), and nothing is deferred.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub use aarch64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
