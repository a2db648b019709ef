//! Ports on Redis 7, one server or a cluster by the form of the URL: sessions, ephemeral values, presence, the registry of
//! replicas, rate limits, and the bus.
//!
//! What must be atomic is one command or one script, on keys of one hash slot. Commands have short deadlines and are sent once:
//! a stalled Redis shows as `Unavailable`, and a token that was rotated is not rotated again behind the caller's back.
//!
//! Nothing here is the only copy of what a person wrote: Redis may lose the last moments with a machine.

mod bus;
mod ephemeral;
mod limiter;
mod presence;
mod registry;
mod script;
mod sessions;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result,
    ports::{Bus, Ephemeral, PresenceStore, Probe, RateLimiter, ReplicaRegistry, SessionStore},
};
use fred::{
    prelude::{
        Builder, Client, ClientLike, Config, Error as RedisError, ErrorKind, Pool, ReconnectPolicy,
        Server,
    },
    types::config::CredentialProvider,
};

use crate::Login;

/// How long one command may take before its outcome counts as unknown.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(2);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections for commands: a script is not pipelined with others of its connection.
const CONNECTIONS: usize = 4;
/// Commands that may wait on a connection; more are refused.
const MAX_WAITING: usize = 10_000;

/// How to reach Redis.
#[derive(Clone)]
pub struct RedisOptions {
    /// `redis://[user:password@]host:port[/db]`, `rediss://…` for TLS, `redis-cluster://…?node=host:port` for a cluster.
    pub url: String,
    /// Who asks, in place of what the URL says.
    pub login: Option<Login>,
    /// Begins every key and channel, so that several platforms (or tests) can share a Redis. `carillon:` by default.
    pub prefix: String,
}

impl RedisOptions {
    /// The options for a URL, with the usual prefix.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            login: None,
            prefix: "carillon:".into(),
        }
    }
}

impl std::fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("RedisOptions")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Every port that Redis serves. Cheap to clone.
#[derive(Clone)]
pub struct Stores {
    /// Sessions and revoked tokens.
    pub sessions: Arc<dyn SessionStore>,
    /// Values that end by themselves.
    pub ephemeral: Arc<dyn Ephemeral>,
    /// Leases of connected devices.
    pub presence: Arc<dyn PresenceStore>,
    /// Live replicas.
    pub registry: Arc<dyn ReplicaRegistry>,
    /// Rate limits that every process shares.
    pub limiter: Arc<dyn RateLimiter>,
    /// Signals between services and gateways.
    pub bus: Arc<dyn Bus>,
    /// Whether Redis works.
    pub probe: Arc<dyn Probe>,
}

/// Opens the stores. `Unavailable` naming the servers when they can't be reached, `InvalidRequest` when the URL is malformed.
pub async fn connect(options: &RedisOptions) -> Result<Stores> {
    let builder = builder(&options.url, options.login.clone())?;
    let pool = builder.build_pool(CONNECTIONS).map_err(failed)?;
    let servers = servers(&builder);
    start(pool.init(), &servers).await?;
    // The order of a publisher's messages is that of one connection.
    let publisher = builder.build().map_err(failed)?;
    start(publisher.init(), &servers).await?;
    let redis = Redis {
        pool,
        prefix: options.prefix.as_str().into(),
    };
    Ok(Stores {
        sessions: Arc::new(sessions::Sessions::new(redis.clone())),
        ephemeral: Arc::new(ephemeral::EphemeralValues::new(redis.clone())),
        presence: Arc::new(presence::PresenceLeases::new(redis.clone())),
        registry: Arc::new(registry::Registry::new(redis.clone())),
        limiter: Arc::new(limiter::Limiter::new(redis.clone())),
        bus: Arc::new(bus::RedisBus::new(publisher, builder, &options.prefix)),
        probe: Arc::new(RedisProbe(redis)),
    })
}

/// Connections for commands, and how keys begin.
#[derive(Clone)]
struct Redis {
    pool: Pool,
    prefix: Arc<str>,
}

impl Redis {
    fn client(&self) -> &Client {
        self.pool.next()
    }

    fn key(&self, rest: std::fmt::Arguments<'_>) -> String {
        format!("{}{rest}", self.prefix)
    }
}

fn builder(url: &str, login: Option<Login>) -> Result<Builder> {
    let mut config = Config::from_url(url).map_err(|cause| {
        Error::invalid(
            "redis.url",
            "redis://host:port, rediss://… or redis-cluster://…",
        )
        .caused_by(cause)
    })?;
    if let Some(login) = login {
        config.credential_provider = Some(Arc::new(CurrentLogin(login)));
    }
    let mut builder = Builder::from_config(config);
    let mut policy = ReconnectPolicy::new_exponential(0, 50, 5_000, 2);
    policy.set_jitter(200);
    builder
        .set_policy(policy)
        .with_performance_config(|performance| {
            performance.default_command_timeout = COMMAND_TIMEOUT;
        })
        .with_connection_config(|connection| {
            connection.connection_timeout = CONNECT_TIMEOUT;
            connection.internal_command_timeout = COMMAND_TIMEOUT;
            connection.max_command_attempts = 1;
            connection.max_command_buffer_len = MAX_WAITING;
            // A connection on which an answer is overdue for so long is given up and made anew.
            connection.unresponsive.max_timeout = Some(Duration::from_secs(6));
            connection.unresponsive.interval = Duration::from_secs(1);
            connection.tcp.nodelay = Some(true);
        });
    Ok(builder)
}

/// What counts when a connection is made.
#[derive(Debug)]
struct CurrentLogin(Login);

#[async_trait]
impl CredentialProvider for CurrentLogin {
    async fn fetch(
        &self,
        _server: Option<&Server>,
    ) -> std::result::Result<(Option<String>, Option<String>), RedisError> {
        let login = self
            .0
            .now()
            .map_err(|error| RedisError::new(ErrorKind::Auth, error.detail.into_owned()))?;
        Ok((login.user, Some(login.password)))
    }
}

fn servers(builder: &Builder) -> String {
    let hosts = builder.get_config().map(|config| config.server.hosts());
    let hosts: Vec<String> = hosts
        .unwrap_or_default()
        .iter()
        .map(|server| format!("{}:{}", server.host, server.port))
        .collect();
    hosts.join(", ")
}

/// Waits for a client's first connection.
async fn start<T>(
    connecting: impl Future<Output = Result<T, RedisError>>,
    servers: &str,
) -> Result<()> {
    let unreachable = || {
        Error::new(
            ErrorCode::Unavailable,
            format!(
                "redis: {servers} can't be used; is the address right, the server up, the password valid?"
            ),
        )
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(cause)) => Err(unreachable().caused_by(cause)),
        Err(late) => Err(unreachable().caused_by(late)),
    }
}

fn failed(error: RedisError) -> Error {
    let defect = match error.kind() {
        ErrorKind::InvalidArgument
        | ErrorKind::InvalidCommand
        | ErrorKind::Parse
        | ErrorKind::NotFound
        | ErrorKind::Config
        | ErrorKind::Url
        | ErrorKind::Auth => true,
        // What a server answers has this kind too. One that can't serve now says LOADING, READONLY, OOM and the like.
        ErrorKind::Unknown => ["ERR", "WRONGTYPE", "NOPERM", "CROSSSLOT"]
            .iter()
            .any(|prefix| error.details().starts_with(prefix)),
        _ => false,
    };
    if defect {
        Error::internal(error)
    } else {
        Error::unavailable("redis", error)
    }
}

struct RedisProbe(Redis);

#[async_trait]
impl Probe for RedisProbe {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn check(&self) -> Result<()> {
        // A read of a key, unlike PING, fails on a node that has lost its cluster.
        use fred::interfaces::KeysInterface;
        let key = self.0.key(format_args!("probe"));
        crate::observe::timed("redis", "probe", self.0.client().exists::<i64, _>(key))
            .await
            .map(drop)
            .map_err(failed)
    }
}
