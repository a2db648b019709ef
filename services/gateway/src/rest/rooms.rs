//! Rooms and their members.

use axum::{Json, extract::State};
use carillon_domain::{
    RoomId, UserId,
    room::{Role, RoomKind},
    services::NewRoom,
};
use http::{HeaderName, StatusCode, header};

use super::{next_cursor, page_limit};
use crate::{
    edge::{Caller, JsonBody, OptionalJsonBody, PathParams, Problem, QueryParams},
    gateway::App,
    wire::{
        ListQuery, MemberJson, MemberRequest, NewRoomRequest, Page, PlaceJson, RoomJson,
        RoomSummaryJson, RoomViewJson,
    },
};

pub async fn public(
    State(app): State<App>,
    Caller(_): Caller,
    QueryParams(query): QueryParams<ListQuery<RoomId>>,
) -> Result<Json<Page<RoomJson>>, Problem> {
    let limit = page_limit(query.limit, 20, 100)?;
    let rooms = app
        .chat
        .messages()
        .public_rooms(query.cursor, limit)
        .await?;
    let next = next_cursor(&rooms, limit, |room| room.id.to_string());
    Ok(Json(Page {
        items: rooms.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn create(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<NewRoomRequest>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<RoomViewJson>), Problem> {
    if request.kind == RoomKind::Direct {
        return Err(Problem::field(
            "type",
            "public, private, group or channel; direct rooms are made by POST /dm",
        ));
    }
    let room = NewRoom {
        kind: request.kind,
        name: request.name,
        description: request.description,
    };
    let view = app.chat.messages().create_room(who.user, room).await?;
    let location = format!("/api/v1/rooms/{}", view.room.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(RoomViewJson::new(view, who.user)),
    ))
}

pub async fn mine(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<RoomId>>,
) -> Result<Json<Page<RoomSummaryJson>>, Problem> {
    let limit = page_limit(query.limit, 20, 100)?;
    let rooms = app
        .chat
        .messages()
        .my_rooms(who.user, query.cursor, limit)
        .await?;
    let next = next_cursor(&rooms, limit, |summary| summary.room.id.to_string());
    Ok(Json(Page {
        items: rooms.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn get(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
) -> Result<Json<RoomViewJson>, Problem> {
    let view = app.chat.messages().room(who.user, room).await?;
    Ok(Json(RoomViewJson::new(view, who.user)))
}

pub async fn delete(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
) -> Result<StatusCode, Problem> {
    app.chat.messages().delete_room(who.user, room).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn join(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
) -> Result<Json<PlaceJson>, Problem> {
    let sequence = app.chat.messages().join(who.user, room).await?;
    Ok(Json(PlaceJson {
        room_id: room,
        sequence,
    }))
}

pub async fn leave(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
) -> Result<StatusCode, Problem> {
    app.chat.messages().leave(who.user, room).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn members(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<MemberJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let members = app
        .chat
        .messages()
        .members(who.user, room, query.cursor, limit)
        .await?;
    let next = next_cursor(&members, limit, |member| member.user.to_string());
    Ok(Json(Page {
        items: members.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn put_member(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams((room, user)): PathParams<(RoomId, UserId)>,
    OptionalJsonBody(request): OptionalJsonBody<MemberRequest>,
) -> Result<Json<MemberJson>, Problem> {
    let role = request.role.unwrap_or(Role::Member);
    let member = app
        .chat
        .messages()
        .put_member(who.user, room, user, role)
        .await?;
    Ok(Json(member.into()))
}

pub async fn remove_member(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams((room, user)): PathParams<(RoomId, UserId)>,
) -> Result<StatusCode, Problem> {
    app.chat
        .messages()
        .remove_member(who.user, room, user)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
