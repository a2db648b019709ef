//! `/health`, `/ready` and `/metrics` of the operator itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Probes and scrapers are few; more connections at once than this are closed.
const MAX_CONNECTIONS: usize = 64;

/// Serves until `shutdown`. Alive: the loop turns. Ready: the API server has answered, as leader or as stand-by.
pub async fn serve(
    listener: TcpListener,
    ready: Arc<AtomicBool>,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, for example: no reason to stop, and none to spin.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let (ready, metrics) = (ready.clone(), metrics.clone());
        tokio::spawn(async move {
            let service =
                service_fn(|request| std::future::ready(answer(&request, &ready, &metrics)));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended");
            }
            drop(slot);
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    ready: &AtomicBool,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match request.uri().path() {
        "/health" => (StatusCode::OK, "ok\n".to_owned()),
        "/ready" if ready.load(Ordering::Relaxed) => (StatusCode::OK, "ok\n".to_owned()),
        "/ready" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the API server has not answered yet\n".to_owned(),
        ),
        "/metrics" => match metrics.render() {
            Ok(text) => (StatusCode::OK, text),
            Err(error) => {
                tracing::error!(%error, "metrics can't be rendered");
                (StatusCode::INTERNAL_SERVER_ERROR, String::new())
            }
        },
        _ => (
            StatusCode::NOT_FOUND,
            "/health, /ready or /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    // Prometheus takes nothing of which it isn't told the format; the other answers are text as well.
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(prometheus::TEXT_FORMAT),
    );
    Ok(response)
}
