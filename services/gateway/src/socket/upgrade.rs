//! The handshake (RFC 6455) and who may make it (RT-01).

use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use carillon_domain::{ErrorCode, account::Identity};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::session;
use crate::{
    edge::{Problem, bearer, cookie},
    gateway::App,
    serve::ConnectionSlot,
};

/// `GET /api/v1/ws`.
pub async fn upgrade(state: State<App>, request: Request) -> Response {
    match try_upgrade(state, request).await {
        Ok(response) => response,
        Err(problem) if problem.status == StatusCode::UPGRADE_REQUIRED => {
            let version = [(header::SEC_WEBSOCKET_VERSION, "13")];
            (version, problem).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

async fn try_upgrade(State(app): State<App>, mut request: Request) -> Result<Response, Problem> {
    let ticket = ticket(request.uri().query().unwrap_or_default())?;
    if !app.origins.admits_socket(request.headers()) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            ErrorCode::PermissionDenied.as_str(),
            "pages of this origin may not open sockets here",
        ));
    }
    let accept = accept_key(request.headers())?;
    if app.is_draining() {
        let error = carillon_domain::Error::new(
            ErrorCode::Unavailable,
            "this gateway is stopping, connect again",
        );
        return Err(error.into());
    }
    let identity = identify(&app, request.headers(), ticket).await?;

    let upgraded = hyper::upgrade::on(&mut request);
    let slot = request.extensions_mut().remove::<ConnectionSlot>();
    tokio::spawn(async move {
        // The connection counts until the session ends.
        let _slot = slot;
        match upgraded.await {
            // Boxed where it is big: the task's own memory stays with an idle socket.
            Ok(upgraded) => session::run(app, upgraded, identity).await,
            Err(error) => tracing::debug!(%error, "the client went during the handshake"),
        }
    });

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// The ticket of the query, which may hold nothing else: URLs end up in logs, so that tokens don't belong there.
fn ticket(query: &str) -> Result<Option<String>, Problem> {
    let mut ticket = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match name.as_ref() {
            "ticket" if ticket.is_none() && !value.is_empty() => ticket = Some(value.into_owned()),
            "token" | "access_token" | "jwt" => {
                return Err(Problem::field(
                    name,
                    "tokens in URLs are refused: use the Authorization header, a ticket, or the auth message",
                ));
            }
            _ => {
                let name: String = name.chars().take(64).collect();
                return Err(Problem::field(name, "is not known"));
            }
        }
    }
    Ok(ticket)
}

/// Checks the handshake's headers; the value of `Sec-WebSocket-Accept`.
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let has = |name: header::HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .any(|value| value.trim().eq_ignore_ascii_case(wanted))
    };
    if !has(header::CONNECTION, "upgrade") || !has(header::UPGRADE, "websocket") {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            "this is a WebSocket endpoint",
        ));
    }
    if !has(header::SEC_WEBSOCKET_VERSION, "13") {
        return Err(Problem::new(
            StatusCode::UPGRADE_REQUIRED,
            "upgrade_required",
            "version 13 of the protocol is spoken here",
        ));
    }
    headers
        .get(header::SEC_WEBSOCKET_KEY)
        // 16 bytes in base64.
        .filter(|key| key.len() == 24)
        .and_then(|key| HeaderValue::from_str(&derive_accept_key(key.as_bytes())).ok())
        .ok_or_else(|| Problem::field("sec-websocket-key", "16 bytes in base64"))
}

/// Who it is, as far as the handshake says: the header, a ticket, or a cookie of our own pages. `None`: the first message will.
async fn identify(
    app: &App,
    headers: &HeaderMap,
    ticket: Option<String>,
) -> Result<Option<Identity>, Problem> {
    if let Some(token) = bearer(headers) {
        return Ok(Some(app.services.verifier.verify_access(token).await?));
    }
    if let Some(ticket) = ticket {
        return Ok(Some(app.services.auth.redeem_ticket(&ticket).await?));
    }
    if let Some(token) = cookie(headers, &app.options.cookie)
        && app.origins.admits_cookie(headers)
    {
        // A browser sends its cookie even when it is stale: the first message can still authenticate.
        return Ok(app.services.verifier.verify_access(token).await.ok());
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RT-01: a long-lived token in the URL is refused, under each of its usual names.
    #[test]
    fn the_url_carries_tickets_only() {
        assert_eq!(ticket("").unwrap(), None);
        assert_eq!(ticket("ticket=abc").unwrap().as_deref(), Some("abc"));
        for refused in [
            "token=x",
            "access_token=x",
            "jwt=x",
            "ticket=a&ticket=b",
            "x=1",
        ] {
            let problem = ticket(refused).unwrap_err();
            assert_eq!(problem.status, StatusCode::BAD_REQUEST, "{refused}");
            assert_eq!(problem.fields.len(), 1, "{refused}");
        }
    }

    #[test]
    fn the_key_of_the_rfc_is_accepted() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        assert_eq!(
            accept_key(&headers).unwrap(),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        headers.insert("sec-websocket-version", HeaderValue::from_static("8"));
        assert!(accept_key(&headers).is_err());
    }
}
