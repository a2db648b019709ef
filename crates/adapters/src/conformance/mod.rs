//! One suite per port: plain functions over the port only, run on every adapter, the embedded one first.
//!
//! Each clause of a port's contract is a function of its own; `all` runs them. They use fresh random ids, so that they can run
//! on a shared server, and they panic with what was promised when it isn't kept.

pub mod accounts;
pub mod archive;
pub mod blobs;
pub mod bus;
pub mod ephemeral;
pub mod limiter;
pub mod media;
pub mod moderation;
pub mod people;
pub mod people_index;
pub mod person_keys;
pub mod presence;
pub mod push_queue;
pub mod push_targets;
pub mod registry;
pub mod room_log;
pub mod rooms;
pub mod security;
pub mod sessions;
