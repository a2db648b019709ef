//! Answers.

use carillon_domain::{
    DeviceId, MediaId, MessageId, RoomId, Sequence, UserId,
    account::{ClientInfo, DeviceType, SessionView, Tokens, User},
    event::{Mentions, Message, MessageType, Revision},
    media::Media,
    people::Related,
    ports::{Reached, ReadMark, Receipt, Restricted},
    presence::{Presence, PresenceState},
    privacy::{Audience, Privacy},
    room::{Member, Restrictions, Role, Room, RoomKind, RoomRules},
    security::{SecurityEvent, SecurityEventKind},
    services::{RoomSummary, RoomView},
    settings::{Notify, Settings, Theme},
};
use serde::Serialize;
use uuid::Uuid;

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
    pub bio: String,
    pub status: String,
    pub created_at: Time,
}

impl From<User> for UserJson {
    fn from(user: User) -> Self {
        Self {
            id: user.id,
            username: user.username,
            display_name: user.display_name,
            bio: user.about.bio,
            status: user.about.status,
            created_at: user.created_at.into(),
        }
    }
}

/// To whom the caller shows what.
#[derive(Serialize, Debug)]
pub struct PrivacyJson {
    pub last_seen: Audience,
    pub profile_photo: Audience,
    pub read_receipts: Audience,
}

impl From<Privacy> for PrivacyJson {
    fn from(privacy: Privacy) -> Self {
        Self {
            last_seen: privacy.last_seen,
            profile_photo: privacy.profile_photo,
            read_receipts: privacy.read_receipts,
        }
    }
}

/// What else the caller set.
#[derive(Serialize, Debug)]
pub struct SettingsJson {
    pub notifications: Notify,
    pub muted_until: Option<Time>,
    pub theme: Theme,
    pub language: Option<String>,
}

impl From<Settings> for SettingsJson {
    fn from(settings: Settings) -> Self {
        Self {
            notifications: settings.notifications,
            muted_until: settings.muted_until.map(Into::into),
            theme: settings.theme,
            language: settings.language,
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

/// What is known of a client.
#[derive(Serialize, Debug)]
pub struct ClientJson {
    pub device_name: Option<String>,
    pub device_type: Option<DeviceType>,
    pub platform: Option<String>,
    pub user_agent: Option<String>,
    pub ip: Option<String>,
}

impl From<ClientInfo> for ClientJson {
    fn from(client: ClientInfo) -> Self {
        Self {
            device_name: client.device_name,
            device_type: client.device_type,
            platform: client.platform,
            user_agent: client.user_agent,
            ip: client.ip,
        }
    }
}

#[derive(Serialize, Debug)]
pub struct SessionJson {
    pub id: DeviceId,
    pub current: bool,
    #[serde(flatten)]
    pub client: ClientJson,
    pub push: bool,
    pub created_at: Time,
    pub last_seen_at: Time,
    pub expires_at: Time,
}

impl SessionJson {
    pub fn new(view: SessionView, current: DeviceId) -> Self {
        let SessionView { session, has_push } = view;
        Self {
            id: session.device,
            current: session.device == current,
            client: session.client.into(),
            push: has_push,
            created_at: session.created_at.into(),
            last_seen_at: session.last_seen_at.into(),
            expires_at: session.expires_at.into(),
        }
    }
}

#[derive(Serialize, Debug)]
pub struct SecurityEventJson {
    pub id: Uuid,
    pub time: Time,
    pub kind: SecurityEventKind,
    pub device_id: Option<DeviceId>,
    #[serde(flatten)]
    pub client: ClientJson,
}

impl From<SecurityEvent> for SecurityEventJson {
    fn from(event: SecurityEvent) -> Self {
        Self {
            id: event.id,
            time: event.time.into(),
            kind: event.kind,
            device_id: event.device,
            client: event.client.into(),
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
    pub rules: RoomRulesJson,
}

/// What a room's owners set.
#[derive(Serialize, Clone, Copy, Debug)]
pub struct RoomRulesJson {
    pub edit_window_seconds: Option<u32>,
    pub edit_unread_only: bool,
    pub retention_seconds: Option<u32>,
}

impl From<RoomRules> for RoomRulesJson {
    fn from(rules: RoomRules) -> Self {
        Self {
            edit_window_seconds: rules.edit_window_seconds,
            edit_unread_only: rules.edit_unread_only,
            retention_seconds: rules.retention_seconds,
        }
    }
}

/// Whom a message calls; nothing if nobody.
#[derive(Serialize, Debug)]
pub struct MentionsJson {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mentions: Vec<UserId>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub mentions_room: bool,
}

impl From<Mentions> for MentionsJson {
    fn from(mentions: Mentions) -> Self {
        Self {
            mentions: mentions.users,
            mentions_room: mentions.room,
        }
    }
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
            rules: room.rules.into(),
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
    pub mention_count: u64,
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
            mention_count: summary.mentions,
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
    #[serde(flatten)]
    pub mentions: MentionsJson,
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
            mentions: message.mentions.into(),
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

/// How far a room's messages got to the caller's devices.
#[derive(Serialize, Debug)]
pub struct DeliveredJson {
    pub room_id: RoomId,
    pub sequence: Sequence,
    pub time: Time,
}

impl DeliveredJson {
    pub fn new(room: RoomId, reached: Reached) -> Self {
        Self {
            room_id: room,
            sequence: reached.sequence,
            time: reached.time.into(),
        }
    }
}

/// How far a room's messages got to a member.
#[derive(Serialize, Debug)]
pub struct ReceiptJson {
    pub user_id: UserId,
    pub delivered_sequence: Option<Sequence>,
    pub delivered_at: Option<Time>,
    pub read_sequence: Option<Sequence>,
    pub read_at: Option<Time>,
}

impl From<Receipt> for ReceiptJson {
    fn from(receipt: Receipt) -> Self {
        Self {
            user_id: receipt.user,
            delivered_sequence: receipt.delivered.map(|reached| reached.sequence),
            delivered_at: receipt.delivered.map(|reached| reached.time.into()),
            read_sequence: receipt.read.map(|reached| reached.sequence),
            read_at: receipt.read.map(|reached| reached.time.into()),
        }
    }
}

/// What became of one message with one recipient (MSG-05).
#[derive(Serialize, Debug)]
pub struct DeliveryJson {
    pub user_id: UserId,
    pub state: &'static str,
    pub delivered_at: Option<Time>,
    pub read_at: Option<Time>,
}

impl DeliveryJson {
    /// Of the message at a place.
    pub fn new(receipt: Receipt, place: Sequence) -> Self {
        let at = |reached: Option<Reached>| {
            reached
                .filter(|reached| reached.sequence >= place)
                .map(|reached| reached.time.into())
        };
        let (delivered_at, read_at) = (at(receipt.delivered), at(receipt.read));
        let state = match (&delivered_at, &read_at) {
            (_, Some(_)) => "read",
            (Some(_), None) => "delivered",
            (None, None) => "sent",
        };
        Self {
            user_id: receipt.user,
            state,
            delivered_at,
            read_at,
        }
    }
}

/// A person who is banned or muted.
#[derive(Serialize, Debug)]
pub struct RestrictedJson {
    pub user_id: UserId,
    pub banned: bool,
    pub muted: bool,
    pub muted_until: Option<Time>,
}

impl From<Restricted> for RestrictedJson {
    fn from(restricted: Restricted) -> Self {
        let until = restricted.restrictions.muted_until;
        Self {
            user_id: restricted.user,
            banned: restricted.restrictions.banned,
            muted: until.is_some(),
            muted_until: until
                .filter(|until| *until < Restrictions::FOR_GOOD)
                .map(Into::into),
        }
    }
}

/// A person in a room.
#[derive(Serialize, Debug)]
pub struct InRoomJson {
    pub room_id: RoomId,
    pub user_id: UserId,
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
