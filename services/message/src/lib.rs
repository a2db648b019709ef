//! The message role: rooms, members, and the sequencer that gives every change of a room its place (promises 1 to 5).
//!
//! A room belongs to a partition, and a partition to one replica at a time. Its owner runs one [`partition`] task that takes
//! whatever waits, decides about it in order ([`decide`], pure), appends the resulting events in one write, and answers only
//! after the log said that they can't be lost. Reads are answered by the owner too, up to the last event it knows committed.
//!
//! This crate doesn't know how events are stored, sent to gateways or pushed: those are ports. It does not route calls to other
//! replicas either: for a room of somebody else it answers `NotOwner`.

mod decide;
mod erase;
mod mentions;
mod notify;
mod partition;
mod purge;
mod reads;
mod roster;
mod service;
mod state;
#[cfg(test)]
mod tests;

pub use roster::{Ownership, Roster, SoleOwner};
pub use service::{MessageOptions, MessagePorts, MessageRole};
