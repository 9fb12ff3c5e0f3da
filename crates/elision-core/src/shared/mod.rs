//! What the client and the helper both see, in the memory that they share. Atomics, or handed over by atomics.

pub mod channel;
pub mod hot;
pub mod unmap_queue;
pub mod verbose;
