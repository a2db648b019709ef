//! Rooms and their members.

use axum::{Json, extract::State};
use carillon_domain::{
    RoomId, UserId,
    room::{Role, RoomKind, RoomRules},
    services::{NewRoom, Restriction, RoomChange},
};
use http::{HeaderName, StatusCode, header};

use super::{next_cursor, page_limit};
use crate::{
    edge::{Caller, JsonBody, OptionalJsonBody, PathParams, Problem, QueryParams},
    gateway::App,
    wire::{
        InRoomJson, InviteRequest, ListQuery, MemberJson, MemberRequest, MuteRequest,
        NewRoomRequest, Page, PlaceJson, ReceiptJson, RestrictedJson, RoomJson, RoomPatch,
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
        rules: request.rules.applied_to(RoomRules::default()),
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

/// A merge patch: two at the same moment may each see the rules before the other.
pub async fn change(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    JsonBody(patch): JsonBody<RoomPatch>,
) -> Result<Json<RoomViewJson>, Problem> {
    let messages = app.chat.messages();
    let rules = match patch.rules {
        Some(rules) => {
            let now = messages.room(who.user, room).await?;
            Some(rules.applied_to(now.room.rules))
        }
        None => None,
    };
    let change = RoomChange {
        name: patch.name,
        description: patch.description,
        rules,
    };
    let view = messages.change_room(who.user, room, change).await?;
    Ok(Json(RoomViewJson::new(view, who.user)))
}

pub async fn invite(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    JsonBody(request): JsonBody<InviteRequest>,
) -> Result<(StatusCode, Json<InRoomJson>), Problem> {
    let user = request.user_id;
    app.chat.messages().invite(who.user, room, user).await?;
    let invited = InRoomJson {
        room_id: room,
        user_id: user,
    };
    Ok((StatusCode::CREATED, Json(invited)))
}

pub async fn invites(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<RoomId>>,
) -> Result<Json<Page<RoomJson>>, Problem> {
    let limit = page_limit(query.limit, 20, 100)?;
    let rooms = app
        .chat
        .messages()
        .invites(who.user, query.cursor, limit)
        .await?;
    let next = next_cursor(&rooms, limit, |room| room.id.to_string());
    Ok(Json(Page {
        items: rooms.into_iter().map(Into::into).collect(),
        next,
    }))
}

async fn restrict(
    app: &App,
    actor: UserId,
    (room, user): (RoomId, UserId),
    restriction: Restriction,
) -> Result<StatusCode, Problem> {
    app.chat
        .messages()
        .restrict(actor, room, user, restriction)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn ban(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(place): PathParams<(RoomId, UserId)>,
) -> Result<StatusCode, Problem> {
    restrict(&app, who.user, place, Restriction::Ban).await
}

pub async fn unban(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(place): PathParams<(RoomId, UserId)>,
) -> Result<StatusCode, Problem> {
    restrict(&app, who.user, place, Restriction::Unban).await
}

pub async fn mute(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(place): PathParams<(RoomId, UserId)>,
    OptionalJsonBody(request): OptionalJsonBody<MuteRequest>,
) -> Result<StatusCode, Problem> {
    let until = request.until.map(|until| until.0);
    restrict(&app, who.user, place, Restriction::Mute { until }).await
}

pub async fn unmute(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(place): PathParams<(RoomId, UserId)>,
) -> Result<StatusCode, Problem> {
    restrict(&app, who.user, place, Restriction::Unmute).await
}

pub async fn restrictions(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<RestrictedJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let restricted = app
        .chat
        .messages()
        .restrictions(who.user, room, query.cursor, limit)
        .await?;
    let next = next_cursor(&restricted, limit, |restricted| restricted.user.to_string());
    Ok(Json(Page {
        items: restricted.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn receipts(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(room): PathParams<RoomId>,
    QueryParams(query): QueryParams<ListQuery<UserId>>,
) -> Result<Json<Page<ReceiptJson>>, Problem> {
    let limit = page_limit(query.limit, 100, 1000)?;
    let receipts = app
        .chat
        .messages()
        .receipts(who.user, room, query.cursor, limit)
        .await?;
    let next = next_cursor(&receipts, limit, |receipt| receipt.user.to_string());
    Ok(Json(Page {
        items: receipts.into_iter().map(Into::into).collect(),
        next,
    }))
}
