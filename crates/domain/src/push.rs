//! Push notifications: where they go, and the jobs that carry them.

use serde::{Deserialize, Serialize};

use crate::{DeviceId, MessageId, RoomId, Sequence, UserId, event::Mentions};

/// A provider of push messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PushProvider {
    /// Firebase Cloud Messaging, HTTP v1.
    Fcm,
    /// Apple Push Notification service, HTTP/2.
    Apns,
    /// Web Push (RFC 8030, 8291, 8292).
    WebPush,
}

impl PushProvider {
    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fcm => "fcm",
            Self::Apns => "apns",
            Self::WebPush => "web_push",
        }
    }

    /// The reverse of [`PushProvider::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Fcm, Self::Apns, Self::WebPush]
            .into_iter()
            .find(|provider| provider.as_str() == text)
    }
}

/// Where pushes for one device go.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushTarget {
    /// Whose.
    pub user: UserId,
    /// Which device; one target per device.
    pub device: DeviceId,
    /// Through whom.
    pub provider: PushProvider,
    /// FCM or APNs: the device's token. Web Push: the subscription's endpoint.
    pub token: String,
    /// Web Push: the subscription's `p256dh` key (base64url).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p256dh: Option<String>,
    /// Web Push: the subscription's `auth` secret (base64url).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<String>,
}

impl std::fmt::Debug for PushTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushTarget")
            .field("device", &self.device)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

/// One message to be pushed to some recipients who had no live device when it was sent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushJob {
    /// The same for a repeated job, so that consumers can drop repeats: `<message id>/<chunk>`.
    pub id: String,
    /// Where the message is.
    pub room: RoomId,
    /// Which message.
    pub message: MessageId,
    /// Its place, so that clients collapse and order.
    pub sequence: Sequence,
    /// Who sent it.
    pub sender: UserId,
    /// The sender's shown name.
    pub title: String,
    /// The beginning of the text.
    pub body: String,
    /// To whom, at most [`PushJob::MAX_RECIPIENTS`].
    pub recipients: Vec<UserId>,
    /// Whom it calls.
    #[serde(default, skip_serializing_if = "Mentions::is_empty")]
    pub mentions: Mentions,
    /// It is in a direct room. A job that doesn't say is of before it was told, and a needless push is better than a missing one.
    #[serde(default = "unsaid")]
    pub direct: bool,
    /// W3C `traceparent` of the send, so that the push joins its trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

fn unsaid() -> bool {
    true
}

impl PushJob {
    /// Recipients per job; larger audiences are cut into several jobs.
    pub const MAX_RECIPIENTS: usize = 200;
}

impl std::fmt::Debug for PushJob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PushJob")
            .field("id", &self.id)
            .field("recipients", &self.recipients.len())
            .finish_non_exhaustive()
    }
}
