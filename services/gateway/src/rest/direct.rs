//! Direct conversations.

use axum::{Json, extract::State};
use carillon_domain::{RoomId, UserId};
use http::StatusCode;

use super::{
    messages::{history_page, history_query},
    page_limit,
};
use crate::{
    edge::{Caller, JsonBody, PathParams, Problem, QueryParams},
    gateway::App,
    wire::{
        HistoryParameters, ListQuery, MessageJson, OpenDirectRequest, Page, RoomSummaryJson,
        RoomViewJson,
    },
};

pub async fn list(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<RoomId>>,
) -> Result<Json<Page<RoomSummaryJson>>, Problem> {
    let limit = page_limit(query.limit, 20, 100)?;
    let (rooms, next) = app.chat.direct_rooms(who.user, query.cursor, limit).await?;
    Ok(Json(Page {
        items: rooms.into_iter().map(Into::into).collect(),
        next: next.map(|room| room.to_string()),
    }))
}

/// Get or create: 201 when it was made now.
pub async fn open(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<OpenDirectRequest>,
) -> Result<(StatusCode, Json<RoomViewJson>), Problem> {
    let peer = request.recipient_id;
    let (view, made) = app.chat.open_direct(who.user, peer).await?;
    let status = if made {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok((status, Json(RoomViewJson::new(view, who.user))))
}

pub async fn history(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(peer): PathParams<UserId>,
    QueryParams(query): QueryParams<HistoryParameters>,
) -> Result<Json<Page<MessageJson>>, Problem> {
    let query = history_query(&query)?;
    let messages = app.chat.direct_history(who.user, peer, query).await?;
    Ok(Json(history_page(messages, query)))
}
