//! The gateway as a whole.

use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use tokio::{
    net::TcpListener,
    sync::{OnceCell, Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    edge::{AllowedOrigins, Limits, Transfers},
    hub::Hub,
    metrics,
    options::{GatewayOptions, Services},
    rest, serve,
    usecases::Chat,
};

/// Everything handlers need; cheap to clone.
pub type App = Arc<AppState>;

/// See [`AppState::establishing`]: enough that waiting for stores costs a storm little time.
const ESTABLISHING: usize = 64;

/// See [`App`].
pub struct AppState {
    pub options: GatewayOptions,
    pub services: Services,
    pub chat: Chat,
    pub limits: Limits,
    pub uploads: Transfers,
    pub downloads: Transfers,
    pub origins: AllowedOrigins,
    pub jwks: watch::Receiver<Bytes>,
    /// Sockets whose token is checked and whose rooms are listed at once: after a storm thousands come back together, and those
    /// who stayed must not wait for all of them.
    pub establishing: Semaphore,
    pub exports: rest::Exports,
    /// Made by the first socket, since it needs the bus.
    hub: OnceCell<Hub>,
    pub readiness: rest::Readiness,
    draining: CancellationToken,
}

impl AppState {
    /// The hub. `Unavailable` while the bus can't be reached.
    pub async fn hub(&self) -> carillon_domain::Result<&Hub> {
        self.hub
            .get_or_try_init(|| Hub::start(&self.options, &self.services))
            .await
    }

    /// The hub if a socket has needed it.
    pub fn started_hub(&self) -> Option<&Hub> {
        self.hub.get()
    }

    /// Whether the gateway is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    pub fn start_draining(&self) {
        self.draining.cancel();
    }

    /// Waits until the gateway is about to stop.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }
}

/// REST and WebSocket over the services.
pub struct Gateway {
    app: App,
}

impl Gateway {
    /// What it is made of.
    #[cfg(test)]
    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// A gateway over these services. What `jwks` holds last is served at `/.well-known/jwks.json` as it is. Nothing is contacted yet.
    pub fn new(options: GatewayOptions, services: Services, jwks: watch::Receiver<Bytes>) -> Self {
        metrics::register();
        let options = options.bounded();
        Self {
            app: Arc::new(AppState {
                chat: Chat::new(services.messages.clone()),
                limits: Limits::new(&options, &services),
                uploads: Transfers::new(options.upload_bytes_at_once),
                downloads: Transfers::new(options.download_bytes_at_once),
                origins: AllowedOrigins::new(&options.allowed_origins),
                readiness: rest::Readiness::new(options.probes.clone()),
                establishing: Semaphore::new(ESTABLISHING),
                exports: rest::Exports::default(),
                hub: OnceCell::new(),
                draining: CancellationToken::new(),
                options,
                services,
                jwks,
            }),
        }
    }

    /// Every route with its layers, for serving by other means than [`Gateway::run`].
    pub fn router(&self) -> Router {
        rest::router(self.app.clone())
    }

    /// Serves until `stop`; then says that it isn't ready, accepts no more after [`GatewayOptions::lead`], tells sockets to resume
    /// elsewhere (close code 4000, spread over the rest of the drain time), waits for requests under way, and returns at the
    /// latest a little after the drain time (OPS-02).
    ///
    /// # Errors
    /// When the listener can't tell its address.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = self.router();
        serve::serve(self.app, router, listener, stop).await
    }
}
