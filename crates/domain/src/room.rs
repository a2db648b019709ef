//! Rooms and their members.

use serde::{Deserialize, Serialize};

use crate::{RoomId, Sequence, Timestamp, UserId};

/// What kind of room it is; decides who may do what (see [`crate::policy`]).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomKind {
    /// Listed; anybody may join and read.
    Public,
    /// Not listed; by invitation.
    Private,
    /// Exactly two people, one room per unordered pair.
    Direct,
    /// A private room that every member may invite to.
    Group,
    /// Listed; only owners, admins and moderators write.
    Channel,
}

impl RoomKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 5] = [
        Self::Public,
        Self::Private,
        Self::Direct,
        Self::Group,
        Self::Channel,
    ];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Direct => "direct",
            Self::Group => "group",
            Self::Channel => "channel",
        }
    }

    /// The reverse of [`RoomKind::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether the room is in the public list and may be joined without an invitation.
    pub fn is_listed(self) -> bool {
        matches!(self, Self::Public | Self::Channel)
    }
}

/// A member's role in a room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// May read and, depending on the room, write.
    Member,
    /// May also delete others' messages.
    Moderator,
    /// May also manage members.
    Admin,
    /// May also delete the room.
    Owner,
}

impl Role {
    /// Every role, lowest first.
    pub const ALL: [Self; 4] = [Self::Member, Self::Moderator, Self::Admin, Self::Owner];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Moderator => "moderator",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The reverse of [`Role::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == text)
    }
}

/// What is fixed or rarely changes about a room.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Room {
    /// Stable id.
    pub id: RoomId,
    /// Kind.
    pub kind: RoomKind,
    /// Name; empty for direct rooms.
    pub name: String,
    /// Description; may be empty.
    pub description: String,
    /// Who made it.
    pub created_by: UserId,
    /// When.
    pub created_at: Timestamp,
    /// The two people of a direct room, ascending; `None` for other kinds. Stores must keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pair: Option<[UserId; 2]>,
    /// Set once the room was deleted: it can't be read or written any more.
    pub deleted_at: Option<Timestamp>,
}

/// A person's place in a room: a projection of the room's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub user: UserId,
    /// As what.
    pub role: Role,
    /// The event that made this so.
    pub since: Sequence,
    /// When they joined.
    pub joined_at: Timestamp,
}
