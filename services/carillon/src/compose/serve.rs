//! `carillon serve`: roles of a cluster, on the real stores, calling the other roles over gRPC.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::Duration};

use carillon_crds::config::{ExternalStores, Peers, PlatformConfig, StoresConfig};
use carillon_domain::{
    ReplicaId,
    ports::{PushQueue, Replica},
    services::{MessageService, PresenceService, TokenVerifier},
};
use carillon_message::Roster;
use carillon_rpc::{
    AccountClient, AccountServer, AuthClient, AuthServer, Credentials, InterceptorOptions,
    MediaClient, MediaServer, MessageServer, NotificationClient, NotificationServer, PeopleClient,
    PeopleServer, PresenceClient, PresenceServer, RoleServices, RoutedMessages, ServeOptions,
    Serving,
};
use carillon_runtime::{
    ready::{Dependency, Readiness},
    tasks::Tasks,
};
use tokio_util::sync::CancellationToken;

use super::{bind, roles, start_telemetry, stores};
use crate::{
    cli::{Role, Serve},
    config,
    failure::Failure,
};

/// Pushes under way at once.
const PUSH_CONCURRENCY: usize = 32;

/// Runs until a signal.
pub async fn serve(options: Serve) -> Result<(), Failure> {
    let config = config::load(&options.config)?;
    let mut seen = HashSet::new();
    let roles: Vec<Role> = options
        .roles
        .iter()
        .copied()
        .filter(|role| seen.insert(*role))
        .collect();
    let replica = replica_id(options.name.as_deref());
    let service = match roles.as_slice() {
        [role] => format!("carillon-{}", name_of(*role)),
        _ => "carillon".to_owned(),
    };
    let telemetry = start_telemetry(&config, &service, &replica.0, &options.log)?;
    let stop = carillon_runtime::stop_on_signals()
        .map_err(|error| Failure::software(format!("can't handle signals: {error}")))?;
    let served = run(&options, &config, roles, replica, stop).await;
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    served
}

async fn run(
    options: &Serve,
    config: &PlatformConfig,
    roles: Vec<Role>,
    replica: ReplicaId,
    stop: CancellationToken,
) -> Result<(), Failure> {
    let StoresConfig::External(external) = &config.stores else {
        return Err(Failure::usage(
            "serve needs stores.external in the configuration; for one machine use `carillon up -f FILE`",
        ));
    };
    let Some(peers) = &config.peers else {
        return Err(Failure::usage(
            "serve needs peers in the configuration; the operator writes them",
        ));
    };

    // The admin server comes before the stores, so that probes see why the process isn't ready yet.
    let late = stores::LateStores::new();
    let dependencies = late.dependencies(&roles);
    let readiness = Arc::new(Readiness::new(dependencies.clone(), stop.clone()));
    let admin = bind(
        "health and metrics",
        SocketAddr::new(options.bind, config.admin_port),
        "stop what uses it",
    )?;
    let mut tasks = Tasks::new(stop.clone());
    // The admin server outlives the stop, so that the drain is seen; it ends with the process.
    tokio::spawn(carillon_runtime::admin::serve(
        admin,
        readiness,
        CancellationToken::new(),
    ));

    let connected = Connected::reach(&late, config, external, &roles, &stop).await?;
    let Some(connected) = connected else {
        return Ok(());
    };
    // What makes the gateway's public answer is what makes the process's.
    let probes = dependencies
        .iter()
        .filter(|dependency| dependency.is_required())
        .map(Dependency::probe)
        .collect();
    start_roles(
        options, config, peers, &roles, replica, connected, probes, &stop, &mut tasks,
    )
    .await?;
    tracing::info!(roles = ?roles, version = env!("CARGO_PKG_VERSION"), "serving");
    tasks
        .run(Duration::from_secs(config.gateway.drain_seconds + 5))
        .await
        .map_err(Failure::software)
}

/// What the roles stand on.
struct Connected {
    fast: stores::FastStore,
    wide: Option<stores::WideStore>,
    queue: Option<Arc<dyn PushQueue>>,
    verifier: Arc<dyn TokenVerifier>,
    jwks: String,
    internal_token: String,
}

impl Connected {
    /// `None` when the stop came first.
    async fn reach(
        late: &stores::LateStores,
        config: &PlatformConfig,
        external: &ExternalStores,
        roles: &[Role],
        stop: &CancellationToken,
    ) -> Result<Option<Self>, Failure> {
        let jwks = config::read(&config.keys.jwks_file, "the public keys")?;
        let internal_token = config::read(&config.keys.internal_token_file, "the internal token")?
            .trim()
            .to_owned();
        let Some(fast) = late.fast(external, stop).await? else {
            return Ok(None);
        };
        let wide = if roles.iter().copied().any(stores::needs_wide) {
            match late.wide(external, stop).await? {
                None => return Ok(None),
                some => some,
            }
        } else {
            None
        };
        let queue = if roles.iter().copied().any(stores::uses_queue) {
            Some(late.queue(external, stop)?)
        } else {
            None
        };
        let verifier = roles::verifier(config, roles::public_keys(&jwks)?, &fast);
        Ok(Some(Self {
            fast,
            wide,
            queue,
            verifier,
            jwks,
            internal_token,
        }))
    }

    fn wide(&self) -> Result<&stores::WideStore, Failure> {
        self.wide
            .as_ref()
            .ok_or_else(|| Failure::software("a role was started without the store it needs"))
    }

    fn queue(&self) -> Result<Arc<dyn PushQueue>, Failure> {
        self.queue
            .clone()
            .ok_or_else(|| Failure::software("a role was started without the queue it needs"))
    }
}

#[expect(
    clippy::too_many_arguments,
    reason = "the composition root is where everything meets"
)]
async fn start_roles(
    options: &Serve,
    config: &PlatformConfig,
    peers: &Peers,
    roles: &[Role],
    replica: ReplicaId,
    connected: Connected,
    probes: Vec<Arc<dyn carillon_domain::ports::Probe>>,
    stop: &CancellationToken,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    let credentials = Credentials::internal(&connected.internal_token)?;
    let max_upload_bytes = usize::try_from(config.media.max_upload_bytes).unwrap_or(usize::MAX);
    let routed: Arc<dyn MessageService> = Arc::new(RoutedMessages::new(
        connected.fast.registry.clone(),
        credentials.clone(),
        Default::default(),
    ));
    let remote_presence: Arc<dyn PresenceService> = Arc::new(PresenceClient::connect_lazy(
        &peers.presence,
        credentials.clone(),
    )?);

    let limiters = roles::limiters(config, &connected.fast);
    for role in roles {
        let mut services = RoleServices::default();
        let port = match role {
            Role::Gateway => {
                let calls = roles::GatewayCalls {
                    auth: Arc::new(AuthClient::connect_lazy(&peers.auth, credentials.clone())?),
                    accounts: Arc::new(AccountClient::connect_lazy(
                        &peers.auth,
                        credentials.clone(),
                    )?),
                    verifier: connected.verifier.clone(),
                    people: Arc::new(PeopleClient::connect_lazy(
                        &peers.auth,
                        credentials.clone(),
                    )?),
                    messages: routed.clone(),
                    presence: remote_presence.clone(),
                    media: Arc::new(MediaClient::connect_lazy(
                        &peers.media,
                        credentials.clone(),
                    )?),
                    notifications: Arc::new(NotificationClient::connect_lazy(
                        &peers.notification,
                        credentials.clone(),
                    )?),
                };
                let gateway = roles::gateway(
                    config,
                    &connected.fast,
                    calls,
                    limiters.clone(),
                    connected.jwks.clone(),
                    probes.clone(),
                );
                let address = SocketAddr::new(options.bind, config.gateway.http_port);
                let listener = bind("REST and WebSocket", address, "stop what uses it")?;
                tasks.spawn("the gateway", gateway.run(listener, stop.clone()));
                continue;
            }
            Role::Auth => {
                let keys = roles::signing_keys(&config.keys)?;
                let auth = roles::auth(config, keys, connected.wide()?, &connected.fast)?;
                services.auth = Some(AuthServer::new(auth.clone(), connected.verifier.clone()));
                services.account = Some(AccountServer::new(auth));
                let people = roles::people(connected.wide()?, &connected.fast);
                services.people = Some(PeopleServer::new(people));
                config.auth.grpc_port
            }
            Role::Presence => {
                let presence = roles::presence(config, connected.wide()?, &connected.fast);
                services.presence = Some(PresenceServer::new(presence.clone()));
                let sweeping = stop.clone();
                tasks.spawn("presence", async move { presence.run(sweeping).await });
                config.presence.grpc_port
            }
            Role::Media => {
                let blobs = stores::open_blobs(&config.media.blob)?;
                let media = roles::media(config, connected.wide()?, blobs, routed.clone());
                services.media = Some(MediaServer::new(media, max_upload_bytes));
                config.media.grpc_port
            }
            Role::Notification => {
                let notification = roles::notification(
                    config,
                    connected.wide()?,
                    &connected.fast,
                    connected.queue()?,
                )?;
                services.notification = Some(NotificationServer::new(notification.clone()));
                let pushing = stop.clone();
                tasks.spawn("push", async move {
                    notification.run(PUSH_CONCURRENCY, pushing).await
                });
                config.notification.grpc_port
            }
            Role::Message => {
                let ip = options.advertise.unwrap_or(options.bind);
                let address = format!("http://{}", SocketAddr::new(ip, config.message.grpc_port));
                let me = Replica {
                    id: replica.clone(),
                    address,
                };
                let roster = Arc::new(Roster::new(connected.fast.registry.clone(), me));
                let message = roles::message(
                    connected.wide()?,
                    &connected.fast,
                    connected.queue()?,
                    remote_presence.clone(),
                    roster.clone(),
                    replica.clone(),
                    Some(routed.clone()),
                );
                services.message =
                    Some(MessageServer::new(message).routing_integrators(routed.clone()));
                let announcing = stop.clone();
                tasks.spawn("the roster", async move {
                    roster.run(announcing).await;
                    Ok::<_, carillon_domain::Error>(())
                });
                config.message.grpc_port
            }
        };
        let listener = bind(
            "gRPC",
            SocketAddr::new(options.bind, port),
            "stop what uses it",
        )?;
        let interceptor =
            InterceptorOptions::new(&connected.internal_token, connected.verifier.clone())?
                .limiting_strangers(roles::strangers(config), limiters.shared.clone());
        tasks.spawn(
            "gRPC",
            carillon_rpc::serve(
                listener,
                services,
                ServeOptions {
                    lead: roles::LEAD,
                    ..ServeOptions::new(interceptor)
                },
                Serving::default(),
                stop.clone(),
            ),
        );
    }
    Ok(())
}

fn name_of(role: Role) -> &'static str {
    match role {
        Role::Gateway => "gateway",
        Role::Auth => "auth",
        Role::Message => "message",
        Role::Presence => "presence",
        Role::Media => "media",
        Role::Notification => "notification",
    }
}

/// New at every start: a restarted pod must not be taken for the one before it.
fn replica_id(name: Option<&str>) -> ReplicaId {
    let random: u32 = rand::random();
    ReplicaId(format!("{}-{random:08x}", name.unwrap_or("replica")))
}
