//! Frames of the socket: `{"type": …, "id": …, "payload": {…}}`.

use std::{borrow::Cow, collections::BTreeMap};

use carillon_domain::{
    DeviceId, Error, MessageId, RoomId, Sequence, Timestamp, UserId,
    event::{EventBody, MessageType, RoomEvent},
    presence::PresenceState,
    room::{Restrictions, Role},
    security::SecurityEventKind,
    signal::{Activity, Signal},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Frame, MentionsJson, RoomRulesJson, Time};

/// The id that a client gives to a request: a string of at most 64 bytes, or a whole number. It comes back as it was.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RequestId {
    Number(u64),
    Text(String),
}

impl RequestId {
    const MAX_LEN: usize = 64;

    pub fn fits(&self) -> bool {
        match self {
            Self::Number(_) => true,
            Self::Text(text) => (1..=Self::MAX_LEN).contains(&text.len()),
        }
    }
}

/// A client's frame before its payload is understood, so that an error can carry the id.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFrame<'a> {
    #[serde(rename = "type", borrow)]
    pub frame_type: Cow<'a, str>,
    pub id: Option<RequestId>,
    #[serde(borrow)]
    pub payload: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct ServerFrame<'a, P> {
    #[serde(rename = "type")]
    frame_type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a RequestId>,
    payload: P,
}

fn encode<P: Serialize>(frame_type: &'static str, id: Option<&RequestId>, payload: P) -> Frame {
    let frame = ServerFrame {
        frame_type,
        id,
        payload,
    };
    // Plain structs with string keys: serialising them can only fail for a time beyond the year 9999.
    Frame::json(&frame).unwrap_or_else(|error| {
        tracing::error!(%error, frame_type, "a frame could not be encoded");
        Frame::text(r#"{"type":"error","payload":{"code":"internal","detail":"internal error"}}"#)
    })
}

// === events of rooms ===

/// An event of a room as its followers get it.
#[derive(Serialize)]
#[serde(untagged)]
enum EventJson<'a> {
    NewMessage {
        id: MessageId,
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        sender_id: UserId,
        time: Time,
        #[serde(rename = "type")]
        message_type: MessageType,
        content: &'a str,
        reply_to: Option<MessageId>,
        client_message_id: &'a str,
        edited_at: Option<Time>,
        deleted_at: Option<Time>,
        revision: Sequence,
        #[serde(flatten)]
        mentions: MentionsJson,
    },
    Edited {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        user_id: UserId,
        message_id: MessageId,
        message_sequence: Sequence,
        content: &'a str,
    },
    Deleted {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        user_id: UserId,
        message_id: MessageId,
        message_sequence: Sequence,
    },
    Joined {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        user_id: UserId,
        role: Role,
        by: UserId,
    },
    /// Somebody left, or the whole room is gone.
    Left {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        #[serde(skip_serializing_if = "Option::is_none")]
        user_id: Option<UserId>,
        by: UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<&'static str>,
    },
    /// Somebody was invited, muted, or may come back or write again.
    Concerning {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        user_id: UserId,
        by: UserId,
        #[serde(skip_serializing_if = "Option::is_none")]
        until: Option<Time>,
    },
    Changed {
        room_id: RoomId,
        sequence: Sequence,
        messages_before: u64,
        time: Time,
        name: &'a str,
        description: &'a str,
        rules: RoomRulesJson,
        by: UserId,
    },
}

/// The frame type and payload of an event.
fn event_json(event: &RoomEvent) -> (&'static str, EventJson<'_>) {
    let room_id = event.room;
    let sequence = event.sequence;
    let messages_before = event.messages_before;
    let time = Time(event.time);
    let left = |user_id, reason| EventJson::Left {
        room_id,
        sequence,
        messages_before,
        time,
        user_id,
        by: event.actor,
        reason,
    };
    let concerning = |user: &UserId, until| EventJson::Concerning {
        room_id,
        sequence,
        messages_before,
        time,
        user_id: *user,
        by: event.actor,
        until,
    };
    match &event.body {
        EventBody::Message {
            id,
            draft,
            mentions,
        } => (
            "new_message",
            EventJson::NewMessage {
                id: *id,
                room_id,
                sequence,
                messages_before,
                sender_id: event.actor,
                time,
                message_type: draft.message_type,
                content: &draft.content,
                reply_to: draft.reply_to,
                client_message_id: &draft.client_message_id.0,
                edited_at: None,
                deleted_at: None,
                revision: sequence,
                mentions: mentions.clone().into(),
            },
        ),
        EventBody::Edited {
            id,
            target,
            content,
        } => (
            "edit_message",
            EventJson::Edited {
                room_id,
                sequence,
                messages_before,
                time,
                user_id: event.actor,
                message_id: *id,
                message_sequence: *target,
                content,
            },
        ),
        EventBody::Deleted { id, target } => (
            "delete_message",
            EventJson::Deleted {
                room_id,
                sequence,
                messages_before,
                time,
                user_id: event.actor,
                message_id: *id,
                message_sequence: *target,
            },
        ),
        EventBody::Joined { user, role } => (
            "user_joined",
            EventJson::Joined {
                room_id,
                sequence,
                messages_before,
                time,
                user_id: *user,
                role: *role,
                by: event.actor,
            },
        ),
        EventBody::Left { user, erased } => {
            ("user_left", left(Some(*user), erased.then_some("erased")))
        }
        // A client that knows of no bans sees them leave.
        EventBody::Banned { user } => ("user_left", left(Some(*user), Some("banned"))),
        EventBody::Unbanned { user } => ("user_unbanned", concerning(user, None)),
        EventBody::Invited { user } => ("user_invited", concerning(user, None)),
        EventBody::Muted { user, until } => {
            let until = (*until < Restrictions::FOR_GOOD).then_some(Time(*until));
            ("user_muted", concerning(user, until))
        }
        EventBody::Unmuted { user } => ("user_unmuted", concerning(user, None)),
        EventBody::Changed {
            name,
            description,
            rules,
        } => (
            "room_updated",
            EventJson::Changed {
                room_id,
                sequence,
                messages_before,
                time,
                name,
                description,
                rules: (*rules).into(),
                by: event.actor,
            },
        ),
        EventBody::RoomDeleted => ("room_deleted", left(None, None)),
    }
}

/// An event as a frame.
pub fn event_frame(event: &RoomEvent) -> Frame {
    let (frame_type, payload) = event_json(event);
    encode(frame_type, None, payload)
}

// === signals ===

/// `typing` or `stop_typing`.
fn activity_frame(room: RoomId, user: UserId, activity: Activity, active: bool) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        room_id: RoomId,
        user_id: UserId,
        activity: Activity,
    }
    let frame_type = if active { "typing" } else { "stop_typing" };
    encode(
        frame_type,
        None,
        Payload {
            room_id: room,
            user_id: user,
            activity,
        },
    )
}

/// `user_online` (also for away) or `user_offline`; without a room it is about a contact.
fn presence_frame(
    room: Option<RoomId>,
    user: UserId,
    state: PresenceState,
    last_seen: Option<Timestamp>,
) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        #[serde(skip_serializing_if = "Option::is_none")]
        room_id: Option<RoomId>,
        user_id: UserId,
        state: PresenceState,
        last_seen: Option<Time>,
    }
    let frame_type = match state {
        PresenceState::Offline => "user_offline",
        PresenceState::Away | PresenceState::Online => "user_online",
    };
    encode(
        frame_type,
        None,
        Payload {
            room_id: room,
            user_id: user,
            state,
            last_seen: last_seen.map(Time),
        },
    )
}

/// `messages_read` or `message_delivered`.
fn mark_frame(
    frame_type: &'static str,
    room: RoomId,
    user: UserId,
    sequence: Sequence,
    time: Timestamp,
) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        room_id: RoomId,
        user_id: UserId,
        sequence: Sequence,
        time: Time,
    }
    encode(
        frame_type,
        None,
        Payload {
            room_id: room,
            user_id: user,
            sequence,
            time: Time(time),
        },
    )
}

/// A signal to the followers of a room, or about a contact.
pub fn signal(signal: &Signal) -> Option<Frame> {
    match *signal {
        Signal::Activity {
            room,
            user,
            activity,
            active,
        } => Some(activity_frame(room, user, activity, active)),
        Signal::Presence {
            room,
            user,
            state,
            last_seen,
        } => Some(presence_frame(Some(room), user, state, last_seen)),
        Signal::ContactPresence {
            user,
            state,
            last_seen,
            ..
        } => Some(presence_frame(None, user, state, last_seen)),
        Signal::Read {
            room,
            user,
            sequence,
            time,
        } => Some(mark_frame("messages_read", room, user, sequence, time)),
        Signal::Delivered {
            room,
            user,
            sequence,
            time,
        } => Some(mark_frame("message_delivered", room, user, sequence, time)),
        _ => None,
    }
}

/// `dm_created`.
pub fn direct_created(room: RoomId, peer: UserId) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        room_id: RoomId,
        user_id: UserId,
    }
    encode(
        "dm_created",
        None,
        Payload {
            room_id: room,
            user_id: peer,
        },
    )
}

/// `room_invited`: somebody asks the user to join a room.
pub fn room_invited(room: RoomId, by: UserId) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        room_id: RoomId,
        by: UserId,
    }
    encode("room_invited", None, Payload { room_id: room, by })
}

/// `security_event`: something happened to the user's account.
pub fn security_event(
    id: Uuid,
    kind: SecurityEventKind,
    device: Option<DeviceId>,
    time: Timestamp,
) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        id: Uuid,
        kind: SecurityEventKind,
        device_id: Option<DeviceId>,
        time: Time,
    }
    encode(
        "security_event",
        None,
        Payload {
            id,
            kind,
            device_id: device,
            time: Time(time),
        },
    )
}

// === the connection ===

/// `connection_ack`. `resume` names, for every room that the socket follows, the place after which its events come.
pub fn connection_ack(
    id: Option<&RequestId>,
    user: UserId,
    device: DeviceId,
    heartbeat_ms: u64,
    resume: &BTreeMap<RoomId, Sequence>,
) -> Frame {
    #[derive(Serialize)]
    struct Payload<'a> {
        user_id: UserId,
        device_id: DeviceId,
        heartbeat_ms: u64,
        resume: &'a BTreeMap<RoomId, Sequence>,
    }
    encode(
        "connection_ack",
        id,
        Payload {
            user_id: user,
            device_id: device,
            heartbeat_ms,
            resume,
        },
    )
}

/// `resync`: too much was missed to be sent here; read `/rooms/{id}/events?after=from_sequence`.
pub fn resync(room: RoomId, from: Sequence) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        room_id: RoomId,
        from_sequence: Sequence,
    }
    encode(
        "resync",
        None,
        Payload {
            room_id: room,
            from_sequence: from,
        },
    )
}

/// `pong`, the answer to `ping`.
pub fn pong(id: Option<&RequestId>, now: Timestamp) -> Frame {
    #[derive(Serialize)]
    struct Payload {
        time: Time,
    }
    encode("pong", id, Payload { time: Time(now) })
}

/// Any other frame: `ack` to a request, `auth_required` without one.
pub fn reply<P: Serialize>(frame_type: &'static str, id: Option<&RequestId>, payload: P) -> Frame {
    encode(frame_type, id, payload)
}

/// What an `ack` says.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Ack {
    Message(Box<super::MessageAck>),
    Place(super::PlaceJson),
    Read(super::ReadJson),
    Delivered(super::DeliveredJson),
    Room { room_id: RoomId },
    Authenticated { expires_at: Time },
}

/// `error`, with the id of the request if it had one.
pub fn error_frame(id: Option<&RequestId>, error: &Error, trace_id: Option<&str>) -> Frame {
    #[derive(Serialize)]
    struct Payload<'a> {
        code: &'a str,
        detail: &'a str,
        #[serde(skip_serializing_if = "<[_]>::is_empty")]
        errors: &'a [carillon_domain::FieldError],
        retryable: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        trace_id: Option<&'a str>,
    }
    encode(
        "error",
        id,
        Payload {
            code: error.code.as_str(),
            detail: &error.detail,
            errors: &error.fields,
            retryable: error.code.is_retryable(),
            retry_after_ms: error
                .retry_after
                .map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
            trace_id,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_domain::{
        ClientMessageId, ErrorCode,
        event::{Draft, Mentions},
        room::RoomRules,
    };
    use uuid::Uuid;

    const ROOM: RoomId = RoomId(Uuid::from_u128(1));
    const ANN: UserId = UserId(Uuid::from_u128(2));
    const BOB: UserId = UserId(Uuid::from_u128(3));
    const MESSAGE: MessageId = MessageId(Uuid::from_u128(4));
    const NOW: Timestamp = Timestamp(1_790_000_000_123);

    fn event(body: EventBody) -> Frame {
        event_frame(&RoomEvent {
            room: ROOM,
            sequence: Sequence(7),
            messages_before: 5,
            time: NOW,
            actor: ANN,
            body,
        })
    }

    /// RT-03: every frame that the server sends. A change here is a change of the API.
    #[test]
    fn golden_server_frames() {
        let id = RequestId::Text("r1".into());
        let error = Error::invalid("payload.room_id", "expected a UUID");
        let limited = Error::new(ErrorCode::RateLimited, "slow down")
            .retry_after(std::time::Duration::from_millis(1500));
        let frames = [
            reply("auth_required", None, serde_json::json!({})),
            connection_ack(
                Some(&id),
                ANN,
                DeviceId(Uuid::from_u128(5)),
                30_000,
                &BTreeMap::from([(ROOM, Sequence(7))]),
            ),
            event(EventBody::Message {
                id: MESSAGE,
                draft: Draft {
                    client_message_id: ClientMessageId("c1".into()),
                    message_type: MessageType::Text,
                    content: "hi \"all\" <b>\u{2603}</b>".into(),
                    reply_to: Some(MESSAGE),
                },
                mentions: Mentions::default(),
            }),
            event(EventBody::Message {
                id: MESSAGE,
                draft: Draft {
                    client_message_id: ClientMessageId("c2".into()),
                    message_type: MessageType::Text,
                    content: "@bob @room".into(),
                    reply_to: None,
                },
                mentions: Mentions {
                    users: vec![BOB],
                    room: true,
                },
            }),
            event(EventBody::Edited {
                id: MESSAGE,
                target: Sequence(6),
                content: "hello".into(),
            }),
            event(EventBody::Deleted {
                id: MESSAGE,
                target: Sequence(6),
            }),
            event(EventBody::Joined {
                user: BOB,
                role: Role::Member,
            }),
            event(EventBody::left(BOB)),
            event(EventBody::Invited { user: BOB }),
            event(EventBody::Banned { user: BOB }),
            event(EventBody::Unbanned { user: BOB }),
            event(EventBody::Muted {
                user: BOB,
                until: NOW,
            }),
            event(EventBody::Muted {
                user: BOB,
                until: Restrictions::FOR_GOOD,
            }),
            event(EventBody::Unmuted { user: BOB }),
            event(EventBody::Changed {
                name: "Lobby".into(),
                description: String::new(),
                rules: RoomRules {
                    retention_seconds: Some(3600),
                    ..RoomRules::default()
                },
            }),
            event(EventBody::RoomDeleted),
            activity_frame(ROOM, ANN, Activity::Typing, true),
            activity_frame(ROOM, ANN, Activity::Recording, false),
            presence_frame(Some(ROOM), ANN, PresenceState::Online, Some(NOW)),
            presence_frame(Some(ROOM), ANN, PresenceState::Away, Some(NOW)),
            presence_frame(Some(ROOM), ANN, PresenceState::Offline, None),
            presence_frame(None, ANN, PresenceState::Online, Some(NOW)),
            mark_frame("messages_read", ROOM, ANN, Sequence(7), NOW),
            mark_frame("message_delivered", ROOM, ANN, Sequence(7), NOW),
            room_invited(ROOM, ANN),
            security_event(
                Uuid::from_u128(6),
                SecurityEventKind::TokenReused,
                Some(DeviceId(Uuid::from_u128(5))),
                NOW,
            ),
            direct_created(ROOM, ANN),
            resync(ROOM, Sequence(3)),
            pong(Some(&RequestId::Number(9)), NOW),
            pong(None, NOW),
            reply(
                "ack",
                Some(&id),
                Ack::Place(super::super::PlaceJson {
                    room_id: ROOM,
                    sequence: Sequence(7),
                }),
            ),
            reply("ack", Some(&id), Ack::Room { room_id: ROOM }),
            reply(
                "ack",
                Some(&id),
                Ack::Authenticated {
                    expires_at: Time(NOW),
                },
            ),
            error_frame(Some(&id), &error, Some("4bf92f3577b34da6a3ce929d0e0e4736")),
            error_frame(None, &limited, None),
        ];
        let text: Vec<&str> = frames.iter().map(|frame| &**frame).collect();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn ids_of_requests_are_short() {
        assert!(RequestId::Text("x".repeat(64)).fits());
        assert!(!RequestId::Text("x".repeat(65)).fits());
        assert!(!RequestId::Text(String::new()).fits());
        let parsed: ClientFrame<'_> = serde_json::from_str(r#"{"type":"ping","id":7}"#).unwrap();
        assert_eq!(parsed.id, Some(RequestId::Number(7)));
    }
}
