//! The wires that servers under load speak. Carillon's own is in [`crate::frames`], whose functions look at a frame's first byte and ask
//! the module of its wire: so scenarios are the same for all.
//!
//! Nothing here knows what a scenario measures.

pub mod nats;
pub mod socketio;

use crate::frames::Stamp;

/// What a server speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// Carillon's public API: REST and WebSocket.
    Carillon,
    /// The frames of Carillon's WebSocket alone; a socket says which room it follows.
    Bare,
    /// Carillon's REST calls, and its frames' payloads as socket.io events.
    SocketIo,
    /// The client protocol of NATS with JetStream; no REST.
    Nats,
}

/// A message to send.
pub struct Outgoing<'a> {
    /// Where to.
    pub room_id: &'a str,
    /// The same for every try of this message.
    pub client_message_id: &'a str,
    /// What it says.
    pub content: &'a str,
    /// Number and due time, which the content holds too.
    pub stamp: Stamp,
}

// === impl Wire ===

impl Wire {
    /// Whether accounts and rooms are made with Carillon's REST calls.
    pub fn has_rest(self) -> bool {
        matches!(self, Self::Carillon | Self::SocketIo)
    }

    /// The text that sends a message.
    pub fn send_message(self, outgoing: &Outgoing<'_>) -> String {
        let Outgoing {
            room_id,
            client_message_id,
            content,
            stamp,
        } = outgoing;
        let number = stamp.number;
        match self {
            Self::Carillon | Self::Bare => format!(
                r#"{{"type":"send_message","id":"cb{number}","payload":{{"room_id":"{room_id}","client_message_id":"{client_message_id}","type":"text","content":"{content}"}}}}"#
            ),
            Self::SocketIo => socketio::send_message(outgoing),
            Self::Nats => nats::send_message(outgoing),
        }
    }

    /// The text that asks for a sign of life.
    pub fn ping(self) -> &'static str {
        match self {
            Self::Carillon | Self::Bare => crate::frames::PING,
            Self::SocketIo => socketio::PING,
            Self::Nats => nats::PING,
        }
    }
}
