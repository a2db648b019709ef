//! The server loop: accepting, connections, draining.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tower::ServiceExt;

use crate::{edge::PeerAddress, gateway::App, stalled::Unstalled};

/// How long a client may take to send the head of a request, and a connection may idle between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest head of a request; also hyper's read buffer, whose least is 8 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// How long a client may take nothing of what is written to it.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes that the kernel takes for a client beyond what is on its way to it. Without a bound it would keep megabytes for each one that reads
/// slowly, and what we have to say last would come after all of them.
const UNSENT: u32 = 256 * 1024;
/// After the drain time: closing handshakes may take this long.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A connection's place among those that may be open. Whoever uses the connection holds it, also after an upgrade.
#[derive(Clone)]
pub struct ConnectionSlot {
    _held: Arc<(OwnedSemaphorePermit, TaskTrackerToken)>,
}

pub async fn serve(
    app: App,
    router: Router,
    listener: TcpListener,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    tracing::info!(%address, "gateway listens");
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(
        app.options.max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let closing = CancellationToken::new();
    let abort = CancellationToken::new();
    let builder = Arc::new(http_builder());
    // Those who send clients here learn from `/ready`, a moment later, that they should not.
    let last_call = async {
        stop.cancelled().await;
        app.start_draining();
        tokio::time::sleep(app.options.lead).await;
    };
    let mut last_call = std::pin::pin!(last_call);

    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    let Ok(permit) = slots.clone().try_acquire_owned() else {
                        drop(stream);
                        continue;
                    };
                    let slot = ConnectionSlot { _held: Arc::new((permit, connections.token())) };
                    let service = router.clone().map_request(move |mut request: http::Request<hyper::body::Incoming>| {
                        request.extensions_mut().insert(PeerAddress(peer));
                        request.extensions_mut().insert(slot.clone());
                        request.map(axum::body::Body::new)
                    });
                    tokio::spawn(connection(builder.clone(), stream, service, closing.clone(), abort.clone()));
                }
                Err(error) => pause_after(&error).await,
            },
            () = &mut last_call => break,
        }
    }

    drop(listener);
    closing.cancel();
    tracing::info!(connections = connections.len(), "gateway drains");
    let drain = app.options.drain - app.options.lead;
    let deadline = tokio::time::Instant::now() + drain;
    connections.close();
    let drain_all = async {
        if let Some(hub) = app.started_hub() {
            hub.drain(drain.mul_f64(0.9)).await;
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
    closing: CancellationToken,
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
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT);
    let serving = builder
        .serve_connection(
            TokioIo::new(Unstalled::new(stream, WRITE_TIMEOUT)),
            TowerToHyperService::new(service),
        )
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
        () = closing.cancelled() => serving.as_mut().graceful_shutdown(),
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
