//! The types that clients see: JSON in snake_case, ids as UUID strings, times RFC 3339 in UTC with milliseconds.
//!
//! Every request type refuses unknown fields, so that a typing error is an answer and not a silence.

mod frame;
mod frames;
mod messages;
mod requests;
mod time;

pub use frame::Frame;
pub use frames::{
    Ack, ClientFrame, RequestId, connection_ack, direct_created, error_frame, event_frame, pong,
    reply, resync, room_invited, security_event, signal,
};
pub use messages::*;
pub use requests::*;
pub use time::Time;
