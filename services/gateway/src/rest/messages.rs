//! Messages and events of rooms.

use axum::{Json, extract::State};
use carillon_domain::{
    Error, MessageId, RoomId, Sequence, UserId, event::Message, services::HistoryQuery,
};
use http::StatusCode;
use serde_json::value::RawValue;

use super::{next_cursor, page_limit};
use crate::{
    edge::{Caller, JsonBody, PathParams, Problem, QueryParams},
    gateway::App,
    wire::{
        self, DeliveredJson, DeliveryJson, EditRequest, EventPageJson, EventsParameters,
        HistoryParameters, ListQuery, MessageJson, NewMessageRequest, Page, ReadJson, ReadRequest,
        RevisionJson,
    },
};

pub fn history_query(query: &HistoryParameters) -> Result<HistoryQuery, Problem> {
    if query.before.is_some() && query.after.is_some() {
        return Err(Problem::field("after", "give only one of before and after"));
    }
    Ok(HistoryQuery {
        limit: page_limit(query.limit, 20, 100)?,
        before: query.before.map(Sequence),
        after: query.after.map(Sequence),
    })
}

/// `next` continues in the direction of the query: forward after `after`, else towards the beginning.
pub fn history_page(messages: Vec<Message>, query: HistoryQuery) -> Page<MessageJson> {
    let edge = if query.after.is_some() {
        messages.last()
    } else {
        messages.first()
    };
    let next = (messages.len() >= query.limit)
        .then(|| edge.map(|message| message.sequence.to_string()))
        .flatten();
    Page {
        items: messages.into_iter().map(Into::into).collect(),
        next,
    }
}

pub async fn history(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    QueryParams(query): QueryParams<HistoryParameters>,
) -> Result<Json<Page<MessageJson>>, Problem> {
    let query = history_query(&query)?;
    let messages = app.chat.messages().history(who.user, room, query).await?;
    Ok(Json(history_page(messages, query)))
}

/// 201 for a new message, 200 with the first result for a repeat.
pub async fn send(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    JsonBody(request): JsonBody<NewMessageRequest>,
) -> Result<(StatusCode, Json<MessageJson>), Problem> {
    let outcome = app.chat.send(who.user, room, request.into()).await?;
    let status = if outcome.duplicate {
        StatusCode::OK
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(outcome.message.into())))
}

pub async fn read(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    JsonBody(request): JsonBody<ReadRequest>,
) -> Result<Json<ReadJson>, Problem> {
    let mark = app
        .chat
        .messages()
        .mark_read(who.user, room, request.sequence)
        .await?;
    Ok(Json(ReadJson::new(room, mark)))
}

pub async fn delivered(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    JsonBody(request): JsonBody<ReadRequest>,
) -> Result<Json<DeliveredJson>, Problem> {
    let reached = app
        .chat
        .messages()
        .mark_delivered(who.user, room, request.sequence)
        .await?;
    Ok(Json(DeliveredJson::new(room, reached)))
}

/// How far one message got, to everybody but its sender who has any mark in the room (MSG-05).
pub async fn receipts(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MessageId>,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<DeliveryJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let message = app.chat.message(who.user, id).await?;
    let receipts = app
        .chat
        .messages()
        .receipts(who.user, message.room, query.cursor, limit)
        .await?;
    let next = next_cursor(&receipts, limit, |receipt| receipt.user.to_string());
    let others = receipts
        .into_iter()
        .filter(|receipt| receipt.user != message.sender);
    Ok(Json(Page {
        items: others
            .map(|receipt| DeliveryJson::new(receipt, message.sequence))
            .collect(),
        next,
    }))
}

/// Catch-up: events after a place, in the shape of socket frames.
pub async fn events(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    QueryParams(query): QueryParams<EventsParameters>,
) -> Result<Json<EventPageJson>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let after = Sequence(query.after.unwrap_or(0));
    let page = app
        .chat
        .messages()
        .events(who.user, room, after, limit)
        .await?;
    let items = page
        .events
        .iter()
        .map(|event| {
            RawValue::from_string(wire::event_frame(event).to_string()).map_err(Error::internal)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let next = page
        .events
        .last()
        .filter(|last| last.sequence < page.head)
        .map(|last| last.sequence.to_string());
    Ok(Json(EventPageJson {
        items,
        next,
        head_sequence: page.head,
        first_available: page.first_available,
    }))
}

pub async fn get(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MessageId>,
) -> Result<Json<MessageJson>, Problem> {
    Ok(Json(app.chat.message(who.user, id).await?.into()))
}

pub async fn edit(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MessageId>,
    JsonBody(request): JsonBody<EditRequest>,
) -> Result<Json<MessageJson>, Problem> {
    let message = app.chat.edit(who.user, id, request.content).await?;
    Ok(Json(message.into()))
}

pub async fn delete(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MessageId>,
) -> Result<StatusCode, Problem> {
    app.chat.delete(who.user, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn edits(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<MessageId>,
) -> Result<Json<Page<RevisionJson>>, Problem> {
    let revisions = app.chat.revisions(who.user, id).await?;
    Ok(Json(Page::whole(
        revisions.into_iter().map(Into::into).collect(),
    )))
}
