//! A small page to chat with from a browser, without a framework. Served from this binary.

use axum::{Router, response::IntoResponse, routing::get};
use http::header;

use crate::gateway::App;

/// No inline script, nothing from elsewhere. Pictures come as blobs, since an `img` can't send a token.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; \
     base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

pub fn routes() -> Router<App> {
    Router::new()
        .route(
            "/",
            get(|| file("text/html; charset=utf-8", include_str!("index.html"))),
        )
        .route(
            "/app.css",
            get(|| file("text/css; charset=utf-8", include_str!("app.css"))),
        )
        .route(
            "/app.js",
            get(|| file("text/javascript; charset=utf-8", include_str!("app.js"))),
        )
        .route(
            "/icon.svg",
            get(|| file("image/svg+xml", include_str!("icon.svg"))),
        )
}

async fn file(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    (
        [
            (header::CONTENT_TYPE, content_type),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::CACHE_CONTROL, "no-cache"),
        ],
        text,
    )
}
