//! The layer around everything but CORS and the rest of refused bodies: identity of the request, limit, span, deadline, panics, problem
//! bodies, headers, metrics, access log.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use carillon_domain::limit::Subject;
use carillon_telemetry::propagation;
use futures::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::{ClientAddress, Problem, caller::came_by_tls, limits::Allowance};
use crate::{gateway::App, metrics};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Headers of an answer that stay when its body becomes a problem.
const KEPT: [HeaderName; 4] = [
    header::ALLOW,
    header::CONTENT_RANGE,
    header::SEC_WEBSOCKET_VERSION,
    header::VARY,
];

/// What is known of a request before anything looked at it.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Where it came from.
    pub client: ClientAddress,
    /// What is left of its user's limit, once the user is known.
    pub of_user: Arc<OnceLock<Allowance>>,
}

/// Passes a request on. See the module's documentation.
pub async fn pass(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = known_method(request.method());
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    let request_id = request_id(request.headers());
    let trusted = &app.options.trusted_proxies;
    let client = ClientAddress::of(request.headers(), request.extensions(), trusted);
    let tls = app.options.tls || came_by_tls(request.headers(), request.extensions(), trusted);

    let span = server_span(method, &route, request.headers());
    let trace_id = span
        .in_scope(propagation::trace_id)
        .unwrap_or_else(|| request_id.clone());
    let of_user = Arc::new(OnceLock::new());
    request.extensions_mut().insert(RequestContext {
        client,
        of_user: of_user.clone(),
    });

    let (of_address, taken) = take_allowance(&app, &route, client)
        .instrument(span.clone())
        .await;
    let mut response = match taken {
        Ok(()) => {
            guarded(&app, &route, request, next)
                .instrument(span.clone())
                .await
        }
        Err(error) => Problem::from(error).into_response(),
    };

    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        let kept = KEPT.map(|name| (name.clone(), response.headers().get(name).cloned()));
        response = problem.render(&trace_id);
        for (name, value) in kept {
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
    }
    let status = response.status();
    let headers = response.headers_mut();
    security_headers(headers, tls);
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        headers.insert(REQUEST_ID, value);
    }
    let allowances: Vec<Allowance> = of_address
        .into_iter()
        .chain(of_user.get().copied())
        .collect();
    limit_headers(headers, &allowances);
    if app.is_draining() && status != StatusCode::SWITCHING_PROTOCOLS {
        // The next request shall go elsewhere.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    record(
        &span,
        method,
        &route,
        status,
        started,
        &request_id,
        &trace_id,
    );
    response
}

/// Runs the rest of the stack; a panic or an overlong wait becomes an answer too.
async fn guarded(app: &App, route: &str, request: Request, next: Next) -> Response {
    // An upload waits for the client's network, which may be slow without being stuck.
    let limit = if route.ends_with("/uploads") {
        app.options.request_timeout * 4
    } else {
        app.options.request_timeout
    };
    let run = AssertUnwindSafe(next.run(request)).catch_unwind();
    match tokio::time::timeout(limit, run).await {
        Ok(Ok(response)) => response,
        Ok(Err(_panic)) => {
            // The panic hook has logged its text; none of it is told to strangers.
            tracing::error!(route, "a handler panicked");
            Problem::internal().into_response()
        }
        Err(_elapsed) => Problem::new(
            StatusCode::GATEWAY_TIMEOUT,
            carillon_domain::ErrorCode::DeadlineExceeded.as_str(),
            "it took too long; try again with the same ids",
        )
        .into_response(),
    }
}

fn server_span(method: &'static str, route: &str, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        "http.request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = tracing::field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = tracing::field::Empty,
    );
    if let Some(parent) = headers.get("traceparent").and_then(|v| v.to_str().ok()) {
        propagation::set_parent(&span, parent);
    }
    span
}

fn record(
    span: &Span,
    method: &'static str,
    route: &str,
    status: StatusCode,
    started: Instant,
    request_id: &str,
    trace_id: &str,
) {
    let duration = started.elapsed();
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    metrics::HTTP_REQUESTS
        .with_label_values(&[method, route, status.as_str()])
        .inc();
    metrics::HTTP_DURATION
        .with_label_values(&[method, route])
        .observe(duration.as_secs_f64());
    // Probes come every few seconds and say nothing.
    if matches!(route, "/health" | "/ready") && status.is_success() {
        return;
    }
    tracing::info!(
        target: "carillon_gateway::access",
        parent: span,
        method,
        route,
        status = status.as_u16(),
        duration_ms = duration.as_secs_f64() * 1000.0,
        request_id,
        trace_id,
        "request"
    );
}

/// A fixed set of method names: a stranger's invention must not become a label.
fn known_method(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => "_OTHER",
    }
}

/// The client's id if it is a reasonable one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (1..=64).contains(&id.len())
                && id
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        })
        .map_or_else(|| Uuid::now_v7().simple().to_string(), str::to_owned)
}

// === limits ===

/// Routes that check a secret that could be guessed.
const AUTH_ROUTES: [&str; 11] = [
    "/api/v1/auth/username",
    "/api/v1/auth/email",
    "/api/v1/auth/password",
    "/api/v1/auth/register",
    "/api/v1/auth/login",
    "/api/v1/auth/refresh",
    "/api/v1/auth/otp/send",
    "/api/v1/auth/otp/verify",
    "/api/v1/auth/email/verify",
    "/api/v1/auth/password/forgot",
    "/api/v1/auth/password/reset",
];

async fn take_allowance(
    app: &App,
    route: &str,
    client: ClientAddress,
) -> (Option<Allowance>, carillon_domain::Result<()>) {
    // Probes must not fail because of a busy neighbour behind the same address.
    if matches!(route, "/health" | "/ready") {
        return (None, Ok(()));
    }
    let subject = Subject::at(client.0);
    if AUTH_ROUTES.contains(&route) {
        app.limits.auth.take(subject).await
    } else {
        app.limits.requests.take(subject).await
    }
}

/// `RateLimit` and `RateLimit-Policy` as the IETF's draft has them since its eighth version, each limit by its name; and the three
/// fields of the versions before, which most clients know, for the limit that is nearest.
fn limit_headers(headers: &mut HeaderMap, allowances: &[Allowance]) {
    let Some(nearest) = allowances
        .iter()
        .min_by_key(|allowance| allowance.grant.remaining)
    else {
        return;
    };
    let mut insert = |name: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    let reset = |allowance: &Allowance| allowance.grant.reset.as_secs_f64().ceil();
    let each = |text: &dyn Fn(&Allowance) -> String| {
        let texts: Vec<String> = allowances.iter().map(text).collect();
        texts.join(", ")
    };
    insert("ratelimit-limit", nearest.grant.limit.to_string());
    insert("ratelimit-remaining", nearest.grant.remaining.to_string());
    insert("ratelimit-reset", reset(nearest).to_string());
    insert(
        "ratelimit-policy",
        each(&|Allowance { policy, .. }| {
            let (name, limit, window) = (policy.name, policy.limit, policy.window.as_secs());
            format!(r#""{name}";q={limit};w={window}"#)
        }),
    );
    insert(
        "ratelimit",
        each(&|allowance| {
            let (name, left) = (allowance.policy.name, allowance.grant.remaining);
            format!(r#""{name}";r={left};t={}"#, reset(allowance))
        }),
    );
}

// === headers ===

fn security_headers(headers: &mut HeaderMap, tls: bool) {
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-site",
        ),
        (
            HeaderName::from_static("permissions-policy"),
            "geolocation=(), camera=(), microphone=()",
        ),
        (HeaderName::from_static("api-version"), "1"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // Pages set their own policy; answers of the API are no documents.
    headers
        .entry(header::CONTENT_SECURITY_POLICY)
        .or_insert(HeaderValue::from_static(
            "default-src 'none'; frame-ancestors 'none'",
        ));
    if !headers.contains_key(header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if tls {
        headers.insert(
            header::STRICT_TRANSPORT_SECURITY,
            HeaderValue::from_static("max-age=31536000; includeSubDomains"),
        );
    }
}
