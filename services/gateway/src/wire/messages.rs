//! Answers.

use carillon_domain::{
    DeviceId, MediaId, MessageId, RoomId, Sequence, UserId,
    account::{Session, Tokens, User},
    event::{Message, MessageType, Revision},
    media::Media,
    people::Related,
    ports::ReadMark,
    presence::{Presence, PresenceState},
    room::{Member, Role, Room, RoomKind},
    services::{RoomSummary, RoomView},
};
use serde::Serialize;

use super::Time;

/// A list, with the cursor of its next page.
#[derive(Serialize, Debug)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// All there is.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next: None }
    }
}

#[derive(Serialize, Debug)]
pub struct UserJson {
    pub id: UserId,
    pub username: String,
    pub display_name: String,
    pub created_at: Time,
}

impl From<User> for UserJson {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            username: user.username,
            display_name: user.display_name,
            created_at: user.created_at.into(),
        }
    }
}

#[derive(Serialize, Debug)]
pub struct MeJson {
    #[serde(flatten)]
    pub user: UserJson,
    pub email: Option<String>,
}

#[derive(Serialize)]
pub struct TokensJson {
    pub access_token: String,
    pub refresh_token: String,
    pub token_type: &'static str,
    pub expires_in: u64,
    pub device_id: DeviceId,
    pub user: UserJson,
}

impl From<Tokens> for TokensJson {
    fn from(tokens: Tokens) -> Self {
        Self {
            access_token: tokens.access_token,
            refresh_token: tokens.refresh_token,
            token_type: "Bearer",
            expires_in: tokens.expires_in,
            device_id: tokens.device,
            user: tokens.user.into(),
        }
    }
}

#[derive(Serialize, Debug)]
pub struct SessionJson {
    pub id: DeviceId,
    pub current: bool,
    pub device_name: Option<String>,
    pub user_agent: Option<String>,
    pub ip: Option<String>,
    pub created_at: Time,
    pub last_seen_at: Time,
    pub expires_at: Time,
}

impl SessionJson {
    pub fn new(session: Session, current: DeviceId) -> Self {
        Self {
            id: session.device,
            current: session.device == current,
            device_name: session.client.device_name,
            user_agent: session.client.user_agent,
            ip: session.client.ip,
            created_at: session.created_at.into(),
            last_seen_at: session.last_seen_at.into(),
            expires_at: session.expires_at.into(),
        }
    }
}

#[derive(Serialize)]
pub struct TicketJson {
    pub ticket: String,
    pub expires_in: u64,
}

#[derive(Serialize, Debug)]
pub struct RoomJson {
    pub id: RoomId,
    #[serde(rename = "type")]
    pub kind: RoomKind,
    pub name: String,
    pub description: String,
    pub created_by: UserId,
    pub created_at: Time,
}

impl From<Room> for RoomJson {
    fn from(room: Room) -> Self {
        Self {
            id: room.id,
            kind: room.kind,
            name: room.name,
            description: room.description,
            created_by: room.created_by,
            created_at: room.created_at.into(),
        }
    }
}

/// A room as its caller sees it.
#[derive(Serialize, Debug)]
pub struct RoomViewJson {
    #[serde(flatten)]
    pub room: RoomJson,
    pub role: Option<Role>,
    pub head_sequence: Sequence,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_id: Option<UserId>,
}

impl RoomViewJson {
    pub fn new(view: RoomView, caller: UserId) -> Self {
        let peer = view
            .room
            .pair
            .and_then(|pair| pair.into_iter().find(|person| *person != caller));
        Self {
            room: view.room.into(),
            role: view.role,
            head_sequence: view.head,
            peer_id: peer,
        }
    }
}

/// A line of the conversation list.
#[derive(Serialize, Debug)]
pub struct RoomSummaryJson {
    #[serde(flatten)]
    pub room: RoomJson,
    pub peer_id: Option<UserId>,
    pub head_sequence: Sequence,
    pub last_message: Option<MessageJson>,
    pub read_sequence: Sequence,
    pub unread_count: u64,
}

impl From<RoomSummary> for RoomSummaryJson {
    fn from(summary: RoomSummary) -> Self {
        Self {
            room: summary.room.into(),
            peer_id: summary.peer,
            head_sequence: summary.head,
            last_message: summary.last_message.map(Into::into),
            read_sequence: summary.read.sequence,
            unread_count: summary.unread,
        }
    }
}

#[derive(Serialize, Debug)]
pub struct MemberJson {
    pub user_id: UserId,
    pub role: Role,
    pub since_sequence: Sequence,
    pub joined_at: Time,
}

impl From<Member> for MemberJson {
    fn from(member: Member) -> Self {
        Self {
            user_id: member.user,
            role: member.role,
            since_sequence: member.since,
            joined_at: member.joined_at.into(),
        }
    }
}

#[derive(Serialize, Debug)]
pub struct MessageJson {
    pub id: MessageId,
    pub room_id: RoomId,
    pub sequence: Sequence,
    pub messages_before: u64,
    pub sender_id: UserId,
    pub time: Time,
    #[serde(rename = "type")]
    pub message_type: MessageType,
    pub content: String,
    pub reply_to: Option<MessageId>,
    pub client_message_id: String,
    pub edited_at: Option<Time>,
    pub deleted_at: Option<Time>,
    pub revision: Sequence,
}

impl From<Message> for MessageJson {
    fn from(message: Message) -> Self {
        Self {
            id: message.id,
            room_id: message.room,
            sequence: message.sequence,
            messages_before: message.messages_before,
            sender_id: message.sender,
            time: message.time.into(),
            message_type: message.message_type,
            content: message.content,
            reply_to: message.reply_to,
            client_message_id: message.client_message_id.0,
            edited_at: message.edited_at.map(Into::into),
            deleted_at: message.deleted_at.map(Into::into),
            revision: message.revision,
        }
    }
}

#[derive(Serialize, Debug)]
pub struct RevisionJson {
    pub sequence: Sequence,
    pub time: Time,
    pub content: String,
}

impl From<Revision> for RevisionJson {
    fn from(revision: Revision) -> Self {
        Self {
            sequence: revision.sequence,
            time: revision.time.into(),
            content: revision.content,
        }
    }
}

/// Where something happened in a room.
#[derive(Serialize, Debug)]
pub struct PlaceJson {
    pub room_id: RoomId,
    pub sequence: Sequence,
}

#[derive(Serialize, Debug)]
pub struct ReadJson {
    pub room_id: RoomId,
    pub sequence: Sequence,
    pub time: Time,
}

impl ReadJson {
    pub fn new(room: RoomId, mark: ReadMark) -> Self {
        Self {
            room_id: room,
            sequence: mark.sequence,
            time: mark.time.into(),
        }
    }
}

/// What a send, edit or delete came to.
#[derive(Serialize, Debug)]
pub struct MessageAck {
    pub sequence: Sequence,
    pub message: MessageJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicate: Option<bool>,
}

/// A page of a room's events, each in the shape of its socket frame.
#[derive(Serialize)]
pub struct EventPageJson {
    pub items: Vec<Box<serde_json::value::RawValue>>,
    pub next: Option<String>,
    pub head_sequence: Sequence,
    pub first_available: Sequence,
}

#[derive(Serialize, Debug)]
pub struct MediaJson {
    pub id: MediaId,
    pub room_id: RoomId,
    pub owner_id: UserId,
    pub file_name: String,
    pub content_type: String,
    pub size: u64,
    pub sha256: String,
    pub created_at: Time,
    pub url: String,
}

impl From<Media> for MediaJson {
    fn from(media: Media) -> Self {
        Self {
            url: format!("/api/v1/media/{}", media.id),
            id: media.id,
            room_id: media.room,
            owner_id: media.owner,
            file_name: media.file_name,
            content_type: media.content_type,
            size: media.size,
            sha256: media.sha256,
            created_at: media.created_at.into(),
        }
    }
}

/// An entry of the caller's contacts or blocks.
#[derive(Serialize, Debug)]
pub struct RelatedJson {
    pub user_id: UserId,
    pub since: Time,
}

impl From<Related> for RelatedJson {
    fn from(related: Related) -> Self {
        Self {
            user_id: related.user,
            since: related.since.into(),
        }
    }
}

#[derive(Serialize, Debug)]
pub struct PresenceJson {
    pub user_id: UserId,
    pub state: PresenceState,
    pub last_seen: Option<Time>,
}

impl From<Presence> for PresenceJson {
    fn from(presence: Presence) -> Self {
        Self {
            user_id: presence.user,
            state: presence.state,
            last_seen: presence.last_seen.map(Into::into),
        }
    }
}
