//! A process's gRPC server: the services of its roles behind the gate, with health and reflection (OPS-01, OPS-02).

use std::{sync::Arc, time::Duration};

use carillon_domain::{Error, Result};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    AccountServer, AuthServer, InterceptorOptions, MediaServer, MessageServer, NotificationServer,
    PeopleServer, PresenceServer, Tls, gate::GateLayer, proto,
};

/// Calls in flight per connection; further ones wait. A gateway has one connection to each replica.
const MAX_CALLS_PER_CONNECTION: usize = 1024;
/// How often, and for how long, a silent peer is asked whether it's there.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Which services a process offers.
#[derive(Clone, Default)]
pub struct RoleServices {
    /// `carillon.auth.v1`.
    pub auth: Option<AuthServer>,
    /// `carillon.auth.v1.AccountService`.
    pub account: Option<AccountServer>,
    /// `carillon.people.v1`.
    pub people: Option<PeopleServer>,
    /// `carillon.message.v1`.
    pub message: Option<MessageServer>,
    /// `carillon.presence.v1`.
    pub presence: Option<PresenceServer>,
    /// `carillon.media.v1`.
    pub media: Option<MediaServer>,
    /// `carillon.notification.v1`.
    pub notification: Option<NotificationServer>,
}

/// How a server runs.
#[derive(Clone)]
pub struct ServeOptions {
    /// Who is let in.
    pub interceptor: InterceptorOptions,
    /// The process's certificate, and whose certificates it believes; `None` serves plain text. Default: none.
    pub tls: Option<Tls>,
    /// How long connections are still accepted after the stop, so that nobody finds the port closed before they could know;
    /// at most a third of `drain`. Default: not at all.
    pub lead: Duration,
    /// How long calls may go on after the stop; what is left then is cut off. Default 10 s.
    pub drain: Duration,
}

impl ServeOptions {
    /// With defaults for all but who is let in.
    pub fn new(interceptor: InterceptorOptions) -> Self {
        Self {
            interceptor,
            tls: None,
            lead: Duration::ZERO,
            drain: Duration::from_secs(10),
        }
    }
}

/// What gRPC health checks are told: whether the process wants calls. Clones are handles of the same thing.
#[derive(Clone, Debug)]
pub struct Serving(Arc<watch::Sender<bool>>);

impl Serving {
    /// Starts as given.
    pub fn new(serving: bool) -> Self {
        Self(Arc::new(watch::Sender::new(serving)))
    }

    /// Tells every watcher when it changes. Calls are answered all the same.
    pub fn set_serving(&self, serving: bool) {
        self.0.send_if_modified(|now| {
            let changed = *now != serving;
            *now = serving;
            changed
        });
    }
}

impl Default for Serving {
    fn default() -> Self {
        Self::new(true)
    }
}

/// Serves until `stop`, then says "not serving", accepts no more after `options.lead`, and lets calls end until `options.drain`
/// after the stop. Health is known by the services' full names and, for the whole process, by the empty name.
pub async fn serve(
    listener: TcpListener,
    services: RoleServices,
    options: ServeOptions,
    serving: Serving,
    stop: CancellationToken,
) -> Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(Error::internal)?;
    let mut mounted = Mounted {
        routes: Routes::new(health).add_service(reflection),
        names: vec![""],
    };
    if let Some(auth) = services.auth {
        mounted.add(auth.into_tonic());
    }
    if let Some(account) = services.account {
        mounted.add(account.into_tonic());
    }
    if let Some(people) = services.people {
        mounted.add(people.into_tonic());
    }
    if let Some(message) = services.message {
        mounted.add(message.into_tonic());
    }
    if let Some(presence) = services.presence {
        mounted.add(presence.into_tonic());
    }
    if let Some(media) = services.media {
        mounted.add(media.into_tonic());
    }
    if let Some(notification) = services.notification {
        mounted.add(notification.into_tonic());
    }

    // Before the first call: a service that is there is never unknown to health.
    let wanted = *serving.0.borrow();
    set_health(&reporter, &mounted.names, wanted).await;

    let (stopping, lead) = (stop.clone(), options.lead.min(options.drain / 3));
    let closing = async move {
        stopping.cancelled().await;
        tokio::time::sleep(lead).await;
    };
    // One layer before all services: none can be mounted without it.
    let router = Server::builder()
        .layer(GateLayer(options.interceptor))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(MAX_CALLS_PER_CONNECTION as u32)
        .concurrency_limit_per_connection(MAX_CALLS_PER_CONNECTION)
        .add_routes(mounted.routes);
    let server = async {
        match options.tls {
            Some(tls) => {
                router
                    .serve_with_incoming_shutdown(tls.incoming(listener), closing)
                    .await
            }
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                router.serve_with_incoming_shutdown(incoming, closing).await
            }
        }
    };
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(options.drain).await;
    };
    tokio::select! {
        ended = server => ended.map_err(Error::internal),
        () = drained => {
            tracing::warn!("gRPC calls were cut off at the end of the drain time");
            Ok(())
        }
        () = report_health(reporter, mounted.names, serving, &stop) => Ok(()),
    }
}

struct Mounted {
    routes: Routes,
    names: Vec<&'static str>,
}

impl Mounted {
    fn add<S>(&mut self, service: S)
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Error = std::convert::Infallible,
                Response = http::Response<tonic::body::Body>,
                Future: Send,
            > + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        self.routes = std::mem::take(&mut self.routes).add_service(service);
        self.names.push(S::NAME);
    }
}

/// Keeps health as `serving` says until the stop, and then "not serving". Never ends: the server does.
async fn report_health(
    reporter: HealthReporter,
    names: Vec<&'static str>,
    serving: Serving,
    stop: &CancellationToken,
) {
    let mut changes = serving.0.subscribe();
    loop {
        let wanted = *changes.borrow_and_update() && !stop.is_cancelled();
        set_health(&reporter, &names, wanted).await;
        tokio::select! {
            // `serving` is held here: the sender can't be gone.
            _ = changes.changed() => {}
            () = stop.cancelled(), if !stop.is_cancelled() => {}
        }
    }
}

async fn set_health(reporter: &HealthReporter, names: &[&'static str], serving: bool) {
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for name in names {
        reporter.set_service_status(name, status).await;
    }
}
