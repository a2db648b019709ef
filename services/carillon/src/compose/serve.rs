//! `carillon serve`: roles of a cluster, on the real stores, calling the other roles over gRPC.

use std::{collections::HashSet, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use carillon_adapters::object::ObjectBlobs;
use carillon_auth::{Auth, SigningKeys, Verifier, VerifyingKeys};
use carillon_crds::config::{
    ExternalStores, Peers, PlatformConfig, StoresConfig, fingerprint, in_use,
};
use carillon_domain::{
    ReplicaId,
    ports::{PushQueue, Replica},
    services::{MessageService, PresenceService},
};
use carillon_message::Roster;
use carillon_rpc::{
    AccountClient, AccountServer, AuthClient, AuthServer, Credentials, InterceptorOptions,
    MediaClient, MediaServer, MessageServer, NotificationClient, NotificationServer, PeopleClient,
    PeopleServer, PresenceClient, PresenceServer, RoleServices, RoutedMessages, ServeOptions,
    Serving, Tls,
};
use carillon_runtime::{
    ready::{Dependency, InUse, Readiness},
    tasks::Tasks,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{bind, reload::Reload, roles, start_telemetry, stores};
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
    let mut dependencies = late.dependencies(&roles);
    let blobs = match roles.contains(&Role::Media) {
        true => Some(stores::open_blobs(&config.media.blob)?),
        false => None,
    };
    // Messages flow without files: those who fetch one are told.
    dependencies.extend(blobs.clone().map(|blobs| Dependency::optional(blobs)));
    let admin = bind(
        "health and metrics",
        SocketAddr::new(options.bind, config.admin_port),
        "stop what uses it",
    )?;
    let mut tasks = Tasks::new(stop.clone());
    let in_use = InUse::default();
    let readiness = Readiness::new(dependencies.clone(), stop.clone()).showing(in_use.clone());
    // The admin server outlives the stop, so that the drain is seen; it ends with the process.
    tokio::spawn(carillon_runtime::admin::serve(
        admin,
        Arc::new(readiness),
        CancellationToken::new(),
    ));

    let connected = Connected::reach(&late, config, external, &roles, &stop).await?;
    let Some(connected) = connected else {
        return Ok(());
    };
    let connected = Connected { blobs, ..connected };
    // What makes the gateway's public answer is what makes the process's.
    let probes = dependencies
        .iter()
        .filter(|dependency| dependency.is_required())
        .map(Dependency::probe)
        .collect();
    start_roles(
        options, config, peers, &roles, replica, connected, probes, in_use, &stop, &mut tasks,
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
    blobs: Option<Arc<ObjectBlobs>>,
    verifier: Arc<Verifier>,
    jwks: String,
    trust: Trust,
}

/// How roles know each other.
enum Trust {
    Tls(Tls),
    Token(String),
}

impl Trust {
    fn read(config: &PlatformConfig) -> Result<Self, Failure> {
        Ok(match roles::tls(config)? {
            Some(tls) => Self::Tls(tls),
            None => Self::Token(config::internal_token(config)?),
        })
    }

    fn credentials(&self) -> Result<Credentials, Failure> {
        Ok(match self {
            Self::Tls(tls) => Credentials::mutual_tls(tls.clone()),
            Self::Token(token) => Credentials::internal(token)?,
        })
    }

    fn interceptor(&self, verifier: Arc<Verifier>) -> Result<InterceptorOptions, Failure> {
        Ok(match self {
            Self::Tls(_) => InterceptorOptions::mutual_tls(verifier),
            Self::Token(token) => InterceptorOptions::new(token, verifier)?,
        })
    }

    fn tls(&self) -> Option<Tls> {
        match self {
            Self::Tls(tls) => Some(tls.clone()),
            Self::Token(_) => None,
        }
    }

    /// How other roles reach an address of this one.
    fn scheme(&self) -> &'static str {
        match self {
            Self::Tls(_) => "https",
            Self::Token(_) => "http",
        }
    }
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
        let trust = Trust::read(config)?;
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
            blobs: None,
            verifier,
            jwks,
            trust,
        }))
    }

    fn wide(&self) -> Result<&stores::WideStore, Failure> {
        self.wide
            .as_ref()
            .ok_or_else(|| Failure::software("a role was started without the store it needs"))
    }

    fn blobs(&self) -> Result<Arc<ObjectBlobs>, Failure> {
        self.blobs
            .clone()
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
    shown: InUse,
    stop: &CancellationToken,
    tasks: &mut Tasks,
) -> Result<(), Failure> {
    let credentials = connected.trust.credentials()?;
    let mut reload = Reload::default();
    let jwks = follow_public_keys(&mut reload, config, &connected);
    follow_certificate(&mut reload, config, &connected.trust);
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
                    jwks.clone(),
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
                follow_signing_keys(&mut reload, config, auth.clone());
                services.auth = Some(AuthServer::new(auth.clone(), connected.verifier.clone()));
                services.account = Some(AccountServer::new(auth.clone()));
                tasks.spawn("erasing", roles::erasing_accounts(auth, stop.clone()));
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
                let blobs = connected.blobs()?;
                let media = roles::media(config, connected.wide()?, blobs, routed.clone());
                services.media = Some(MediaServer::new(media.clone(), max_upload_bytes));
                tasks.spawn(
                    "erasing uploads",
                    roles::erasing_uploads(media, connected.wide()?, stop.clone()),
                );
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
                let address = format!(
                    "{}://{}",
                    connected.trust.scheme(),
                    SocketAddr::new(ip, config.message.grpc_port)
                );
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
        let interceptor = connected
            .trust
            .interceptor(connected.verifier.clone())?
            .limiting_strangers(roles::strangers(config), limiters.shared.clone());
        tasks.spawn(
            "gRPC",
            carillon_rpc::serve(
                listener,
                services,
                ServeOptions {
                    lead: roles::LEAD,
                    tls: connected.trust.tls(),
                    ..ServeOptions::new(interceptor)
                },
                Serving::default(),
                stop.clone(),
            ),
        );
    }
    let looking = stop.clone();
    tasks.spawn("reloading of keys", async move {
        reload.run(shown, looking).await;
        Ok::<_, carillon_domain::Error>(())
    });
    Ok(())
}

/// Tokens are checked by the newest public keys, and gateways publish them.
fn follow_public_keys(
    reload: &mut Reload,
    config: &PlatformConfig,
    connected: &Connected,
) -> watch::Receiver<Bytes> {
    let (publish, published) = watch::channel(Bytes::from(connected.jwks.clone()));
    let verifier = connected.verifier.clone();
    let file: &Path = &config.keys.jwks_file;
    reload.watch("public keys", &[file], move |texts| {
        let keys = VerifyingKeys::from_jwks(&texts[0]).map_err(|error| error.to_string())?;
        verifier.replace_keys(keys);
        publish.send_replace(Bytes::from(texts[0].clone()));
        Ok(vec![(in_use::PUBLIC_KEYS, fingerprint(&texts[0]))])
    });
    published
}

/// Connections are made and taken by the newest certificates.
fn follow_certificate(reload: &mut Reload, config: &PlatformConfig, trust: &Trust) {
    let (Some(files), Some(tls)) = (&config.tls, trust.tls()) else {
        return;
    };
    let files: [&Path; 3] = [&files.certificate_file, &files.key_file, &files.trust_file];
    reload.watch("certificates", &files, move |texts| {
        let [certificate, key, trust] = texts else {
            return Err("there must be three files".to_owned());
        };
        tls.replace(certificate, key, trust)
            .map_err(|error| error.to_string())?;
        Ok(vec![
            (in_use::CERTIFICATE, fingerprint(certificate)),
            (in_use::TRUST, fingerprint(trust)),
        ])
    });
}

/// Tokens are signed by the newest key.
fn follow_signing_keys(reload: &mut Reload, config: &PlatformConfig, auth: Arc<Auth>) {
    let file: &Path = &config.keys.signing_key_file;
    reload.watch("signing keys", &[file], move |texts| {
        let keys = SigningKeys::from_pem(texts).map_err(|error| error.to_string())?;
        let kid = keys.kid().to_owned();
        auth.replace_keys(keys);
        Ok(vec![(in_use::SIGNING_KEY, kid)])
    });
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
