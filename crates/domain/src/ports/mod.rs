//! What the services need from the outside world. Small traits, cut by consistency need; each contract is in its doc comment
//! and proven by a conformance suite in `carillon-adapters` that runs on every adapter.
//!
//! Errors are [`crate::Error`]: `Unavailable` when the store can't be reached or didn't answer in time (the outcome of a write
//! is then unknown), `Internal` when it answered something impossible.

mod accounts;
mod archive;
mod blobs;
mod bus;
mod ephemeral;
mod health;
mod limiter;
mod membership;
mod notifications;
mod people;
mod people_index;
mod person_keys;
mod presence;
mod room_log;
mod rooms;
mod security;
mod sessions;

pub use accounts::AccountStore;
pub use archive::{Archive, BackupStore, Bounds};
pub use blobs::{BlobStore, MediaIndex};
pub use bus::{Bus, BusItem, Subscriptions};
pub use ephemeral::Ephemeral;
pub use health::Probe;
pub use limiter::RateLimiter;
pub use membership::{Replica, ReplicaRegistry};
pub use notifications::{JobHandler, JobOutcome, PushQueue, PushTargetStore};
pub use people::PeopleStore;
pub use people_index::{MIN_PREFIX_CHARS, PeopleIndex};
pub use person_keys::{ErasurePart, KeyState, PersonKey, PersonKeys};
pub use presence::PresenceStore;
pub use room_log::{Epoch, Fence, Floor, OpenRoom, RoomLog};
pub use rooms::{Reached, ReadMark, Receipt, Restricted, RoomStore};
pub use security::SecurityLog;
pub use sessions::{Rotation, SessionStore};
