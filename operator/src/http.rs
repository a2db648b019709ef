//! `/health`, `/ready` and `/metrics` of the operator itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

#[derive(Clone)]
struct Shared {
    ready: Arc<AtomicBool>,
    metrics: Metrics,
}

/// Serves until `shutdown`. Alive: the loop turns. Ready: the API server has answered, as leader or as stand-by.
pub async fn serve(
    listener: TcpListener,
    ready: Arc<AtomicBool>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(answer_ready))
        .route("/metrics", get(answer_metrics))
        .with_state(Shared { ready, metrics });
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

async fn answer_ready(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the API server has not answered yet\n",
        )
    }
}

async fn answer_metrics(State(shared): State<Shared>) -> Result<String, StatusCode> {
    shared.metrics.render().map_err(|error| {
        tracing::error!(%error, "metrics can't be rendered");
        StatusCode::INTERNAL_SERVER_ERROR
    })
}
