//! Health, readiness and keys.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::get};
use carillon_domain::ports::Probe;
use futures::future;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::sync::Mutex;

use crate::gateway::App;

/// A dependency that takes longer than this to answer is down.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// An answer is kept this long, so that a stranger can't load the stores through `/ready`.
const KEPT: Duration = Duration::from_secs(1);

pub fn routes() -> Router<App> {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/.well-known/jwks.json", get(jwks))
}

/// Alive: the loop turns. Asks nobody.
async fn health() -> Json<serde_json::Value> {
    Json(serde_json::json!({ "status": "ok" }))
}

async fn ready(State(app): State<App>) -> impl IntoResponse {
    let dependencies = app.readiness.check().await;
    let draining = app.is_draining();
    let up = !draining && dependencies.iter().all(|d| d.status == "up");
    let status = match (up, draining) {
        (true, _) => "ready",
        (false, true) => "draining",
        (false, false) => "unready",
    };
    let code = if up {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        code,
        Json(serde_json::json!({ "status": status, "dependencies": dependencies })),
    )
}

async fn jwks(State(app): State<App>) -> impl IntoResponse {
    let jwks = app.jwks.borrow().clone();
    (
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "public, max-age=60"),
        ],
        jwks,
    )
}

/// The dependencies' states, asked at most once a second.
pub struct Readiness {
    probes: Vec<Arc<dyn Probe>>,
    // Held while asking, on purpose: everybody who asks meanwhile gets the same answer.
    last: Mutex<Option<(Instant, Vec<Dependency>)>>,
}

#[derive(Clone, Serialize)]
pub struct Dependency {
    name: &'static str,
    status: &'static str,
    latency_ms: f64,
}

impl Readiness {
    pub fn new(probes: Vec<Arc<dyn Probe>>) -> Self {
        Self {
            probes,
            last: Mutex::new(None),
        }
    }

    async fn check(&self) -> Vec<Dependency> {
        let mut last = self.last.lock().await;
        if let Some((at, states)) = &*last
            && at.elapsed() < KEPT
        {
            return states.clone();
        }
        let states = future::join_all(self.probes.iter().map(ask)).await;
        *last = Some((Instant::now(), states.clone()));
        states
    }
}

async fn ask(probe: &Arc<dyn Probe>) -> Dependency {
    let started = Instant::now();
    let answer = tokio::time::timeout(PROBE_TIMEOUT, probe.check()).await;
    let status = match answer {
        Ok(Ok(())) => "up",
        Ok(Err(error)) => {
            tracing::warn!(dependency = probe.name(), %error, cause = error.cause_chain(), "not ready");
            "down"
        }
        Err(_) => {
            tracing::warn!(dependency = probe.name(), "not ready: no answer in time");
            "down"
        }
    };
    Dependency {
        name: probe.name(),
        status,
        latency_ms: (started.elapsed().as_secs_f64() * 1e5).round() / 100.0,
    }
}
