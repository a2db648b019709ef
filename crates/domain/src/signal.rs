//! What travels over the bus from services to gateways. A signal is a hint: losing one is repaired from the room's log.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    DeviceId, Error, Result, RoomId, Sequence, Timestamp, UserId, event::RoomEvent,
    partition::Partition, presence::PresenceState, privacy::Audience, security::SecurityEventKind,
};

/// A channel of the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Topic {
    /// Everything about the rooms of a partition.
    Rooms(Partition),
    /// Everything addressed to the users of a partition.
    Users(Partition),
}

impl Topic {
    /// The topic that carries a room.
    pub fn of_room(room: RoomId) -> Self {
        Self::Rooms(Partition::of_room(room))
    }

    /// The topic that carries what is addressed to a user.
    pub fn of_user(user: UserId) -> Self {
        Self::Users(Partition::of_user(user))
    }
}

/// What somebody is doing in a room right now (PRES-02).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Writing text.
    Typing,
    /// Recording audio.
    Recording,
}

/// A signal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signal {
    /// Committed events, ascending per room; they may be of several rooms of the topic's partition.
    Events {
        /// The events.
        events: Vec<RoomEvent>,
    },
    /// Somebody's activity began, or ended. Ends by itself after 3 s.
    Activity {
        /// Where.
        room: RoomId,
        /// Who.
        user: UserId,
        /// What.
        activity: Activity,
        /// Began or ended.
        active: bool,
    },
    /// Somebody's presence changed; sent to rooms they share with others.
    Presence {
        /// The room that it is told to.
        room: RoomId,
        /// Who.
        user: UserId,
        /// New state.
        state: PresenceState,
        /// When last connected.
        last_seen: Option<Timestamp>,
        /// To whom they show it.
        #[serde(default)]
        audience: Audience,
    },
    /// Somebody's presence changed; sent to people who have them as a contact (PRES-03).
    ContactPresence {
        /// Who is told: people of the topic's partition.
        to: Vec<UserId>,
        /// Who.
        user: UserId,
        /// New state.
        state: PresenceState,
        /// When last connected.
        last_seen: Option<Timestamp>,
        /// To whom they show it.
        #[serde(default)]
        audience: Audience,
    },
    /// Somebody has read up to a place (MSG-06).
    Read {
        /// Where.
        room: RoomId,
        /// Who.
        user: UserId,
        /// Up to and including.
        sequence: Sequence,
        /// When.
        time: Timestamp,
        /// To whom they show it.
        #[serde(default)]
        audience: Audience,
    },
    /// A room's messages got to one of somebody's devices (MSG-05).
    Delivered {
        /// Where.
        room: RoomId,
        /// Who.
        user: UserId,
        /// Up to and including.
        sequence: Sequence,
        /// When.
        time: Timestamp,
        /// To whom they show it.
        #[serde(default)]
        audience: Audience,
    },
    /// A user was asked to join a room.
    Invited {
        /// Who.
        user: UserId,
        /// Which room.
        room: RoomId,
        /// By whom.
        by: UserId,
    },
    /// A user is a member of a room from now on: their sockets follow it.
    RoomAdded {
        /// Who.
        user: UserId,
        /// Which room.
        room: RoomId,
        /// The peer, when it is a new direct room.
        direct_with: Option<UserId>,
    },
    /// A user is no longer a member: their sockets stop following it.
    RoomRemoved {
        /// Who.
        user: UserId,
        /// Which room.
        room: RoomId,
    },
    /// Tokens were revoked: close the sockets that use them (AUTH-07).
    SessionRevoked {
        /// Whose.
        user: UserId,
        /// One device, or all of them.
        device: Option<DeviceId>,
        /// The access token that is refused from now on.
        token_id: Option<Uuid>,
    },
    /// A block between a user and somebody, a contact of theirs, who has them as one, or their privacy is about to change, or has: the
    /// gateways that hold the user's sockets look what is shown to them, now and again after a moment.
    BlocksChanged {
        /// Who.
        user: UserId,
    },
    /// Something happened to an account that its owner should know of (AUTH-12). A hint: the event is in its log.
    Security {
        /// Whose account.
        user: UserId,
        /// The event's id.
        id: Uuid,
        /// What.
        kind: SecurityEventKind,
        /// The device that it is about.
        device: Option<DeviceId>,
        /// When.
        time: Timestamp,
    },
    /// A person chose a state for a device: the gateway that holds its socket renews its lease with it from now on.
    PresenceChosen {
        /// Who.
        user: UserId,
        /// Which device.
        device: DeviceId,
        /// `Online` or `Away`.
        state: PresenceState,
    },
}

impl Signal {
    /// The bytes on the bus.
    pub fn encode(&self) -> Result<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(Error::internal)
    }

    /// The reverse of [`Signal::encode`]. Unknown signals (of a newer version) are errors that receivers skip.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(Error::internal)
    }
}
