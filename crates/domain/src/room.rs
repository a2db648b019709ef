//! Rooms and their members.

use std::time::Duration;

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

/// What a room's owners may set for everybody in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RoomRules {
    /// For how long after sending a message its sender may edit or delete it (MSG-08); `None`: the platform's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edit_window_seconds: Option<u32>,
    /// Whether its sender may no longer do so once somebody else has read it (MSG-08).
    pub edit_unread_only: bool,
    /// How long events are kept (MSG-21); `None`: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_seconds: Option<u32>,
}

impl RoomRules {
    /// The longest edit window: a day.
    pub const MAX_EDIT_WINDOW: u32 = 24 * 3600;
    /// The shortest retention: five seconds.
    pub const MIN_RETENTION: u32 = 5;
    /// The longest retention: ten years.
    pub const MAX_RETENTION: u32 = 10 * 365 * 24 * 3600;

    /// How long events are kept.
    pub fn retention(&self) -> Option<Duration> {
        self.retention_seconds
            .map(|seconds| Duration::from_secs(seconds.into()))
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
    /// What its owners set.
    #[serde(default)]
    pub rules: RoomRules,
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

/// What a room's moderators decided about a person, member or not: a projection of the room's log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Restrictions {
    /// They were removed and may not come back.
    pub banned: bool,
    /// They may read but not write until then; [`Restrictions::FOR_GOOD`] if no end was set.
    pub muted_until: Option<Timestamp>,
    /// They were asked to join and haven't answered.
    pub invited: bool,
}

impl Restrictions {
    /// The end of a mute that has none: the last second that RFC 3339 can write.
    pub const FOR_GOOD: Timestamp = Timestamp(253_402_300_799_000);

    /// Whether they are muted at this time.
    pub fn is_muted(&self, now: Timestamp) -> bool {
        self.muted_until.is_some_and(|until| now < until)
    }
}

/// All that a room's log says about a person.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Their membership.
    pub member: Option<Member>,
    /// What binds them besides it.
    pub restrictions: Restrictions,
}
