//! The helper process: shares the program's memory, and nothing else.
//!
//! It owns what must outlive a stopped program, out of the program's sight: leases, the association map, the page map, the write
//! tracker. It answers one request ([`crate::shared::requests`]) at a time, and lease breaks in between, so nothing needs a lock.
//!
//! Code here: raw system calls only; no allocation, panics, thread-local storage, or libc.

pub(crate) mod associate;
pub(crate) mod before_write;
pub(crate) mod begin;
pub(crate) mod closing;
pub(crate) mod files;
pub(crate) mod guard;
pub(crate) mod in_place;
pub(crate) mod learn;
pub(crate) mod map;
pub(crate) mod mappings;
pub(crate) mod materialise;
pub(crate) mod page_tables;
pub(crate) mod plan;
pub(crate) mod query;
pub(crate) mod ranges;
pub(crate) mod relocate;
pub(crate) mod requests;
pub(crate) mod reserve;
pub(crate) mod serve;
pub(crate) mod state;
pub(crate) mod stop_world;
pub(crate) mod takeover;
pub(crate) mod validate;
pub(crate) mod waits;
pub(crate) mod wrote;
