//! Backups: everything that must survive, out of one store and into another one of any kind.
//!
//! A backup is logical: it is read and written through the ports, so that what was saved from an embedded store can be restored into
//! ScyllaDB, and the other way round. [`save`] reads a running platform; [`Writer`] makes objects of what it reads; [`restore`] checks
//! all of a backup and puts it into an empty store; [`list`], [`verify`] and [`prune`] keep a place of backups. The layout is in
//! [`Manifest`], the promises are in `docs/backup.md`.
//!
//! What belongs to one person is sealed with their key, and the keys lie beside it: whoever is erased is taken out of older backups by
//! [`forget`]. Against strangers that is no protection: a backup is as secret as the store. It doesn't save what ends by itself: sessions,
//! leases, codes, waiting pushes.

mod keys;
mod manifest;
mod read;
mod record;
mod repository;
mod restore;
#[cfg(test)]
mod tests;
mod write;

pub use keys::forget;
pub use manifest::{Chunk, Counts, FORMAT, KeyObject, Manifest, MediaBytes};
pub use read::{Source, save};
pub use record::{Record, SealedKind, SealedMedia, Section};
pub use repository::{Entry, Keep, find, list, prune, verify};
pub use restore::{Target, restore};
pub use write::{Options, Sink, Writer};
