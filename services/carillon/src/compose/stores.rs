//! The stores behind the ports: all embedded, or ScyllaDB, Redis and RabbitMQ.

use std::{path::Path, sync::Arc, time::Duration};

use carillon_adapters::{embedded, object, rabbitmq, redis, scylla};
use carillon_crds::config::{BlobConfig, ExternalStores, ScyllaConfig};
use carillon_domain::ports::Probe;
use carillon_domain::ports::{
    AccountStore, Bus, Ephemeral, MediaIndex, PeopleIndex, PeopleStore, PersonKeys, PresenceStore,
    PushQueue, PushTargetStore, RateLimiter, ReplicaRegistry, RoomLog, RoomStore, SecurityLog,
    SessionStore,
};
use carillon_runtime::ready::Dependency;
use tokio_util::sync::CancellationToken;

use super::late::{LateProbe, LateQueue};
use crate::{cli::Role, config, failure::Failure};

/// How long a publish waits for the first connection: as long as the adapter's waits for a broken one to be made anew, so
/// that the messages of a process's first moments aren't without a push.
const PUBLISH_PATIENCE: Duration = Duration::from_secs(2);

/// Durable truth: ScyllaDB, or the embedded store.
#[derive(Clone)]
pub struct WideStore {
    pub accounts: Arc<dyn AccountStore>,
    pub security: Arc<dyn SecurityLog>,
    pub people_index: Arc<dyn PeopleIndex>,
    pub person_keys: Arc<dyn PersonKeys>,
    pub people: Arc<dyn PeopleStore>,
    pub rooms: Arc<dyn RoomStore>,
    /// As it lies in the store: content is sealed in it.
    pub log: Arc<dyn RoomLog>,
    pub push_targets: Arc<dyn PushTargetStore>,
    pub media_index: Arc<dyn MediaIndex>,
}

/// Sessions, leases and signals: Redis, or the embedded store.
#[derive(Clone)]
pub struct FastStore {
    pub sessions: Arc<dyn SessionStore>,
    pub ephemeral: Arc<dyn Ephemeral>,
    pub bus: Arc<dyn Bus>,
    pub registry: Arc<dyn ReplicaRegistry>,
    pub presence: Arc<dyn PresenceStore>,
    /// Rate limits of all processes; `None` where there is only one.
    pub limiter: Option<Arc<dyn RateLimiter>>,
}

/// Everything in one data directory.
pub struct EmbeddedStores {
    pub wide: WideStore,
    pub fast: FastStore,
    pub queue: Arc<dyn PushQueue>,
    pub probe: Arc<dyn Probe>,
    /// What a backup reads.
    pub source: carillon_backup::Source,
}

/// Opens the embedded stores.
pub fn open_embedded(directory: &Path) -> Result<EmbeddedStores, Failure> {
    let stores = embedded::open(directory)?;
    let source = super::backup::of_embedded(&stores);
    let wide = WideStore {
        accounts: stores.accounts,
        security: stores.security,
        people_index: stores.people_index,
        person_keys: stores.person_keys,
        people: stores.people,
        rooms: stores.rooms,
        log: stores.log,
        push_targets: stores.push_targets,
        media_index: stores.media_index,
    };
    let fast = FastStore {
        sessions: stores.sessions,
        ephemeral: stores.ephemeral,
        bus: stores.bus,
        registry: stores.registry,
        presence: stores.presence,
        limiter: None,
    };
    Ok(EmbeddedStores {
        wide,
        fast,
        queue: stores.push_queue,
        probe: stores.probe,
        source,
    })
}

/// Opens the store of uploaded bytes.
pub fn open_blobs(blob: &BlobConfig) -> Result<Arc<object::ObjectBlobs>, Failure> {
    match blob {
        BlobConfig::Directory { path } => Ok(object::directory(path)?),
        BlobConfig::S3 {
            bucket,
            endpoint,
            region,
            credentials_dir,
            ..
        } => Ok(object::s3(&object::S3Options {
            bucket: bucket.clone(),
            endpoint: Some(endpoint.clone()),
            region: region.clone(),
            access_key_id: config::secret(credentials_dir, "access_key_id")?,
            secret_access_key: config::secret(credentials_dir, "secret_access_key")?,
            prefix: String::new(),
            virtual_hosted: false,
        })?),
    }
}

/// Which stores a role needs.
pub fn needs_wide(role: Role) -> bool {
    role != Role::Gateway
}

/// Which roles use the push queue. None waits for it.
pub fn uses_queue(role: Role) -> bool {
    matches!(role, Role::Message | Role::Notification)
}

/// ScyllaDB's options.
pub fn scylla_options(config: &ScyllaConfig) -> Result<scylla::ScyllaOptions, Failure> {
    let login = config
        .credentials_dir
        .as_deref()
        .map(|directory| config::login(directory, true))
        .transpose()?;
    Ok(scylla::ScyllaOptions {
        contact_points: config.contact_points.clone(),
        datacenter: Some(config.datacenter.clone()),
        keyspace: config.keyspace.clone(),
        replication_factor: u8::try_from(config.replication_factor)
            .map_err(|_| Failure::usage("stores.scylla.replicationFactor: 1 to 255"))?,
        login,
    })
}

/// The probes of the real stores, before they are reached.
pub struct LateStores {
    scylla: Arc<LateProbe>,
    redis: Arc<LateProbe>,
    rabbitmq: Arc<LateProbe>,
}

impl LateStores {
    /// None reached yet.
    pub fn new() -> Self {
        Self {
            scylla: LateProbe::new("scylla"),
            redis: LateProbe::new("redis"),
            rabbitmq: LateProbe::new("rabbitmq"),
        }
    }

    /// Those that these roles use.
    pub fn dependencies(&self, roles: &[Role]) -> Vec<Dependency> {
        let mut dependencies = vec![Dependency::required(self.redis.clone())];
        if roles.iter().copied().any(needs_wide) {
            dependencies.push(Dependency::required(self.scylla.clone()));
        }
        if roles.iter().copied().any(uses_queue) {
            // A push is no part of an acknowledgement, and devices are registered without the queue.
            dependencies.push(Dependency::optional(self.rabbitmq.clone()));
        }
        dependencies
    }

    /// Reaches ScyllaDB; `None` when the stop came first.
    pub async fn wide(
        &self,
        stores: &ExternalStores,
        stop: &CancellationToken,
    ) -> Result<Option<WideStore>, Failure> {
        let options = scylla_options(&stores.scylla)?;
        let connected = self
            .scylla
            .reach(
                stop,
                || scylla::connect(&options),
                |stores| stores.probe.clone(),
            )
            .await;
        Ok(connected.map(|stores| WideStore {
            accounts: stores.accounts,
            security: stores.security,
            people_index: stores.people_index,
            person_keys: stores.person_keys,
            people: stores.people,
            rooms: stores.rooms,
            log: stores.log,
            push_targets: stores.push_targets,
            media_index: stores.media_index,
        }))
    }

    /// Reaches Redis; `None` when the stop came first.
    pub async fn fast(
        &self,
        stores: &ExternalStores,
        stop: &CancellationToken,
    ) -> Result<Option<FastStore>, Failure> {
        // Platforms that share servers are told apart as their keyspaces are.
        let (url, login) = config::redis(&stores.redis)?;
        let options = redis::RedisOptions {
            url,
            login,
            prefix: format!("{}:", stores.scylla.keyspace),
        };
        let connected = self
            .redis
            .reach(
                stop,
                || redis::connect(&options),
                |stores| stores.probe.clone(),
            )
            .await;
        Ok(connected.map(|stores| FastStore {
            sessions: stores.sessions,
            ephemeral: stores.ephemeral,
            bus: stores.bus,
            registry: stores.registry,
            presence: stores.presence,
            limiter: Some(stores.limiter),
        }))
    }

    /// RabbitMQ, reached in the background until `stop`.
    pub fn queue(
        &self,
        stores: &ExternalStores,
        stop: &CancellationToken,
    ) -> Result<Arc<dyn PushQueue>, Failure> {
        let (url, login) = config::rabbitmq(&stores.rabbitmq)?;
        let options = rabbitmq::RabbitOptions {
            url,
            login,
            prefix: stores.scylla.keyspace.clone(),
        };
        let (late, stop) = (self.rabbitmq.clone(), stop.clone());
        Ok(LateQueue::new(PUBLISH_PATIENCE, async move {
            let connected = late
                .reach(
                    &stop,
                    || rabbitmq::connect(&options),
                    |stores: &rabbitmq::Stores| stores.probe.clone(),
                )
                .await;
            connected.map(|stores| stores.push_queue)
        }))
    }
}
