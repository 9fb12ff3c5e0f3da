//! The sidecar: a small process that shares this program's memory, and nothing else of it.
//!
//! It owns everything that must outlive a stopped program and stay out of the program's sight: leases, the
//! association map, the page map, the write tracker. The program's threads send it requests (see
//! [`channel`]) and wait; it answers them one at a time, and answers lease breaks in between, so nothing
//! in the system needs a lock, and a signal handler, a cancelled thread or an exec can leave none behind.
//!
//! Rules for code that runs in the sidecar: raw system calls only, no allocation, no panics, no thread-local
//! storage (there is none: see [`launch`]), no libc.
//!
//! | file | what |
//! | --- | --- |
//! | `announced` | mappings that carry their own lease, of which the sidecar has yet to hear |
//! | `channel` | requests and answers between program and sidecar |
//! | `files` | the table of files, and which of them are under write leases |
//! | `forgotten` | ranges that are gone, which need no answer |
//! | `launch` | starting it, and sending it away |
//! | `fault` | a mistake of ours in it |
//! | `fork` | what happens to it at a fork |
//! | `report` | where statistics go, and who writes them |
//! | `supervise` | its parent, which starts another when it is killed |
//! | `serve` | its loop |
//! | `state` | what it knows: files, guards, extents |
//! | `guard` | leases: acquire, check, release |
//! | `broken` | which leases may be being broken |
//! | `carried` | what such a mapping needs of the sidecar |
//! | `associate` | a deferred read, on this side |
//! | `plan` | an elided write, on this side |
//! | `relocate` | moving a buffer, deferred pages and all |
//! | `materialise` | giving pages memory of their own before a file changes |
//! | `spare` | a few mappings in reserve for that |
//! | `processes` | what /proc says of the program's threads |
//! | `pause` | holding the program's threads still for the last step of that |
//! | `waits` | the timeouts of calls that a pause has interrupted |

/// A sidecar's name in a process list, and its parent's.
const NAME: &core::ffi::CStr = c"elision";
const SUPERVISORS_NAME: &core::ffi::CStr = c"elision-watch";

pub(crate) mod announced;
pub(crate) mod associate;
pub(crate) mod broken;
pub(crate) mod carried;
pub(crate) mod channel;
pub(crate) mod fault;
pub(crate) mod files;
pub(crate) mod forgotten;
pub(crate) mod fork;
pub(crate) mod guard;
pub(crate) mod launch;
pub(crate) mod materialise;
pub(crate) mod pause;
pub(crate) mod plan;
mod processes;
pub(crate) mod relocate;
pub(crate) mod report;
pub(crate) mod serve;
pub(crate) mod spare;
pub(crate) mod state;
mod supervise;
mod waits;
