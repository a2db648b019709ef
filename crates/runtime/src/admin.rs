//! The admin server: `/health`, `/ready` and `/metrics` on a port that is not the public one.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ready::Readiness;

/// Serves until `stop` is cancelled. Keeps answering while the process drains, so that probes and scrapes see it.
pub async fn serve(
    listener: TcpListener,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    // Probes and scrapers are few; a stranger who gets here must not exhaust the process.
    let slots = Arc::new(tokio::sync::Semaphore::new(64));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, for example: not a reason to stop, and not to spin either.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            continue;
        };
        let readiness = readiness.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, &readiness));
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "an admin connection ended");
            }
            drop(slot);
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    readiness: &Readiness,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return Ok(plain(
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "use GET\n",
        ));
    }
    Ok(match request.uri().path() {
        // Alive means that the loop turns; dependencies are readiness.
        "/health" => plain(StatusCode::OK, "application/json", "{\"status\":\"ok\"}\n"),
        "/ready" => {
            let status = readiness.status().await;
            let code = if status.is_ready() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            plain(
                code,
                "application/json",
                serde_json::to_vec(&status).unwrap_or_default(),
            )
        }
        "/metrics" => {
            // Readiness is a metric too, and nobody else may have asked for it.
            readiness.status().await;
            plain(
                StatusCode::OK,
                carillon_telemetry::metrics::CONTENT_TYPE,
                carillon_telemetry::metrics::render(),
            )
        }
        _ => plain(
            StatusCode::NOT_FOUND,
            "text/plain",
            "/health, /ready or /metrics\n",
        ),
    })
}

fn plain(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    response
}
