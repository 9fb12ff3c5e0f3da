//! The helper process: shares the program's memory, and nothing else.
//!
//! It owns, out of a stopped program's reach and sight, leases, association map, page map and write tracker. It answers requests
//! ([`crate::shared::requests`]) one at a time, lease breaks in between: no locks.
//!
//! Code here: raw system calls only; no allocation, panics, thread-local storage, libc.

pub(crate) mod altered;
pub(crate) mod associate;
pub(crate) mod before_write;
pub(crate) mod begin;
pub(crate) mod clone;
pub(crate) mod closing;
pub(crate) mod descriptions;
pub(crate) mod duplicate;
mod files;
pub(crate) mod guard;
pub(crate) mod in_place;
pub(crate) mod journal;
pub(crate) mod learn;
pub(crate) mod load;
pub(crate) mod map;
pub(crate) mod mappings;
pub(crate) mod materialise;
pub(crate) mod page_tables;
pub(crate) mod pending;
pub(crate) mod plan;
pub(crate) mod prefetch;
pub(crate) mod query;
pub(crate) mod ranges;
pub(crate) mod recognise;
pub(crate) mod relocate;
pub(crate) mod requests;
pub(crate) mod reserve;
pub(crate) mod residency;
mod room;
pub(crate) mod serve;
pub(crate) mod share;
pub(crate) mod state;
pub(crate) mod stop_world;
pub(crate) mod strips;
pub(crate) mod takeover;
pub(crate) mod truncate;
pub(crate) mod validate;
pub(crate) mod waits;
pub(crate) mod wrote;
