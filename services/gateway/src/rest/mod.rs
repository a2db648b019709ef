//! REST: every route, and the layers around them.

mod account;
mod auth;
mod contacts;
mod direct;
mod export;
mod media;
mod messages;
mod outside;
mod people;
mod rooms;
mod settings;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{delete, get, patch, post, put},
};
use http::StatusCode;
use tower_http::compression::{
    CompressionLayer,
    predicate::{NotForContentType, Predicate, SizeAbove},
};

pub use export::Exports;
pub use outside::Readiness;

use crate::{
    edge::{self, Problem},
    gateway::App,
    page, socket,
};

/// Every route with its layers.
pub fn router(app: App) -> Router {
    // Images and the like are compressed already, and a compressed range would be another range.
    let compressed = Router::new()
        .nest("/api/v1", api())
        .merge(outside::routes())
        .merge(page::routes())
        .layer(CompressionLayer::new().compress_when(
            SizeAbove::new(860).and(NotForContentType::new("application/problem+json")),
        ));
    let plain = Router::new()
        .route(
            "/api/v1/uploads",
            // Room for the form around the file.
            post(media::upload).layer(DefaultBodyLimit::max(
                app.options.max_upload_bytes.saturating_add(16 * 1024),
            )),
        )
        .route("/api/v1/media/{id}", get(media::download))
        .route("/api/v1/ws", get(socket::upgrade));
    compressed
        .merge(plain)
        .fallback(async || Problem::not_found("page"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "this method is not offered here",
            )
        })
        .layer(middleware::from_fn_with_state(app.clone(), edge::pass))
        // Outside of the deadline: an answer that stands isn't replaced because its client takes long to hear it.
        .layer(middleware::from_fn_with_state(app.clone(), edge::read_rest))
        // Outermost: a page must be able to read every answer, also those that are made or remade on the way out. Preflights are
        // answered here and go no further.
        .layer(edge::cors(app.origins.clone()))
        .with_state(app)
}

fn api() -> Router<App> {
    Router::new()
        .route("/auth/register", post(auth::register))
        .route("/auth/login", post(auth::login))
        .route("/auth/refresh", post(auth::refresh))
        .route("/auth/logout", post(auth::logout))
        .route("/auth/logout-all", post(auth::logout_all))
        .route(
            "/auth/me",
            get(auth::me)
                .patch(account::change_profile)
                .delete(account::erase),
        )
        .route(
            "/users/me",
            get(auth::me)
                .patch(account::change_profile)
                .delete(account::erase),
        )
        .route(
            "/users/me/privacy",
            get(settings::privacy).patch(settings::change_privacy),
        )
        .route(
            "/users/me/settings",
            get(settings::settings).patch(settings::change_settings),
        )
        .route("/users/search", get(account::search))
        .route("/auth/sessions", get(auth::sessions))
        .route("/auth/sessions/{id}", delete(auth::end_session))
        .route("/auth/login-history", get(account::login_history))
        .route("/auth/security-events", get(account::security_events))
        .route("/auth/me/export", get(export::export))
        .route("/auth/username", patch(account::change_username))
        .route("/auth/email", patch(account::change_email))
        .route("/auth/password", patch(account::change_password))
        .route("/auth/otp/send", post(auth::send_otp))
        .route("/auth/otp/verify", post(auth::verify_otp))
        .route("/auth/email/verify", post(account::verify_email))
        .route("/auth/password/forgot", post(account::forgot_password))
        .route("/auth/password/reset", post(account::reset_password))
        .route("/auth/ws-ticket", post(auth::ticket))
        .route("/users", get(people::users))
        .route("/users/{id}", get(people::user))
        .route("/users/by-username/{username}", get(people::by_username))
        .route("/contacts", get(contacts::list))
        .route(
            "/contacts/{user_id}",
            get(contacts::get)
                .put(contacts::put)
                .delete(contacts::remove),
        )
        .route("/blocks", get(contacts::blocks))
        .route(
            "/blocks/{user_id}",
            put(contacts::block).delete(contacts::unblock),
        )
        .route("/presence", get(people::presence))
        .route("/presence/me", put(people::set_presence))
        .route(
            "/devices",
            post(people::add_device).delete(people::remove_device),
        )
        .route("/rooms", get(rooms::public).post(rooms::create))
        .route("/rooms/me", get(rooms::mine))
        .route("/rooms/invites", get(rooms::invites))
        .route(
            "/rooms/{id}",
            get(rooms::get).patch(rooms::change).delete(rooms::delete),
        )
        .route("/rooms/{id}/join", post(rooms::join))
        .route("/rooms/{id}/leave", post(rooms::leave))
        .route("/rooms/{id}/members", get(rooms::members))
        .route(
            "/rooms/{id}/members/{user_id}",
            put(rooms::put_member).delete(rooms::remove_member),
        )
        .route(
            "/rooms/{id}/messages",
            get(messages::history).post(messages::send),
        )
        .route("/rooms/{id}/invites", post(rooms::invite))
        .route("/rooms/{id}/restrictions", get(rooms::restrictions))
        .route(
            "/rooms/{id}/bans/{user_id}",
            put(rooms::ban).delete(rooms::unban),
        )
        .route(
            "/rooms/{id}/mutes/{user_id}",
            put(rooms::mute).delete(rooms::unmute),
        )
        .route("/rooms/{id}/receipts", get(rooms::receipts))
        .route("/rooms/{id}/delivered", post(messages::delivered))
        .route("/rooms/{id}/read", post(messages::read))
        .route("/rooms/{id}/events", get(messages::events))
        .route("/dm", get(direct::list).post(direct::open))
        .route("/dm/{user_id}/messages", get(direct::history))
        .route(
            "/messages/{id}",
            get(messages::get)
                .patch(messages::edit)
                .delete(messages::delete),
        )
        .route("/messages/{id}/edits", get(messages::edits))
        .route("/messages/{id}/receipts", get(messages::receipts))
}

/// A limit of a list: `default` when absent, refused outside `1..=max`.
fn page_limit(limit: Option<usize>, default: usize, max: usize) -> Result<usize, Problem> {
    match limit {
        None => Ok(default),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(_) => Err(Problem::field("limit", format!("1 to {max}"))),
    }
}

/// The cursor after a full page: there may be more.
fn next_cursor<T>(items: &[T], limit: usize, cursor: impl Fn(&T) -> String) -> Option<String> {
    (items.len() >= limit)
        .then(|| items.last().map(cursor))
        .flatten()
}

/// Ids separated by commas.
fn parse_ids<I: std::str::FromStr>(
    text: &str,
    field: &'static str,
    max: usize,
) -> Result<Vec<I>, Problem> {
    let ids: Vec<I> = text
        .split(',')
        .map(str::trim)
        .filter(|id| !id.is_empty())
        .map(|id| {
            id.parse()
                .map_err(|_| Problem::field(field, "expected UUIDs, separated by commas"))
        })
        .collect::<Result<_, _>>()?;
    if ids.is_empty() || ids.len() > max {
        return Err(Problem::field(field, format!("1 to {max} ids")));
    }
    Ok(ids)
}
