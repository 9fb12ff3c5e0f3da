//! libc's names, one family per file:
//!
//! | file | calls |
//! | --- | --- |
//! | [`io`], [`vector`] | read, write, their positioned, vector and fortified forms |
//! | [`stdio`] | what libc reads, writes and closes on behalf of a FILE |
//! | [`open`] | open, dup, close and their kin |
//! | [`changes`] | what else changes a file: ftruncate, fallocate, copy_file_range… |
//! | [`resuming`] | calls that stopping the threads cuts short: sendfile, getrandom… |
//! | [`position`] | lseek and fstat, which tell where the next large block should start |
//! | [`memory`], [`malloc`], [`malloc_info`] | mmap, malloc and their kin |
//! | [`process`] | fork, spawn, exit, and descriptors sent away |
//! | [`exec`], [`preload_env`] | exec, and whether the next program gets this library, too |
//! | [`credentials`] | setuid, capset, prctl: what the helper must not keep |
//! | [`async_io`] | io_uring and asynchronous I/O |
//! | [`pinned`] | memory that the kernel keeps hold of after a call |
//! | [`limits`] | setrlimit |
//! | [`dlopen`] | dlopen, where it leads past these names |
//! | [`notify`] | inotify and fanotify, which would tell of the helper |
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
