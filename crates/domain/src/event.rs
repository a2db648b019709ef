//! The room log: every change of a room is an event with the next dense sequence number.
//!
//! Also the pure fold from events to what a reader sees of a message. Read and delivered marks, typing and presence are no
//! events: see [`crate::signal`].

use serde::{Deserialize, Serialize};

use crate::{
    ClientMessageId, MessageId, RoomId, Sequence, Timestamp, UserId,
    room::{Role, RoomRules},
};

/// Type of a message's content (MSG-04).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageType {
    /// Plain text.
    Text,
    /// `content` is a media id.
    Image,
    /// `content` is a media id.
    Video,
    /// `content` is a media id.
    Audio,
    /// `content` is a media id.
    File,
    /// `content` is `latitude,longitude`.
    Location,
    /// Written by the platform.
    System,
}

impl MessageType {
    /// Every type.
    pub const ALL: [Self; 7] = [
        Self::Text,
        Self::Image,
        Self::Video,
        Self::Audio,
        Self::File,
        Self::Location,
        Self::System,
    ];

    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::File => "file",
            Self::Location => "location",
            Self::System => "system",
        }
    }

    /// The reverse of [`MessageType::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What a sender wrote. Two sends with one client message id are the same only if these are equal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Draft {
    /// The sender's own id of the message.
    pub client_message_id: ClientMessageId,
    /// Type of the content.
    #[serde(rename = "type")]
    pub message_type: MessageType,
    /// The content; its form depends on the type.
    pub content: String,
    /// The message that this one answers, in the same room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<MessageId>,
}

/// Whom a message calls by name (MSG-11), as the platform understood its text when it was sent: a later edit calls nobody.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mentions {
    /// People, in the order of the text, each once; at most [`Mentions::MAX`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<UserId>,
    /// Everybody in the room.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub room: bool,
}

impl Mentions {
    /// People that one message can call.
    pub const MAX: usize = 20;

    /// Whether nobody is called.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && !self.room
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventBody {
    /// A message was sent by the actor.
    Message {
        /// Its id.
        id: MessageId,
        /// What was sent.
        #[serde(flatten)]
        draft: Draft,
        /// Whom it calls.
        #[serde(default, skip_serializing_if = "Mentions::is_empty")]
        mentions: Mentions,
    },
    /// A message got other content.
    Edited {
        /// Which message.
        id: MessageId,
        /// Its place in this room.
        target: Sequence,
        /// The new content.
        content: String,
    },
    /// A message was deleted (a marker: its content is no longer shown to anybody).
    Deleted {
        /// Which message.
        id: MessageId,
        /// Its place in this room.
        target: Sequence,
    },
    /// Somebody became a member or got another role.
    Joined {
        /// Who.
        user: UserId,
        /// As what.
        role: Role,
    },
    /// Somebody is no longer a member: left by themselves when the actor is the user, else removed.
    Left {
        /// Who.
        user: UserId,
        /// Their account was erased, and with it everything that they wrote.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        erased: bool,
    },
    /// Somebody was asked to join.
    Invited {
        /// Who.
        user: UserId,
    },
    /// Somebody was removed, if they were a member, and may not come back.
    Banned {
        /// Who.
        user: UserId,
    },
    /// Somebody may come back.
    Unbanned {
        /// Who.
        user: UserId,
    },
    /// Somebody may read but not write, member or not.
    Muted {
        /// Who.
        user: UserId,
        /// Until then; [`crate::room::Restrictions::FOR_GOOD`] if no end was set.
        until: Timestamp,
    },
    /// Somebody may write again.
    Unmuted {
        /// Who.
        user: UserId,
    },
    /// The room has another name, description, or other rules: all of them as they are now.
    Changed {
        /// Name; empty for direct rooms.
        name: String,
        /// Description.
        description: String,
        /// Rules.
        rules: RoomRules,
    },
    /// The room was deleted; always its last event.
    RoomDeleted,
}

impl EventBody {
    /// Somebody left, or was removed.
    pub fn left(user: UserId) -> Self {
        Self::Left {
            user,
            erased: false,
        }
    }

    /// Whom it makes no member any more, whether or not they were one.
    pub fn removes(&self) -> Option<UserId> {
        match self {
            Self::Left { user, .. } | Self::Banned { user } => Some(*user),
            _ => None,
        }
    }

    /// Whose standing in the room it changes.
    pub fn concerns(&self) -> Option<UserId> {
        match self {
            Self::Joined { user, .. }
            | Self::Left { user, .. }
            | Self::Invited { user }
            | Self::Banned { user }
            | Self::Unbanned { user }
            | Self::Muted { user, .. }
            | Self::Unmuted { user } => Some(*user),
            Self::Message { .. }
            | Self::Edited { .. }
            | Self::Deleted { .. }
            | Self::Changed { .. }
            | Self::RoomDeleted => None,
        }
    }
}

/// An entry of a room's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoomEvent {
    /// Which room.
    pub room: RoomId,
    /// Its place: dense from 1, the same for every reader.
    pub sequence: Sequence,
    /// How many messages the room had before this event: a count of messages between two places is a difference.
    pub messages_before: u64,
    /// When the owner took it. Never orders anything.
    pub time: Timestamp,
    /// Who did it.
    pub actor: UserId,
    /// What happened.
    pub body: EventBody,
}

impl RoomEvent {
    /// How many messages the room has after this event.
    pub fn messages_after(&self) -> u64 {
        self.messages_before + u64::from(matches!(self.body, EventBody::Message { .. }))
    }

    /// The place of the message that this event changes, for edits and deletes.
    pub fn target(&self) -> Option<Sequence> {
        match self.body {
            EventBody::Edited { target, .. } | EventBody::Deleted { target, .. } => Some(target),
            _ => None,
        }
    }

    /// The content-free copy that readers get when the message was deleted since: a catch-up must not bring deleted text back.
    #[must_use]
    pub fn redacted(mut self) -> Self {
        match &mut self.body {
            EventBody::Message {
                draft, mentions, ..
            } => {
                draft.content.clear();
                *mentions = Mentions::default();
            }
            EventBody::Edited { content, .. } => content.clear(),
            _ => {}
        }
        self
    }
}

/// A message's event with every event that changed it since, ascending.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredMessage {
    /// The event that sent it.
    pub sent: RoomEvent,
    /// Edits and deletes of it.
    pub changes: Vec<RoomEvent>,
}

/// What a reader sees of a message now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// Its id.
    pub id: MessageId,
    /// Its room.
    pub room: RoomId,
    /// Its place in the room.
    pub sequence: Sequence,
    /// How many messages the room had before it.
    pub messages_before: u64,
    /// Who sent it.
    pub sender: UserId,
    /// When.
    pub time: Timestamp,
    /// The sender's own id of it.
    pub client_message_id: ClientMessageId,
    /// Type of the content.
    pub message_type: MessageType,
    /// The content now; empty when deleted.
    pub content: String,
    /// The message that it answers.
    pub reply_to: Option<MessageId>,
    /// When it was last edited.
    pub edited_at: Option<Timestamp>,
    /// When it was deleted.
    pub deleted_at: Option<Timestamp>,
    /// The event that changed it last; its own place when none did.
    pub revision: Sequence,
    /// Whom it calls.
    pub mentions: Mentions,
}

/// An earlier content of a message (MSG-08: edit history kept).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Revision {
    /// The event that gave it this content.
    pub sequence: Sequence,
    /// When.
    pub time: Timestamp,
    /// The content.
    pub content: String,
}

impl StoredMessage {
    /// Without the changes after `head`: a change that is being written isn't committed yet, so nobody may see it.
    #[must_use]
    pub fn up_to(mut self, head: Sequence) -> Self {
        self.changes.retain(|change| change.sequence <= head);
        self
    }

    /// Folds the events into what a reader sees; `None` if the first event is no message.
    pub fn fold(&self) -> Option<Message> {
        let EventBody::Message {
            id,
            draft,
            mentions,
        } = &self.sent.body
        else {
            return None;
        };
        let mut message = Message {
            id: *id,
            room: self.sent.room,
            sequence: self.sent.sequence,
            messages_before: self.sent.messages_before,
            sender: self.sent.actor,
            time: self.sent.time,
            client_message_id: draft.client_message_id.clone(),
            message_type: draft.message_type,
            content: draft.content.clone(),
            reply_to: draft.reply_to,
            edited_at: None,
            deleted_at: None,
            revision: self.sent.sequence,
            mentions: mentions.clone(),
        };
        for change in &self.changes {
            match &change.body {
                EventBody::Edited { content, .. } if message.deleted_at.is_none() => {
                    message.content.clone_from(content);
                    message.edited_at = Some(change.time);
                }
                EventBody::Deleted { .. } => {
                    message.content.clear();
                    message.mentions = Mentions::default();
                    message.deleted_at = Some(change.time);
                }
                _ => continue,
            }
            message.revision = change.sequence;
        }
        Some(message)
    }

    /// Every content it had, oldest first; empty when it was deleted.
    pub fn revisions(&self) -> Vec<Revision> {
        let mut revisions = Vec::with_capacity(1 + self.changes.len());
        for event in std::iter::once(&self.sent).chain(&self.changes) {
            match &event.body {
                EventBody::Message { draft, .. } => revisions.push(Revision {
                    sequence: event.sequence,
                    time: event.time,
                    content: draft.content.clone(),
                }),
                EventBody::Edited { content, .. } => revisions.push(Revision {
                    sequence: event.sequence,
                    time: event.time,
                    content: content.clone(),
                }),
                EventBody::Deleted { .. } => return Vec::new(),
                _ => {}
            }
        }
        revisions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, body: EventBody) -> RoomEvent {
        RoomEvent {
            room: RoomId(uuid::Uuid::nil()),
            sequence: Sequence(sequence),
            messages_before: 0,
            time: Timestamp(sequence as i64),
            actor: UserId(uuid::Uuid::nil()),
            body,
        }
    }

    fn message(id: MessageId) -> RoomEvent {
        event(
            1,
            EventBody::Message {
                id,
                draft: Draft {
                    client_message_id: ClientMessageId("c1".into()),
                    message_type: MessageType::Text,
                    content: "first".into(),
                    reply_to: None,
                },
                mentions: Mentions::default(),
            },
        )
    }

    /// MSG-08: the newest edit is shown, the history is kept.
    #[test]
    fn edits_fold_in_order() {
        let id = MessageId::new();
        let edit = |n, text: &str| {
            event(
                n,
                EventBody::Edited {
                    id,
                    target: Sequence(1),
                    content: text.into(),
                },
            )
        };
        let stored = StoredMessage {
            sent: message(id),
            changes: vec![edit(2, "second"), edit(5, "third")],
        };
        let folded = stored.fold().unwrap();
        assert_eq!(
            (folded.content.as_str(), folded.revision),
            ("third", Sequence(5))
        );
        assert_eq!(stored.revisions().len(), 3);
    }

    /// MSG-08: after a delete no content is left to see, whatever came before or after.
    #[test]
    fn a_deleted_message_shows_nothing() {
        let id = MessageId::new();
        let stored = StoredMessage {
            sent: message(id),
            changes: vec![
                event(
                    2,
                    EventBody::Deleted {
                        id,
                        target: Sequence(1),
                    },
                ),
                event(
                    3,
                    EventBody::Edited {
                        id,
                        target: Sequence(1),
                        content: "late".into(),
                    },
                ),
            ],
        };
        let folded = stored.fold().unwrap();
        assert_eq!(folded.content, "");
        assert!(folded.deleted_at.is_some());
        assert!(stored.revisions().is_empty());
    }

    #[test]
    fn stored_form_is_stable() {
        let id = MessageId(uuid::Uuid::nil());
        insta::assert_json_snapshot!(message(id), @r#"
        {
          "room": "00000000-0000-0000-0000-000000000000",
          "sequence": 1,
          "messages_before": 0,
          "time": 1,
          "actor": "00000000-0000-0000-0000-000000000000",
          "body": {
            "kind": "message",
            "id": "00000000-0000-0000-0000-000000000000",
            "client_message_id": "c1",
            "type": "text",
            "content": "first"
          }
        }
        "#);
    }
}
