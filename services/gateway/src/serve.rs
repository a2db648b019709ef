//! The server loop: accepting, connections, draining.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

use crate::{
    edge::{PeerAddress, forget_idle_clients},
    gateway::App,
};

/// How long a client may take to send the head of a request, and a connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest head of a request; also hyper's read buffer, whose least is 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How often idle clients are dropped from the limits.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// After the drain time: closing handshakes may take this long.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub async fn serve(
    app: App,
    router: Router,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "gateway listens");
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let mut housekeeping = tokio::time::interval(FORGET_EVERY);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let builder = Arc::new(http_builder());

    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    if connections.len() >= app.options.max_connections {
                        drop(stream);
                        continue;
                    }
                    let service = router.clone().map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                        request.extensions_mut().insert(PeerAddress(peer));
                        request.map(axum::body::Body::new)
                    });
                    connections.spawn(connection(builder.clone(), stream, service, stop.clone(), abort.clone()));
                }
                Err(error) => pause_after(&error).await,
            },
            _ = housekeeping.tick() => forget_idle_clients(&app.limits),
            () = stop.cancelled() => break,
        }
    }

    drop(listener);
    app.start_draining();
    tracing::info!(connections = connections.len(), "gateway drains");
    let deadline = tokio::time::Instant::now() + app.options.drain;
    connections.close();
    let drain_all = async {
        if let Some(hub) = app.started_hub() {
            hub.drain(app.options.drain.mul_f64(0.9)).await;
            hub.all_closed().await;
        }
        connections.wait().await;
    };
    if tokio::time::timeout_at(deadline + LAST_WORDS, drain_all)
        .await
        .is_err()
    {
        tracing::warn!(connections = connections.len(), "connections were cut off");
    }
    abort.cancel();
    if let Some(hub) = app.started_hub() {
        hub.stop();
    }
    tracing::info!("gateway stopped");
    Ok(())
}

fn http_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES);
    builder
}

/// One connection: requests until it ends, an upgrade takes it over, or the gateway stops.
async fn connection<S>(
    builder: Arc<http1::Builder>,
    stream: TcpStream,
    service: S,
    stop: CancellationToken,
    abort: CancellationToken,
) where
    S: tower::Service<
            http::Request<hyper::body::Incoming>,
            Response = axum::response::Response,
            Error = std::convert::Infallible,
        > + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    // Small frames must not wait for each other.
    let _ = stream.set_nodelay(true);
    let serving = builder
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        // Errors here are clients that went away or sent no HTTP: nobody must act.
        result = serving.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            return;
        }
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        _ = serving => {}
        () = abort.cancelled() => {}
    }
}

/// Out of file descriptors: accepting again at once would only burn the processor.
async fn pause_after(error: &std::io::Error) {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    if matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    ) {
        return;
    }
    tracing::error!(%error, "cannot accept connections; trying again in a second");
    tokio::time::sleep(Duration::from_secs(1)).await;
}
