//! libc's names, one family per file. Less plainly named: [`changes`] has what else changes a file, [`resuming`] what stopping
//! the threads cuts short, [`position`] lseek and fstat, [`credentials`] prctl, [`pinned`] memory that the kernel keeps,
//! [`offer`] what [`io`] and [`vector`] share.

pub mod async_io;
pub mod changes;
pub mod credentials;
pub mod dlopen;
pub mod exec;
pub mod io;
pub mod limits;
pub mod malloc;
pub mod malloc_info;
pub mod memory;
pub mod notify;
pub mod offer;
pub mod open;
pub mod pinned;
pub mod position;
pub mod preload_env;
pub mod process;
pub mod resuming;
pub mod stdio;
pub mod syscall;
pub mod vector;
