//! Ports on ScyllaDB, in CQL that Apache Cassandra 5 knows too: accounts, contacts and blocks, rooms, the rooms' logs, push targets, the index of
//! uploads; and the migrations of its schema.
//!
//! Reads and writes are at LOCAL_QUORUM, conditional writes (LWT) at LOCAL_SERIAL: one data centre holds the truth. The driver
//! reconnects by itself; nothing here retries a write whose outcome is unknown.
//!
//! It holds no cache, and it does not order anything: sequence numbers come from the owner of a partition.

mod accounts;
mod archive;
mod database;
mod media;
mod migrations;
mod people;
mod people_index;
mod person_keys;
mod push_targets;
mod room_log;
mod rooms;
mod security;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result,
    ports::{
        AccountStore, Archive, MediaIndex, PeopleIndex, PeopleStore, PersonKeys, Probe,
        PushTargetStore, RoomLog, RoomStore, SecurityLog,
    },
};
use scylla::{
    authentication::{AuthenticatorProvider, AuthenticatorSession, PlainTextAuthenticator},
    client::{
        execution_profile::ExecutionProfile, session::Session, session_builder::SessionBuilder,
    },
    policies::{
        load_balancing::DefaultPolicy, retry::DefaultRetryPolicy,
        timestamp_generator::MonotonicTimestampGenerator,
    },
    statement::{Consistency, SerialConsistency, prepared::PreparedStatement},
};

use crate::Login;
pub use migrations::{Applied, Replication, check_schema, migrate};

use database::Database;

/// How long one statement may take before its outcome counts as unknown.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long opening a session may take, all contact points together.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// How to reach the database.
#[derive(Clone)]
pub struct ScyllaOptions {
    /// Nodes to ask first, `host` or `host:port`; they name the others.
    pub contact_points: Vec<String>,
    /// The data centre to use; without it, that of the first node that answers. Others are never asked.
    pub datacenter: Option<String>,
    /// Lower-case letters, digits and `_`, beginning with a letter.
    pub keyspace: String,
    /// Copies per row in the data centre; 3 in production. Only used when migrations make the keyspace.
    pub replication_factor: u8,
    /// When the database wants to know who asks.
    pub login: Option<Login>,
}

impl std::fmt::Debug for ScyllaOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ScyllaOptions")
            .field("contact_points", &self.contact_points)
            .field("datacenter", &self.datacenter)
            .field("keyspace", &self.keyspace)
            .finish_non_exhaustive()
    }
}

/// The driver's password authentication, with what counts when a connection is made.
struct CurrentLogin(Login);

#[async_trait]
impl AuthenticatorProvider for CurrentLogin {
    async fn start_authentication_session(
        &self,
        authenticator_name: &str,
    ) -> std::result::Result<(Option<Vec<u8>>, Box<dyn AuthenticatorSession>), String> {
        let login = self.0.now().map_err(|error| error.detail.into_owned())?;
        PlainTextAuthenticator::new(login.user.unwrap_or_default(), login.password)
            .start_authentication_session(authenticator_name)
            .await
    }
}

/// Every port that the database serves. Cheap to clone.
#[derive(Clone)]
pub struct Stores {
    /// Accounts.
    pub accounts: Arc<dyn AccountStore>,
    /// What happened to accounts.
    pub security: Arc<dyn SecurityLog>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleStore>,
    /// People by the beginnings of their names.
    pub people_index: Arc<dyn PeopleIndex>,
    /// Keys of people, and who is being erased.
    pub person_keys: Arc<dyn PersonKeys>,
    /// Rooms, members, read marks.
    pub rooms: Arc<dyn RoomStore>,
    /// The logs of all rooms.
    pub log: Arc<dyn RoomLog>,
    /// Where pushes go.
    pub push_targets: Arc<dyn PushTargetStore>,
    /// What is known of uploads.
    pub media_index: Arc<dyn MediaIndex>,
    /// Saving and loading all of it.
    pub archive: Arc<dyn Archive>,
    /// Whether the database works.
    pub probe: Arc<dyn Probe>,
}

/// Opens the stores. `Unavailable` naming the contact points when none answers; `FailedPrecondition` when the schema is not the
/// one that this release needs (see [`migrate`]), and while a backup is being loaded.
pub async fn connect(options: &ScyllaOptions) -> Result<Stores> {
    connect_to(options, false).await
}

/// The same to load a backup.
pub async fn connect_to_load(options: &ScyllaOptions) -> Result<Stores> {
    connect_to(options, true).await
}

async fn connect_to(options: &ScyllaOptions, load: bool) -> Result<Stores> {
    migrations::check_keyspace_name(&options.keyspace)?;
    let session = open_session(options).await?;
    check_schema(&session, &options.keyspace).await?;
    if !load {
        archive::check_loaded(&session, &options.keyspace).await?;
    }
    session
        .use_keyspace(options.keyspace.as_str(), false)
        .await
        .map_err(|cause| Error::unavailable("scylla", cause))?;
    let database = Database::new(session);
    let rooms = Arc::new(rooms::Rooms::new(&database).await?);
    let log = room_log::Log::new(&database).await?;
    let whole = archive::Whole::new(&database, rooms.clone(), log.clone()).await?;
    Ok(Stores {
        accounts: Arc::new(accounts::Accounts::new(&database).await?),
        security: Arc::new(security::Security::new(&database).await?),
        people: Arc::new(people::People::new(&database).await?),
        people_index: Arc::new(people_index::Index::new(&database).await?),
        person_keys: Arc::new(person_keys::Keys::new(&database).await?),
        rooms,
        log: Arc::new(log),
        push_targets: Arc::new(push_targets::PushTargets::new(&database).await?),
        media_index: Arc::new(media::Media::new(&database).await?),
        archive: Arc::new(whole),
        probe: Arc::new(ScyllaProbe::new(&database).await?),
    })
}

/// Brings the keyspace of `options` up to this release's schema: [`migrate`] with a session of its own.
pub async fn migrate_with(options: &ScyllaOptions) -> Result<Vec<Applied>> {
    migrations::check_keyspace_name(&options.keyspace)?;
    let session = open_session(options).await?;
    let replication = Replication {
        datacenter: datacenter(options, &session)?,
        factor: options.replication_factor,
    };
    migrate(&session, &options.keyspace, &replication).await
}

/// A session without a keyspace.
pub async fn open_session(options: &ScyllaOptions) -> Result<Session> {
    let mut balancing = DefaultPolicy::builder()
        .token_aware(true)
        .permit_dc_failover(false);
    if let Some(datacenter) = &options.datacenter {
        balancing = balancing.prefer_datacenter(datacenter.clone());
    }
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(STATEMENT_TIMEOUT))
        .retry_policy(Arc::new(DefaultRetryPolicy::new()))
        .speculative_execution_policy(None)
        .load_balancing_policy(balancing.build())
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&options.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .connection_timeout(Duration::from_secs(5))
        .schema_agreement_timeout(Duration::from_secs(60))
        // Two writes of one process to one cell must be ordered by the process, not by the clocks of two coordinators.
        .timestamp_generator(Arc::new(MonotonicTimestampGenerator::new()))
        // Nothing here reads the driver's copy of the schema beyond keyspaces, which token awareness needs.
        .fetch_schema_metadata(true);
    if let Some(login) = &options.login {
        builder = builder.authenticator_provider(Arc::new(CurrentLogin(login.clone())));
    }
    let unreachable = || {
        Error::new(
            ErrorCode::Unavailable,
            format!(
                "scylla: none of the contact points {} can be used; are they right, up, and is the password valid?",
                options.contact_points.join(", ")
            ),
        )
    };
    let session = tokio::time::timeout(START_TIMEOUT, builder.build())
        .await
        .map_err(|late| unreachable().caused_by(late))?
        .map_err(|cause| unreachable().caused_by(cause))?;
    datacenter(options, &session)?;
    Ok(session)
}

/// The data centre in use, checked against those that exist.
fn datacenter(options: &ScyllaOptions, session: &Session) -> Result<String> {
    let cluster = session.get_cluster_state();
    let mut known: Vec<&str> = cluster
        .get_nodes_info()
        .iter()
        .filter_map(|node| node.datacenter.as_deref())
        .collect();
    known.sort_unstable();
    known.dedup();
    match (&options.datacenter, known.as_slice()) {
        (Some(wanted), _) if known.contains(&wanted.as_str()) => Ok(wanted.clone()),
        (None, [only]) => Ok((*only).to_owned()),
        (Some(wanted), _) => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "scylla: there is no data centre {wanted}; there are: {}",
                known.join(", ")
            ),
        )),
        (None, _) => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "scylla: name the data centre to use, one of: {}",
                known.join(", ")
            ),
        )),
    }
}

struct ScyllaProbe {
    database: Database,
    read: PreparedStatement,
}

impl ScyllaProbe {
    async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            database: database.clone(),
            read: database
                .prepare("SELECT epoch FROM partition_epochs WHERE partition = ?")
                .await?,
        })
    }
}

#[async_trait]
impl Probe for ScyllaProbe {
    fn name(&self) -> &'static str {
        "scylla"
    }

    async fn check(&self) -> Result<()> {
        // A quorum read: with too few replicas up, every other operation would fail too.
        self.database
            .row::<(i64,)>("probe", &self.read, (0i32,))
            .await
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::UserPassword;

    /// Each connection is authenticated by the password of its moment, in the form of the driver's own (SASL PLAIN, RFC 4616).
    #[tokio::test]
    async fn a_new_password_counts_for_the_next_connection() {
        let asked = AtomicUsize::new(0);
        let login = CurrentLogin(Login::new(move || {
            Ok(UserPassword {
                user: Some("ann".to_owned()),
                password: format!("p{}", asked.fetch_add(1, Ordering::SeqCst)),
            })
        }));
        for expected in ["\0ann\0p0", "\0ann\0p1"] {
            let (response, _) = login.start_authentication_session("x").await.unwrap();
            assert_eq!(response.unwrap(), expected.as_bytes());
        }
    }
}
