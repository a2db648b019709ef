//! Profiles, presence, push targets.

use axum::{Json, extract::State};
use carillon_domain::{UserId, presence::PresenceState, services::NewPushTarget};
use http::StatusCode;

use super::parse_ids;
use crate::{
    edge::{Caller, JsonBody, PathParams, Problem, QueryParams},
    gateway::App,
    hub,
    wire::{
        DeviceRequest, IdsParameters, Page, PresenceJson, PresenceRequest, UserJson,
        UsersParameters,
    },
};

pub async fn user(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(id): PathParams<UserId>,
) -> Result<Json<UserJson>, Problem> {
    let found = app.services.auth.users(Some(who.user), &[id]).await?;
    found
        .into_iter()
        .next()
        .map(|user| Json(user.into()))
        .ok_or_else(|| Problem::not_found("user"))
}

/// Several profiles at once; unknown ids are left out.
pub async fn users(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<IdsParameters>,
) -> Result<Json<Page<UserJson>>, Problem> {
    let ids: Vec<UserId> = parse_ids(&query.ids, "ids", 100)?;
    let found = app.services.auth.users(Some(who.user), &ids).await?;
    Ok(Json(Page::whole(
        found.into_iter().map(Into::into).collect(),
    )))
}

pub async fn by_username(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(username): PathParams<String>,
) -> Result<Json<UserJson>, Problem> {
    app.services
        .auth
        .user_by_name(Some(who.user), &username)
        .await?
        .map(|user| Json(user.into()))
        .ok_or_else(|| Problem::not_found("user"))
}

pub async fn presence(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<UsersParameters>,
) -> Result<Json<Page<PresenceJson>>, Problem> {
    let ids: Vec<UserId> = parse_ids(&query.users, "users", 100)?;
    let states = app.services.presence.visible(who.user, &ids).await?;
    Ok(Json(Page::whole(
        states.into_iter().map(Into::into).collect(),
    )))
}

pub async fn set_presence(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<PresenceRequest>,
) -> Result<StatusCode, Problem> {
    if request.state == PresenceState::Offline {
        return Err(Problem::field("state", "online or away"));
    }
    // The gateways that hold the device's sockets hold its leases.
    hub::tell_presence_choice(
        app.services.bus.as_ref(),
        who.user,
        who.device,
        request.state,
    )
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn add_device(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<DeviceRequest>,
) -> Result<StatusCode, Problem> {
    let target = NewPushTarget {
        provider: request.provider,
        token: request.token,
        p256dh: request.p256dh,
        auth: request.auth,
    };
    app.services.notifications.register(&who, target).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn remove_device(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<StatusCode, Problem> {
    app.services.notifications.unregister(&who).await?;
    Ok(StatusCode::NO_CONTENT)
}
