//! Accounts, logins, sessions.

use axum::{Extension, Json, extract::State};
use carillon_domain::{
    DeviceId,
    services::{Login, NewAccount},
};
use http::{HeaderMap, StatusCode};

use crate::{
    edge::{Caller, JsonBody, PathParams, Problem, RequestContext, client_info},
    gateway::App,
    wire::{
        LoginRequest, MeJson, OtpSendRequest, OtpVerifyRequest, Page, RefreshRequest,
        RegisterRequest, SessionJson, TicketJson, TokensJson, UserJson,
    },
};

/// Seconds that a ticket may be used: part of the contract of [`carillon_domain::services::AuthService::issue_ticket`].
const TICKET_SECONDS: u64 = 30;

pub async fn register(
    State(app): State<App>,
    JsonBody(request): JsonBody<RegisterRequest>,
) -> Result<(StatusCode, Json<UserJson>), Problem> {
    let user = app
        .services
        .auth
        .register(NewAccount {
            username: request.username,
            email: request.email,
            password: request.password,
        })
        .await?;
    Ok((StatusCode::CREATED, Json(user.into())))
}

pub async fn login(
    State(app): State<App>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<LoginRequest>,
) -> Result<Json<TokensJson>, Problem> {
    let mut names = [request.email, request.username, request.login]
        .into_iter()
        .flatten();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(Problem::field("email", "give one of email and username"));
    };
    let client = client_info(&headers, &context, request.device)?;
    let login = Login {
        login: name,
        password: request.password,
    };
    let tokens = app.services.auth.login(login, client).await?;
    Ok(Json(tokens.into()))
}

pub async fn refresh(
    State(app): State<App>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<RefreshRequest>,
) -> Result<Json<TokensJson>, Problem> {
    let client = client_info(&headers, &context, None)?;
    let auth = &app.services.auth;
    let tokens = auth.refresh(&request.refresh_token, client).await?;
    Ok(Json(tokens.into()))
}

pub async fn logout(State(app): State<App>, Caller(who): Caller) -> Result<StatusCode, Problem> {
    app.services.auth.logout(&who).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn logout_all(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<Json<serde_json::Value>, Problem> {
    let ended = app.services.auth.logout_all(&who).await?;
    Ok(Json(serde_json::json!({ "sessions_ended": ended })))
}

pub async fn me(State(app): State<App>, Caller(who): Caller) -> Result<Json<MeJson>, Problem> {
    let (user, email) = app.services.auth.me(&who).await?;
    Ok(Json(MeJson {
        user: user.into(),
        email,
    }))
}

pub async fn sessions(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<Json<Page<SessionJson>>, Problem> {
    let sessions = app.services.auth.sessions(&who).await?;
    Ok(Json(Page::whole(
        sessions
            .into_iter()
            .map(|session| SessionJson::new(session, who.device))
            .collect(),
    )))
}

pub async fn end_session(
    State(app): State<App>,
    Caller(who): Caller,
    PathParams(device): PathParams<DeviceId>,
) -> Result<StatusCode, Problem> {
    app.services.auth.end_session(&who, device).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn send_otp(
    State(app): State<App>,
    JsonBody(request): JsonBody<OtpSendRequest>,
) -> Result<StatusCode, Problem> {
    app.services.auth.send_otp(&request.phone_number).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn verify_otp(
    State(app): State<App>,
    Extension(context): Extension<RequestContext>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<OtpVerifyRequest>,
) -> Result<Json<TokensJson>, Problem> {
    let client = client_info(&headers, &context, request.device)?;
    let tokens = app
        .services
        .auth
        .verify_otp(&request.phone_number, &request.otp_code, client)
        .await?;
    Ok(Json(tokens.into()))
}

pub async fn ticket(
    State(app): State<App>,
    Caller(who): Caller,
) -> Result<(StatusCode, Json<TicketJson>), Problem> {
    let ticket = app.services.auth.issue_ticket(&who).await?;
    Ok((
        StatusCode::CREATED,
        Json(TicketJson {
            ticket,
            expires_in: TICKET_SECONDS,
        }),
    ))
}
