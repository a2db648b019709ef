//! Requests, of both REST and sockets.

use std::collections::HashMap;

use carillon_domain::{
    ClientMessageId, MessageId, RoomId, Sequence, UserId,
    account::DeviceType,
    event::{Draft, MessageType},
    presence::PresenceState,
    push::PushProvider,
    room::{Role, RoomKind, RoomRules},
    signal::Activity,
};
use serde::{Deserialize, Deserializer};

use super::Time;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    pub username: String,
    pub email: String,
    pub password: String,
}

/// A login: one of `email`, `username` and `login` says who.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginRequest {
    pub email: Option<String>,
    pub username: Option<String>,
    pub login: Option<String>,
    pub password: String,
    pub device: Option<DeviceDescription>,
}

/// What a client says of its device: only its name, or more.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a name, or an object with name, type and platform"
)]
pub enum DeviceDescription {
    Name(String),
    Described(DescribedDevice),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedDevice {
    pub name: Option<String>,
    #[serde(rename = "type")]
    pub device_type: Option<DeviceType>,
    pub platform: Option<String>,
}

/// What to change of one's profile (a JSON merge patch, RFC 7396): `null` takes away what is there.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfilePatch {
    #[serde(default, deserialize_with = "text_or_null")]
    pub display_name: Option<String>,
    #[serde(default, deserialize_with = "text_or_null")]
    pub bio: Option<String>,
    #[serde(default, deserialize_with = "text_or_null")]
    pub status: Option<String>,
}

/// What to change of to whom one shows what; what is absent stays.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrivacyPatch {
    pub last_seen: Option<String>,
    pub profile_photo: Option<String>,
    pub read_receipts: Option<String>,
}

/// What to change of one's other settings (a JSON merge patch, RFC 7396): `null` takes away an end or a language.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsPatch {
    pub notifications: Option<String>,
    #[serde(default, deserialize_with = "some_or_null")]
    pub muted_until: Option<Option<Time>>,
    pub theme: Option<String>,
    #[serde(default, deserialize_with = "some_or_null")]
    pub language: Option<Option<String>>,
}

/// What is absent isn't what is `null`.
fn some_or_null<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// `null` is the empty text.
fn text_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::deserialize(deserializer).map(|text: Option<String>| Some(text.unwrap_or_default()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsernameRequest {
    pub username: String,
    pub password: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailRequest {
    pub email: String,
    pub password: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordRequest {
    pub current_password: Option<String>,
    pub new_password: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EraseRequest {
    pub password: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailVerifyRequest {
    pub token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordForgotRequest {
    pub email: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PasswordResetRequest {
    pub token: String,
    pub new_password: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefreshRequest {
    pub refresh_token: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtpSendRequest {
    pub phone_number: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtpVerifyRequest {
    pub phone_number: String,
    pub otp_code: String,
    pub device: Option<DeviceDescription>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRoomRequest {
    pub name: String,
    #[serde(default)]
    pub description: String,
    #[serde(rename = "type")]
    pub kind: RoomKind,
    #[serde(default)]
    pub rules: RulesRequest,
}

/// Rules of a room; what is absent stays, `null` is the platform's default.
#[derive(Deserialize, Default, Clone, Copy)]
#[serde(deny_unknown_fields)]
pub struct RulesRequest {
    #[serde(default, deserialize_with = "present")]
    pub edit_window_seconds: Option<Option<u32>>,
    pub edit_unread_only: Option<bool>,
    #[serde(default, deserialize_with = "present")]
    pub retention_seconds: Option<Option<u32>>,
}

impl RulesRequest {
    /// The rules that this makes of others.
    pub fn applied_to(self, rules: RoomRules) -> RoomRules {
        RoomRules {
            edit_window_seconds: self
                .edit_window_seconds
                .unwrap_or(rules.edit_window_seconds),
            edit_unread_only: self.edit_unread_only.unwrap_or(rules.edit_unread_only),
            retention_seconds: self.retention_seconds.unwrap_or(rules.retention_seconds),
        }
    }
}

/// Tells `null` from absent.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u32>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// What to change about a room (a JSON merge patch, RFC 7396).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomPatch {
    pub name: Option<String>,
    pub description: Option<String>,
    pub rules: Option<RulesRequest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InviteRequest {
    pub user_id: UserId,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct MuteRequest {
    pub until: Option<Time>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct MemberRequest {
    pub role: Option<Role>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenDirectRequest {
    pub recipient_id: UserId,
}

/// A message as sent through REST.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewMessageRequest {
    pub client_message_id: String,
    #[serde(rename = "type", default = "text")]
    pub message_type: MessageType,
    pub content: String,
    pub reply_to: Option<MessageId>,
}

fn text() -> MessageType {
    MessageType::Text
}

impl From<NewMessageRequest> for Draft {
    fn from(request: NewMessageRequest) -> Self {
        Self {
            // Checked, with everything else of a draft, by the message service.
            client_message_id: ClientMessageId(request.client_message_id),
            message_type: request.message_type,
            content: request.content,
            reply_to: request.reply_to,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    pub content: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadRequest {
    pub sequence: Sequence,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PresenceRequest {
    pub state: PresenceState,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRequest {
    pub provider: PushProvider,
    pub token: String,
    pub p256dh: Option<String>,
    pub auth: Option<String>,
}

// === queries ===

/// A page of a list: `cursor` is the `next` of the page before.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery<C> {
    #[serde(alias = "after", default = "Option::default")]
    pub cursor: Option<C>,
    pub limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HistoryParameters {
    pub limit: Option<usize>,
    pub before: Option<u64>,
    pub after: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsParameters {
    pub after: Option<u64>,
    pub limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersParameters {
    pub users: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SearchParameters {
    pub q: String,
    #[serde(alias = "after")]
    pub cursor: Option<String>,
    pub limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdsParameters {
    pub ids: String,
}

// === socket payloads ===

/// Authenticates a socket, or extends its time with a new token; `resume` names the last place seen per room.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthPayload {
    pub token: Option<String>,
    #[serde(default)]
    pub resume: HashMap<RoomId, Sequence>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomPayload {
    pub room_id: RoomId,
}

/// A message as sent through a socket: to a room, or to a person.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SendPayload {
    pub room_id: Option<RoomId>,
    pub recipient_id: Option<UserId>,
    pub client_message_id: String,
    #[serde(rename = "type", default = "text")]
    pub message_type: MessageType,
    pub content: String,
    pub reply_to: Option<MessageId>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EditPayload {
    pub message_id: MessageId,
    pub content: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessagePayload {
    pub message_id: MessageId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivityPayload {
    pub room_id: RoomId,
    pub activity: Option<Activity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReadPayload {
    pub room_id: RoomId,
    pub sequence: Sequence,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct EmptyPayload {}
