//! What a backup is made of. Stored for years: fields are only ever added, with a default.

use carillon_domain::{
    MediaId, RoomId, Sequence, Timestamp, UserId,
    account::Account,
    event::RoomEvent,
    media::Media,
    people::Relation,
    ports::{Bounds, Floor, KeyState, Reached, ReadMark, Receipt},
    push::PushTarget,
    room::{Member, Restrictions, Room, Standing},
    settings::Settings,
};
use serde::{Deserialize, Serialize};

/// A part of a backup; a chunk has records of one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Section {
    /// Accounts.
    Accounts,
    /// What people said of each other and set, where pushes for them go, what they are invited to.
    People,
    /// What is known of uploads.
    Media,
    /// Rooms with their logs.
    Rooms,
    /// How far people have read.
    Marks,
    /// How far messages got to people.
    Receipts,
    /// Keys of people. Never in a chunk: see [`crate::Manifest`].
    Keys,
}

impl Section {
    /// Those that chunks have, in the order in which they are restored: a mark is raised after the events that it could be behind, and a receipt is compared
    /// with the mark.
    pub const ALL: [Self; 6] = [
        Self::Accounts,
        Self::People,
        Self::Media,
        Self::Rooms,
        Self::Marks,
        Self::Receipts,
    ];

    /// Its name in those of objects.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accounts => "accounts",
            Self::People => "people",
            Self::Media => "media",
            Self::Rooms => "rooms",
            Self::Marks => "marks",
            Self::Receipts => "receipts",
            Self::Keys => "keys",
        }
    }
}

/// A line of a chunk.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// An account.
    Account(Account),
    /// What somebody said of other people, oldest id first.
    Related {
        /// `contact` or `block`.
        relation: RelationName,
        /// Who said it.
        user: UserId,
        /// Of whom, and since when.
        others: Vec<(UserId, Timestamp)>,
    },
    /// What somebody set.
    Settings {
        /// Who.
        user: UserId,
        /// What.
        settings: Settings,
    },
    /// Where pushes for a device go.
    PushTarget(PushTarget),
    /// Rooms that somebody was asked to join.
    Invited {
        /// Who.
        user: UserId,
        /// Where.
        rooms: Vec<RoomId>,
    },
    /// An upload.
    Media {
        /// What is known of it.
        media: Media,
        /// Whether its bytes are in the backup.
        #[serde(default)]
        bytes: bool,
    },
    /// A room. Its standings and events follow.
    Room {
        /// The room.
        room: Room,
        /// The ends of its log.
        log: Log,
    },
    /// What is to be known of people besides the events that follow.
    Standings {
        /// Where.
        room: RoomId,
        /// Members and people who are banned or muted.
        people: Vec<StandingRecord>,
    },
    /// Events of a room, dense after those before.
    Events {
        /// Where.
        room: RoomId,
        /// The room's first event that is kept.
        first: Sequence,
        /// Messages before that one.
        messages: u64,
        /// The events.
        events: Vec<RoomEvent>,
    },
    /// How far somebody has read.
    Marks {
        /// Who.
        user: UserId,
        /// Where, up to which event, how many messages that are, and when it was marked.
        marks: Vec<(RoomId, Sequence, u64, Timestamp)>,
    },
    /// How far a room's messages got to its members.
    Receipts {
        /// Where.
        room: RoomId,
        /// To whom, and how far.
        receipts: Vec<ReceiptRecord>,
    },
    /// What belongs to one person, sealed with their key: unreadable once that is destroyed.
    Sealed {
        /// Whose.
        user: UserId,
        /// What.
        of: SealedKind,
        /// The sealed bytes of an upload, where they are in the backup.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        media: Option<SealedMedia>,
        /// The record, as JSON; base64.
        sealed: String,
    },
    /// The keys of those whom the records that follow are of. Not stored.
    KeysFor(Vec<(UserId, KeyState)>),
    /// Some of all keys. Stored beside the chunks.
    Keys(Vec<(UserId, KeyState)>),
}

/// What a [`Record::Sealed`] is, for counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealedKind {
    /// [`Record::Account`].
    Account,
    /// [`Record::Media`].
    Media,
    /// Another one.
    Other,
}

/// The bytes of an upload as they are in a backup.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SealedMedia {
    /// Which.
    pub id: MediaId,
    /// How many, sealed.
    pub bytes: u64,
    /// SHA-256 of them, hex.
    pub sha256: String,
}

impl Record {
    /// Whose it is, if all of it belongs to one person and may go with them.
    pub(crate) fn owner(&self) -> Option<UserId> {
        match self {
            Self::Account(account) => Some(account.user.id),
            Self::PushTarget(target) => Some(target.user),
            Self::Media { media, .. } => Some(media.owner),
            Self::Related { user, .. }
            | Self::Invited { user, .. }
            | Self::Settings { user, .. } => Some(*user),
            _ => None,
        }
    }
}

/// [`Relation`] as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelationName {
    /// [`Relation::Contact`].
    Contact,
    /// [`Relation::Block`].
    Block,
}

/// [`Bounds`] as they are stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Log {
    /// The first event that is kept.
    pub first: Sequence,
    /// Messages before it.
    pub messages_before: u64,
    /// The last event.
    pub head: Sequence,
    /// Messages up to it.
    pub messages: u64,
}

/// [`Standing`] as it is stored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct StandingRecord {
    /// Who.
    pub user: UserId,
    /// Their membership.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// What binds them besides it.
    #[serde(default)]
    pub restrictions: Restrictions,
}

/// [`Receipt`] as it is stored.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ReceiptRecord {
    /// Who.
    pub user: UserId,
    /// What one of their devices has, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<(Sequence, Timestamp)>,
    /// What they have read, and since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<(Sequence, Timestamp)>,
}

impl From<Relation> for RelationName {
    fn from(relation: Relation) -> Self {
        match relation {
            Relation::Contact => Self::Contact,
            Relation::Block => Self::Block,
        }
    }
}

impl From<RelationName> for Relation {
    fn from(name: RelationName) -> Self {
        match name {
            RelationName::Contact => Self::Contact,
            RelationName::Block => Self::Block,
        }
    }
}

impl From<Bounds> for Log {
    fn from(bounds: Bounds) -> Self {
        Self {
            first: bounds.floor.first,
            messages_before: bounds.floor.messages,
            head: bounds.head,
            messages: bounds.messages,
        }
    }
}

impl From<Log> for Bounds {
    fn from(log: Log) -> Self {
        Self {
            floor: Floor {
                first: log.first,
                messages: log.messages_before,
            },
            head: log.head,
            messages: log.messages,
        }
    }
}

impl From<StandingRecord> for (UserId, Standing) {
    fn from(record: StandingRecord) -> Self {
        let standing = Standing {
            member: record.member,
            restrictions: record.restrictions,
        };
        (record.user, standing)
    }
}

impl From<Receipt> for ReceiptRecord {
    fn from(receipt: Receipt) -> Self {
        let stored = |reached: Reached| (reached.sequence, reached.time);
        Self {
            user: receipt.user,
            delivered: receipt.delivered.map(stored),
            read: receipt.read.map(stored),
        }
    }
}

impl From<ReceiptRecord> for Receipt {
    fn from(record: ReceiptRecord) -> Self {
        let reached = |(sequence, time)| Reached { sequence, time };
        Self {
            user: record.user,
            delivered: record.delivered.map(reached),
            read: record.read.map(reached),
        }
    }
}

/// A read mark as [`Record::Marks`] stores it.
pub(crate) fn mark((room, mark): (RoomId, ReadMark)) -> (RoomId, Sequence, u64, Timestamp) {
    (room, mark.sequence, mark.messages, mark.time)
}

/// The reverse of [`mark`].
pub(crate) fn read_mark(
    (room, sequence, messages, time): (RoomId, Sequence, u64, Timestamp),
) -> (RoomId, ReadMark) {
    let mark = ReadMark {
        sequence,
        messages,
        time,
    };
    (room, mark)
}
