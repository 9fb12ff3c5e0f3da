//! libc's names, one family per file:
//!
//! | file | calls |
//! | --- | --- |
//! | [`io`], [`vector`] | read, write and their forms |
//! | [`stdio`] | what libc does for a FILE |
//! | [`open`] | open, dup, close |
//! | [`changes`] | other changes: ftruncate, sendfile… |
//! | [`resuming`] | calls that stopping the threads cuts short |
//! | [`position`] | lseek, fstat |
//! | [`memory`], [`malloc`], [`malloc_info`] | mmap, malloc |
//! | [`process`] | fork, spawn, exit, descriptors sent away |
//! | [`exec`], [`preload_env`] | exec and its LD_PRELOAD |
//! | [`credentials`] | setuid, capset, prctl |
//! | [`async_io`] | io_uring, asynchronous I/O |
//! | [`pinned`] | memory that the kernel keeps |
//! | [`limits`] | setrlimit |
//! | [`dlopen`] | dlopen past these names |
//! | [`notify`] | inotify, fanotify |
//! | [`mod@syscall`] | `syscall()`, by number |

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
