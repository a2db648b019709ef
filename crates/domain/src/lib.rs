//! The heart of Carillon: ids, values, pure decisions, and the ports through which the outside world is reached.
//!
//! This crate knows nothing of runtimes, drivers, HTTP or gRPC: it compiles without tokio. It does no I/O, reads no clock
//! (a [`time::Clock`] is handed in) and holds no state.

pub mod account;
pub mod error;
pub mod event;
pub mod ids;
pub mod limit;
pub mod media;
pub mod names;
mod network;
pub mod partition;
pub mod people;
pub mod policy;
pub mod ports;
pub mod presence;
pub mod push;
pub mod room;
pub mod seal;
pub mod security;
pub mod services;
pub mod signal;
pub mod time;
pub mod validate;

pub use error::{Error, ErrorCode, FieldError, Result};
pub use ids::{ClientMessageId, DeviceId, MediaId, MessageId, ReplicaId, RoomId, Sequence, UserId};
pub use network::network_of;
pub use time::{Clock, Timestamp};
