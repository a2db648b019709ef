//! What a client may ask on a socket. Each request becomes one future with one answer.

use std::{collections::HashMap, panic::AssertUnwindSafe};

use carillon_domain::{
    ClientMessageId, Error, ErrorCode, Result, RoomId, Sequence, UserId, account::Identity,
    event::Draft, signal::Activity,
};
use carillon_telemetry::propagation;
use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tracing::Instrument;

use crate::{
    edge::{self},
    gateway::App,
    hub::{Hub, MAX_ROOMS},
    usecases,
    wire::{
        self, Ack, ActivityPayload, AuthPayload, DeliveredJson, EditPayload, EmptyPayload, Frame,
        MessageAck, MessagePayload, PlaceJson, ReadJson, ReadPayload, RequestId, RoomPayload,
        SendPayload,
    },
};

/// The types of client frames; also the labels of the metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Auth,
    JoinRoom,
    LeaveRoom,
    SendMessage,
    EditMessage,
    DeleteMessage,
    Typing,
    StopTyping,
    Read,
    Delivered,
    Ping,
}

impl Kind {
    pub const ALL: [Self; 11] = [
        Self::Auth,
        Self::JoinRoom,
        Self::LeaveRoom,
        Self::SendMessage,
        Self::EditMessage,
        Self::DeleteMessage,
        Self::Typing,
        Self::StopTyping,
        Self::Read,
        Self::Delivered,
        Self::Ping,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::JoinRoom => "join_room",
            Self::LeaveRoom => "leave_room",
            Self::SendMessage => "send_message",
            Self::EditMessage => "edit_message",
            Self::DeleteMessage => "delete_message",
            Self::Typing => "typing",
            Self::StopTyping => "stop_typing",
            Self::Read => "read",
            Self::Delivered => "delivered",
            Self::Ping => "ping",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Whether it counts as a message for the limit (RT-09).
    pub fn is_message(self) -> bool {
        matches!(
            self,
            Self::SendMessage | Self::EditMessage | Self::DeleteMessage
        )
    }

    fn span_name(self) -> &'static str {
        match self {
            Self::Auth => "ws auth",
            Self::JoinRoom => "ws join_room",
            Self::LeaveRoom => "ws leave_room",
            Self::SendMessage => "ws send_message",
            Self::EditMessage => "ws edit_message",
            Self::DeleteMessage => "ws delete_message",
            Self::Typing => "ws typing",
            Self::StopTyping => "ws stop_typing",
            Self::Read => "ws read",
            Self::Delivered => "ws delivered",
            Self::Ping => "ws ping",
        }
    }
}

/// A request that was understood.
pub enum Call {
    Auth(AuthPayload),
    Join(RoomId),
    Leave(RoomId),
    Send(SendTo, Draft),
    Edit(EditPayload),
    Delete(MessagePayload),
    Activity(RoomId, Activity, bool),
    Read(RoomId, Sequence),
    Delivered(RoomId, Sequence),
    Ping,
}

/// Where a message goes.
pub enum SendTo {
    Room(RoomId),
    Person(UserId),
}

/// Parses the payload of a frame of this kind; an error names the field.
pub fn parse(kind: Kind, payload: Option<&RawValue>) -> Result<Call> {
    Ok(match kind {
        Kind::Auth => {
            let auth: AuthPayload = parse_payload(payload)?;
            if auth.resume.len() > MAX_ROOMS {
                return Err(Error::invalid(
                    "payload.resume",
                    format!("at most {MAX_ROOMS} rooms"),
                ));
            }
            Call::Auth(auth)
        }
        Kind::JoinRoom => Call::Join(parse_payload::<RoomPayload>(payload)?.room_id),
        Kind::LeaveRoom => Call::Leave(parse_payload::<RoomPayload>(payload)?.room_id),
        Kind::SendMessage => {
            let send: SendPayload = parse_payload(payload)?;
            let to = match (send.room_id, send.recipient_id) {
                (Some(room), None) => SendTo::Room(room),
                (None, Some(person)) => SendTo::Person(person),
                _ => {
                    return Err(Error::invalid(
                        "payload.room_id",
                        "give either room_id or recipient_id",
                    ));
                }
            };
            let draft = Draft {
                client_message_id: ClientMessageId(send.client_message_id),
                message_type: send.message_type,
                content: send.content,
                reply_to: send.reply_to,
            };
            Call::Send(to, draft)
        }
        Kind::EditMessage => Call::Edit(parse_payload(payload)?),
        Kind::DeleteMessage => Call::Delete(parse_payload(payload)?),
        Kind::Typing | Kind::StopTyping => {
            let what: ActivityPayload = parse_payload(payload)?;
            Call::Activity(
                what.room_id,
                what.activity.unwrap_or(Activity::Typing),
                kind == Kind::Typing,
            )
        }
        Kind::Read => {
            let read: ReadPayload = parse_payload(payload)?;
            Call::Read(read.room_id, read.sequence)
        }
        Kind::Delivered => {
            let delivered: ReadPayload = parse_payload(payload)?;
            Call::Delivered(delivered.room_id, delivered.sequence)
        }
        Kind::Ping => {
            if payload.is_some() {
                let _: EmptyPayload = parse_payload(payload)?;
            }
            Call::Ping
        }
    })
}

fn parse_payload<T: DeserializeOwned>(payload: Option<&RawValue>) -> Result<T> {
    let Some(payload) = payload else {
        return Err(Error::invalid("payload", "is required"));
    };
    if !payload.get().starts_with('{') {
        return Err(Error::invalid("payload", "expected an object"));
    }
    let mut deserializer = serde_json::Deserializer::from_str(payload.get());
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let mut described = edge::describe_json(error.inner(), &path);
        for field in &mut described.fields {
            field.field = if field.field == "." {
                "payload".to_owned()
            } else {
                format!("payload.{}", field.field)
            };
        }
        described
    })
}

/// What came of a request.
pub enum Outcome {
    /// An answer, if the request had an id or failed.
    Answer(Option<Frame>),
    /// A token was accepted: the session goes on until it ends.
    Authenticated {
        id: Option<RequestId>,
        identity: Option<Identity>,
        resume: HashMap<RoomId, Sequence>,
    },
}

/// A direct room that is being looked up, shared by the sends that wait for it, so that they keep their order.
pub type Resolving = Shared<BoxFuture<'static, Result<RoomId>>>;

/// What requests of one socket need.
#[derive(Clone)]
pub struct Context {
    pub app: App,
    pub hub: Hub,
    pub identity: Identity,
}

/// Looks up the direct room with a person.
pub fn resolve(context: &Context, person: UserId) -> Resolving {
    let context = context.clone();
    async move {
        context
            .app
            .chat
            .direct_id(context.identity.user, person)
            .await
    }
    .boxed()
    .shared()
}

/// The future that works on a request. It never panics and always ends: after the request timeout with an error.
pub fn work(
    context: Context,
    kind: Kind,
    id: Option<RequestId>,
    call: Call,
    resolving: Option<Resolving>,
) -> BoxFuture<'static, Outcome> {
    let span = tracing::info_span!(
        parent: None,
        "ws.request",
        otel.name = kind.span_name(),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
    );
    let limit = context.app.options.request_timeout;
    async move {
        let run = AssertUnwindSafe(answer(&context, &id, call, resolving)).catch_unwind();
        let outcome = match tokio::time::timeout(limit, run).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_panic)) => {
                tracing::error!(kind = kind.as_str(), "a socket request panicked");
                Err(Error::new(ErrorCode::Internal, "internal error"))
            }
            Err(_elapsed) => Err(Error::new(
                ErrorCode::DeadlineExceeded,
                "it took too long; try again with the same ids",
            )),
        };
        outcome.unwrap_or_else(|error| {
            let error = usecases::shown(error);
            if error.code.http_status() >= 500 {
                tracing::Span::current().record("otel.status_code", "ERROR");
            }
            let trace_id = propagation::trace_id();
            Outcome::Answer(Some(wire::error_frame(
                id.as_ref(),
                &error,
                trace_id.as_deref(),
            )))
        })
    }
    .instrument(span)
    .boxed()
}

async fn answer(
    context: &Context,
    id: &Option<RequestId>,
    call: Call,
    resolving: Option<Resolving>,
) -> Result<Outcome> {
    let Context { app, hub, identity } = context;
    let chat = &app.chat;
    let user = identity.user;
    let ack = match call {
        Call::Auth(auth) => {
            let identity = match auth.token {
                Some(token) => Some(app.services.verifier.verify_access(&token).await?),
                None => None,
            };
            return Ok(Outcome::Authenticated {
                id: id.clone(),
                identity,
                resume: auth.resume,
            });
        }
        Call::Join(room) => {
            let sequence = chat.messages().join(user, room).await?;
            hub.joined(user, room);
            Ack::Place(PlaceJson {
                room_id: room,
                sequence,
            })
        }
        Call::Leave(room) => {
            chat.messages().leave(user, room).await?;
            hub.left(user, room);
            Ack::Room { room_id: room }
        }
        Call::Send(to, draft) => {
            let room = match (to, resolving) {
                (SendTo::Room(room), _) => room,
                (SendTo::Person(_), Some(resolving)) => resolving.await?,
                (SendTo::Person(person), None) => chat.direct_id(user, person).await?,
            };
            let outcome = chat.send(user, room, draft).await?;
            Ack::Message(Box::new(MessageAck {
                sequence: outcome.message.sequence,
                message: outcome.message.into(),
                duplicate: Some(outcome.duplicate),
            }))
        }
        Call::Edit(edit) => changed(chat.edit(user, edit.message_id, edit.content).await?),
        Call::Delete(delete) => changed(chat.delete(user, delete.message_id).await?),
        Call::Activity(room, activity, active) => {
            chat.messages()
                .activity(user, room, activity, active)
                .await?;
            Ack::Room { room_id: room }
        }
        Call::Read(room, sequence) => {
            let mark = chat.messages().mark_read(user, room, sequence).await?;
            Ack::Read(ReadJson::new(room, mark))
        }
        Call::Delivered(room, sequence) => {
            let reached = chat.messages().mark_delivered(user, room, sequence).await?;
            Ack::Delivered(DeliveredJson::new(room, reached))
        }
        Call::Ping => {
            let now = app.services.clock.now();
            return Ok(Outcome::Answer(Some(wire::pong(id.as_ref(), now))));
        }
    };
    // Without an id nobody could match an ack; errors are sent all the same.
    Ok(Outcome::Answer(
        id.as_ref().map(|id| wire::reply("ack", Some(id), ack)),
    ))
}

fn changed(message: carillon_domain::event::Message) -> Ack {
    Ack::Message(Box::new(MessageAck {
        sequence: message.revision,
        message: message.into(),
        duplicate: None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: Kind, payload: &str) -> String {
        let raw: Box<RawValue> = serde_json::from_str(payload).unwrap();
        match parse(kind, Some(&raw)) {
            Ok(_) => "accepted".to_owned(),
            Err(error) => format!(
                "{} {:?}",
                error.code,
                error
                    .fields
                    .iter()
                    .map(|f| format!("{}: {}", f.field, f.detail))
                    .collect::<Vec<_>>()
            ),
        }
    }

    /// RT-02, RT-04: each wrong payload is refused with the place of the problem.
    #[test]
    fn wrong_payloads_name_their_place() {
        let room = "0190a5d3-0000-7000-8000-000000000001";
        let answers = [
            refused(Kind::JoinRoom, "{}"),
            refused(Kind::JoinRoom, r#"{"room_id": "general"}"#),
            refused(Kind::JoinRoom, r#"["general"]"#),
            refused(Kind::JoinRoom, &format!(r#"{{"room_id":"{room}","x":1}}"#)),
            refused(
                Kind::SendMessage,
                r#"{"client_message_id":"c","content":"hi"}"#,
            ),
            refused(
                Kind::SendMessage,
                &format!(
                    r#"{{"room_id":"{room}","recipient_id":"{room}","client_message_id":"c","content":"hi"}}"#
                ),
            ),
            refused(
                Kind::SendMessage,
                &format!(r#"{{"room_id":"{room}","client_message_id":"c","content":7}}"#),
            ),
            refused(
                Kind::Read,
                &format!(r#"{{"room_id":"{room}","sequence":-1}}"#),
            ),
            refused(
                Kind::Typing,
                &format!(r#"{{"room_id":"{room}","activity":"dancing"}}"#),
            ),
            refused(Kind::Auth, r#"{"resume":{"x":1}}"#),
        ];
        insta::assert_snapshot!(answers.join("\n"));
    }

    #[test]
    fn names_of_types_parse_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(Kind::parse("dance"), None);
    }
}
