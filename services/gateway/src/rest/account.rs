//! What people do with their own accounts: history, profile, changes of names and passwords; and how they look for others.

use axum::{Extension, Json, extract::State};
use carillon_domain::{
    account::{Identity, ProfileChange},
    security::History,
};
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use super::{next_cursor, page_limit};
use crate::{
    edge::{Caller, JsonBody, OptionalJsonBody, Problem, QueryParams, RequestContext, client_info},
    gateway::App,
    wire::{
        EmailRequest, EmailVerifyRequest, EraseRequest, ListQuery, Page, PasswordForgotRequest,
        PasswordRequest, PasswordResetRequest, ProfilePatch, SearchParameters, SecurityEventJson,
        UserJson, UsernameRequest,
    },
};

pub async fn login_history(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<Uuid>>,
) -> Result<Json<Page<SecurityEventJson>>, Problem> {
    history(&app, &who, History::Logins, query).await
}

pub async fn security_events(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<ListQuery<Uuid>>,
) -> Result<Json<Page<SecurityEventJson>>, Problem> {
    history(&app, &who, History::Security, query).await
}

async fn history(
    app: &App,
    who: &Identity,
    history: History,
    query: ListQuery<Uuid>,
) -> Result<Json<Page<SecurityEventJson>>, Problem> {
    let limit = page_limit(query.limit, 50, 100)?;
    let accounts = &app.services.accounts;
    let events = accounts.history(who, history, query.cursor, limit).await?;
    let next = next_cursor(&events, limit, |event| event.id.to_string());
    Ok(Json(Page {
        items: events.into_iter().map(Into::into).collect(),
        next,
    }))
}

pub async fn change_profile(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(patch): JsonBody<ProfilePatch>,
) -> Result<Json<UserJson>, Problem> {
    let change = ProfileChange {
        display_name: patch.display_name,
        bio: patch.bio,
        status: patch.status,
    };
    let user = app.services.accounts.change_profile(&who, change).await?;
    Ok(Json(user.into()))
}

pub async fn search(
    State(app): State<App>,
    Caller(who): Caller,
    QueryParams(query): QueryParams<SearchParameters>,
) -> Result<Json<Page<UserJson>>, Problem> {
    let limit = page_limit(query.limit, 20, 50)?;
    let found = app
        .services
        .accounts
        .search(&who, &query.q, query.cursor.as_deref(), limit)
        .await?;
    Ok(Json(Page {
        items: found.users.into_iter().map(Into::into).collect(),
        next: found.next,
    }))
}

pub async fn change_username(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<UsernameRequest>,
) -> Result<Json<UserJson>, Problem> {
    let accounts = &app.services.accounts;
    let user = accounts
        .change_username(&who, &request.username, request.password)
        .await?;
    Ok(Json(user.into()))
}

pub async fn change_email(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<EmailRequest>,
) -> Result<StatusCode, Problem> {
    let accounts = &app.services.accounts;
    accounts
        .change_email(&who, &request.email, request.password)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn change_password(
    State(app): State<App>,
    Caller(who): Caller,
    JsonBody(request): JsonBody<PasswordRequest>,
) -> Result<StatusCode, Problem> {
    let accounts = &app.services.accounts;
    accounts
        .change_password(&who, request.current_password, request.new_password)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn verify_email(
    State(app): State<App>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<EmailVerifyRequest>,
) -> Result<StatusCode, Problem> {
    let client = client_info(&headers, &context, None)?;
    let accounts = &app.services.accounts;
    accounts.verify_email(&request.token, client).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn forgot_password(
    State(app): State<App>,
    JsonBody(request): JsonBody<PasswordForgotRequest>,
) -> Result<StatusCode, Problem> {
    app.services
        .accounts
        .forgot_password(&request.email)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn reset_password(
    State(app): State<App>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<PasswordResetRequest>,
) -> Result<StatusCode, Problem> {
    let client = client_info(&headers, &context, None)?;
    let accounts = &app.services.accounts;
    accounts
        .reset_password(&request.token, request.new_password, client)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn erase(
    State(app): State<App>,
    Caller(who): Caller,
    OptionalJsonBody(request): OptionalJsonBody<EraseRequest>,
) -> Result<StatusCode, Problem> {
    app.services.accounts.erase(&who, request.password).await?;
    Ok(StatusCode::NO_CONTENT)
}
