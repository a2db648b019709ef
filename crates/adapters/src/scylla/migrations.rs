//! The schema, as numbered migrations.
//!
//! A migration is never changed once released: its checksum is stored, and a difference is an error. Each statement may run
//! twice (`IF NOT EXISTS`), so that a migration that was cut off is simply run again. Migrations only add, so that the release
//! before goes on working while a new one is rolled out.

use std::time::Duration;

use carillon_domain::{Error, ErrorCode, Result, Timestamp, time::Clock, time::SystemClock};
use scylla::{
    client::session::Session,
    errors::{DbError, ExecutionError, RequestAttemptError},
    serialize::row::SerializeRow,
    statement::unprepared::Statement,
    value::{CqlTimestamp, CqlValue, Row},
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::database::{Conditional, column, conditional, failed, prepare_conditional};

/// One step of the schema.
struct Migration {
    version: i32,
    name: &'static str,
    /// `{}` stands for the keyspace.
    statements: &'static [&'static str],
}

/// A migration that was applied by a call of [`migrate`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Applied {
    /// Its number, from 1.
    pub version: i32,
    /// What it does, in a few words.
    pub name: &'static str,
}

/// How a new keyspace is replicated.
#[derive(Clone, Debug)]
pub struct Replication {
    /// The data centre.
    pub datacenter: String,
    /// Copies per row in it.
    pub factor: u8,
}

const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "accounts, rooms, logs, push targets, media",
    statements: &[
        // === accounts ===
        // A row with an id alone marks a creation that was given up: see `accounts`.
        "CREATE TABLE IF NOT EXISTS {}.users (
            id uuid PRIMARY KEY, username text, display_name text, created_at timestamp,
            email text, phone text, password_hash text, abandoned boolean)",
        "CREATE TABLE IF NOT EXISTS {}.account_names (
            kind text, name text, user uuid, claimed_at timestamp, PRIMARY KEY ((kind, name)))",
        // === rooms and the projections of their logs ===
        "CREATE TABLE IF NOT EXISTS {}.rooms (
            id uuid PRIMARY KEY, kind text, name text, description text,
            created_by uuid, created_at timestamp, pair_a uuid, pair_b uuid, deleted_at timestamp)",
        "CREATE TABLE IF NOT EXISTS {}.public_rooms (shard int, room uuid, PRIMARY KEY (shard, room))",
        "CREATE TABLE IF NOT EXISTS {}.direct_rooms (a uuid, b uuid, room uuid, PRIMARY KEY ((a, b)))",
        "CREATE TABLE IF NOT EXISTS {}.members (
            room uuid, user uuid, role text, since bigint, joined_at timestamp, PRIMARY KEY (room, user))",
        "CREATE TABLE IF NOT EXISTS {}.rooms_by_user (user uuid, room uuid, since bigint, PRIMARY KEY (user, room))",
        "CREATE TABLE IF NOT EXISTS {}.read_states (
            user uuid, room uuid, seq bigint, messages bigint, time timestamp, PRIMARY KEY (user, room))",
        // === the logs of rooms ===
        "CREATE TABLE IF NOT EXISTS {}.partition_epochs (partition int PRIMARY KEY, epoch bigint, owner text)",
        "CREATE TABLE IF NOT EXISTS {}.room_fences (room uuid, epoch bigint, first bigint, PRIMARY KEY (room, epoch))",
        "CREATE TABLE IF NOT EXISTS {}.room_heads (room uuid PRIMARY KEY, seq bigint)",
        // An event lies at slot = its own place; an edit or delete also at slot = the place of the message it changes.
        "CREATE TABLE IF NOT EXISTS {}.messages (
            room uuid, bucket bigint, slot bigint, seq bigint, epoch bigint,
            time timestamp, actor uuid, before bigint, body text,
            PRIMARY KEY ((room, bucket), slot, seq, epoch))",
        "CREATE TABLE IF NOT EXISTS {}.sent (
            sender uuid, client_message_id text, room uuid, seq bigint, epoch bigint,
            PRIMARY KEY ((sender, client_message_id), room, seq, epoch))",
        "CREATE TABLE IF NOT EXISTS {}.message_index (id uuid PRIMARY KEY, room uuid, seq bigint)",
        // === the rest ===
        "CREATE TABLE IF NOT EXISTS {}.push_targets (
            user uuid, device uuid, provider text, push_token text, p256dh text, auth text,
            PRIMARY KEY (user, device))",
        "CREATE TABLE IF NOT EXISTS {}.media (
            id uuid PRIMARY KEY, room uuid, owner uuid, file_name text, content_type text,
            size bigint, sha256 text, created_at timestamp)",
    ],
}, Migration {
    version: 2,
    name: "restrictions, invitations, rules, receipts, retention, counts",
    statements: &[
        // Every column is written with its event's sequence as timestamp, so that the later event wins.
        "CREATE TABLE IF NOT EXISTS {}.restrictions (
            room uuid, user uuid, banned boolean, invited boolean, muted_until timestamp, PRIMARY KEY (room, user))",
        "CREATE TABLE IF NOT EXISTS {}.invites (user uuid, room uuid, PRIMARY KEY (user, room))",
        "CREATE TABLE IF NOT EXISTS {}.room_profiles (room uuid PRIMARY KEY, name text, description text, rules text)",
        "CREATE TABLE IF NOT EXISTS {}.retained_rooms (shard int, room uuid, PRIMARY KEY (shard, room))",
        // The marks' sequences are the timestamps, so that the largest wins; a deletion has that of the event that ended the
        // membership.
        "CREATE TABLE IF NOT EXISTS {}.receipts (
            room uuid, user uuid, delivered bigint, delivered_at timestamp, read bigint, read_at timestamp,
            PRIMARY KEY (room, user))",
        "CREATE TABLE IF NOT EXISTS {}.deleted_messages (room uuid, seq bigint, PRIMARY KEY (room, seq))",
        // Without a user (all zeros): everybody.
        "CREATE TABLE IF NOT EXISTS {}.mentions (room uuid, user uuid, seq bigint, PRIMARY KEY ((room, user), seq))",
        "CREATE TABLE IF NOT EXISTS {}.room_floors (room uuid PRIMARY KEY, first bigint, messages bigint, purged bigint)",
    ],
}, Migration {
    version: 3,
    name: "contacts and blocks",
    statements: &[
        // Who said it of whom, and the same by whom it is about.
        "CREATE TABLE IF NOT EXISTS {}.contacts (user uuid, other uuid, since timestamp, PRIMARY KEY (user, other))",
        "CREATE TABLE IF NOT EXISTS {}.contacts_about (user uuid, other uuid, PRIMARY KEY (user, other))",
        "CREATE TABLE IF NOT EXISTS {}.blocks (user uuid, other uuid, since timestamp, PRIMARY KEY (user, other))",
        "CREATE TABLE IF NOT EXISTS {}.blocks_about (user uuid, other uuid, PRIMARY KEY (user, other))",
    ],
}, Migration {
    version: 4,
    name: "history of accounts",
    statements: &[
        // Rows end by themselves; `client` is JSON.
        "CREATE TABLE IF NOT EXISTS {}.security_events (
            user uuid, trail text, id uuid, time timestamp, kind text, device uuid, client text,
            PRIMARY KEY ((user, trail), id)) WITH CLUSTERING ORDER BY (id DESC)",
        // See `accounts`.
        "ALTER TABLE {}.users ADD IF NOT EXISTS name_fence uuid",
    ],
}, Migration {
    version: 5,
    name: "profiles, search of people",
    statements: &[
        "ALTER TABLE {}.users ADD IF NOT EXISTS bio text",
        "ALTER TABLE {}.users ADD IF NOT EXISTS status_text text",
        // The bucket is a term's first two characters.
        "CREATE TABLE IF NOT EXISTS {}.people_index (bucket text, term text, user uuid, PRIMARY KEY (bucket, term, user))",
    ],
}, Migration {
    version: 6,
    name: "erasure",
    statements: &[
        // What was destroyed leaves the disks a day later, not ten.
        "CREATE TABLE IF NOT EXISTS {}.person_keys (user uuid PRIMARY KEY, key blob, destroyed_at timestamp) WITH gc_grace_seconds = 86400",
        "CREATE TABLE IF NOT EXISTS {}.erasures (part text, user uuid, PRIMARY KEY (part, user))",
        "CREATE TABLE IF NOT EXISTS {}.media_by_owner (owner uuid, id uuid, PRIMARY KEY (owner, id))",
    ],
}];

/// How long a process may hold the right to migrate without renewing it: a crashed one blocks others no longer than this.
const LOCK_SECONDS: i32 = 60;
/// How long one change of the schema may take: shorter than the lock.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to try to make the keyspace and the tables that migrations need themselves.
const GROUND_PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait for another process that migrates.
const LOCK_PATIENCE: Duration = Duration::from_secs(180);
/// How often to look whether it is done.
const LOCK_POLL: Duration = Duration::from_millis(200);

/// Brings a keyspace up to this release's schema, making it if need be; answers what was applied, nothing if it was current.
/// May be called by several processes at once: one migrates, the others wait for it. When it returns, every live node has the
/// schema.
pub async fn migrate(
    session: &Session,
    keyspace: &str,
    replication: &Replication,
) -> Result<Vec<Applied>> {
    check_keyspace_name(keyspace)?;
    make_ground(session, keyspace, replication).await?;
    let schema = Schema { session, keyspace };
    let holder = Uuid::new_v4();
    schema.lock(holder).await?;
    let result = schema.apply_missing(holder).await;
    // A lock that can't be given back ends by itself.
    if let Err(error) = schema.unlock(holder).await {
        tracing::warn!(%error, "the migration lock was not given back; it ends by itself");
    }
    result
}

/// `Ok` when the keyspace has exactly this release's schema; else `FailedPrecondition` that says what to do.
pub async fn check_schema(session: &Session, keyspace: &str) -> Result<()> {
    check_keyspace_name(keyspace)?;
    let latest = MIGRATIONS.last().map_or(0, |migration| migration.version);
    let stored = match (Schema { session, keyspace }).versions().await {
        Ok(stored) => stored,
        Err(Missing::Nothing) => Vec::new(),
        Err(Missing::Failed(error)) => return Err(error),
    };
    check_checksums(&stored)?;
    let current = stored
        .iter()
        .map(|(version, _)| *version)
        .max()
        .unwrap_or(0);
    let refuse = |detail: String| Err(Error::new(ErrorCode::FailedPrecondition, detail));
    match current.cmp(&latest) {
        // Migrations only add, so that pods of the release before can restart while a newer one is rolled out.
        std::cmp::Ordering::Equal | std::cmp::Ordering::Greater => Ok(()),
        std::cmp::Ordering::Less => refuse(format!(
            "scylla: the schema of keyspace {keyspace} is at version {current}, this release needs {latest}: run the migrations first"
        )),
    }
}

/// Names go into statements as text, so only harmless ones are taken.
pub(super) fn check_keyspace_name(name: &str) -> Result<()> {
    let fits = (1..=48).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits {
        return Ok(());
    }
    Err(Error::invalid(
        "scylla.keyspace",
        "1 to 48 lower-case letters, digits and _, beginning with a letter",
    ))
}

async fn make_keyspace(session: &Session, keyspace: &str, replication: &Replication) -> Result<()> {
    let known = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
    if !query(session, known, (keyspace,)).await?.is_empty() {
        return Ok(());
    }
    let datacenter = replication.datacenter.replace('\'', "''");
    let create = format!(
        "CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {{'class': 'NetworkTopologyStrategy', '{datacenter}': {}}}",
        replication.factor.max(1)
    );
    // ScyllaDB's tablets came before conditional writes on them; vnodes know both. Cassandra and older ScyllaDB don't know
    // the option and refuse it.
    let scylla = session
        .get_cluster_state()
        .get_nodes_info()
        .iter()
        .any(|node| node.sharder().is_some());
    if scylla {
        let on_vnodes = format!("{create} AND tablets = {{'enabled': false}}");
        match change_schema(session, on_vnodes).await {
            Ok(()) => return agree(session).await,
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::SyntaxError | DbError::Invalid | DbError::ConfigError,
                _,
            ))) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    change_schema(session, create).await.map_err(failed)?;
    agree(session).await
}

/// The tables that the migrations need themselves; they can't be guarded by the lock that one of them holds.
async fn make_own_tables(session: &Session, keyspace: &str) -> Result<()> {
    let tables = [
        ("schema_locks", "name text PRIMARY KEY, holder uuid"),
        (
            "schema_migrations",
            "component text, version int, name text, checksum text, applied_at timestamp, PRIMARY KEY (component, version)",
        ),
    ];
    for (table, columns) in tables {
        let known = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
        if query(session, known, (keyspace, table)).await?.is_empty() {
            let create = format!("CREATE TABLE IF NOT EXISTS {keyspace}.{table} ({columns})");
            change_schema(session, create).await.map_err(failed)?;
            agree(session).await?;
        }
        // While another process makes a table, it is listed before it can be used.
        let read = format!("SELECT * FROM {keyspace}.{table} LIMIT 1");
        session.query_unpaged(read, ()).await.map_err(failed)?;
    }
    Ok(())
}

/// Another process may be making the keyspace and the tables at the same moment: then it only has to be tried again.
async fn make_ground(session: &Session, keyspace: &str, replication: &Replication) -> Result<()> {
    let deadline = tokio::time::Instant::now() + GROUND_PATIENCE;
    loop {
        let made = async {
            make_keyspace(session, keyspace, replication).await?;
            make_own_tables(session, keyspace).await
        };
        match made.await {
            Err(error) if tokio::time::Instant::now() < deadline => {
                tracing::debug!(
                    cause = error.cause_chain(),
                    "the keyspace can't be used yet"
                );
                tokio::time::sleep(LOCK_POLL).await;
            }
            result => return result,
        }
    }
}

async fn change_schema(session: &Session, cql: String) -> Result<(), ExecutionError> {
    let mut statement = Statement::new(cql);
    statement.set_request_timeout(Some(SCHEMA_TIMEOUT));
    session.query_unpaged(statement, ()).await.map(drop)
}

async fn agree(session: &Session) -> Result<()> {
    session
        .await_schema_agreement()
        .await
        .map(drop)
        .map_err(|cause| Error::unavailable("scylla", cause))
}

/// Why versions couldn't be read.
enum Missing {
    /// There is no keyspace, or no table of migrations in it.
    Nothing,
    /// Something else went wrong.
    Failed(Error),
}

struct Schema<'a> {
    session: &'a Session,
    keyspace: &'a str,
}

impl Schema<'_> {
    /// Versions and checksums that were applied.
    async fn versions(&self) -> Result<Vec<(i32, String)>, Missing> {
        let cql = format!(
            "SELECT version, checksum FROM {}.schema_migrations WHERE component = 'carillon'",
            self.keyspace
        );
        let rows = match self.session.query_unpaged(cql, ()).await {
            Ok(rows) => rows,
            Err(ExecutionError::LastAttemptError(RequestAttemptError::DbError(
                DbError::Invalid,
                _,
            ))) => return Err(Missing::Nothing),
            Err(error) => return Err(Missing::Failed(failed(error))),
        };
        let internal = |error| Missing::Failed(Error::internal(error));
        rows.into_rows_result()
            .map_err(|error| Missing::Failed(Error::internal(error)))?
            .rows::<(i32, String)>()
            .map_err(|error| Missing::Failed(Error::internal(error)))?
            .map(|row| row.map_err(internal))
            .collect()
    }

    async fn apply_missing(&self, holder: Uuid) -> Result<Vec<Applied>> {
        let stored = match self.versions().await {
            Ok(stored) => stored,
            Err(Missing::Nothing) => return Err(Error::defect("the table of migrations is gone")),
            Err(Missing::Failed(error)) => return Err(error),
        };
        check_checksums(&stored)?;
        let mut applied = Vec::new();
        for migration in MIGRATIONS {
            if stored
                .iter()
                .any(|(version, _)| *version == migration.version)
            {
                continue;
            }
            for statement in migration.statements {
                self.renew(holder).await?;
                let cql = match added_column(statement) {
                    // ScyllaDB doesn't know the words for it.
                    Some((table, column)) => {
                        if self.has_column(table, column).await? {
                            continue;
                        }
                        statement.replace(" IF NOT EXISTS", "")
                    }
                    None => (*statement).to_owned(),
                };
                let cql = cql.replace("{}", self.keyspace);
                change_schema(self.session, cql).await.map_err(failed)?;
            }
            agree(self.session).await?;
            self.record(migration).await?;
            tracing::info!(
                version = migration.version,
                name = migration.name,
                "migration applied"
            );
            applied.push(Applied {
                version: migration.version,
                name: migration.name,
            });
        }
        Ok(applied)
    }

    async fn has_column(&self, table: &str, column: &str) -> Result<bool> {
        let known = "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ? AND column_name = ?";
        let values = (self.keyspace, table, column);
        Ok(!query(self.session, known, values).await?.is_empty())
    }

    async fn record(&self, migration: &Migration) -> Result<()> {
        let cql = format!(
            "INSERT INTO {}.schema_migrations (component, version, name, checksum, applied_at) VALUES ('carillon', ?, ?, ?, ?)",
            self.keyspace
        );
        let Timestamp(now) = SystemClock.now();
        let values = (
            migration.version,
            migration.name,
            checksum(migration),
            CqlTimestamp(now),
        );
        self.session
            .query_unpaged(cql, values)
            .await
            .map(drop)
            .map_err(failed)
    }

    async fn lock(&self, holder: Uuid) -> Result<()> {
        let wait = async {
            while !self.try_lock(holder).await? {
                tokio::time::sleep(LOCK_POLL).await;
            }
            Ok(())
        };
        tokio::time::timeout(LOCK_PATIENCE, wait)
            .await
            .unwrap_or_else(|late| {
                Err(Error::new(
                    ErrorCode::Unavailable,
                    "scylla: another process has been migrating the schema for too long",
                )
                .caused_by(late))
            })
    }

    async fn try_lock(&self, holder: Uuid) -> Result<bool> {
        // A plain read first: who only waits must not disturb who renews.
        let read = format!(
            "SELECT holder FROM {}.schema_locks WHERE name = 'migrations'",
            self.keyspace
        );
        if !query(self.session, &read, ()).await?.is_empty() {
            return Ok(false);
        }
        let claim = format!(
            "INSERT INTO {}.schema_locks (name, holder) VALUES ('migrations', ?) IF NOT EXISTS USING TTL {LOCK_SECONDS}",
            self.keyspace
        );
        self.conditional(&claim, (holder,), holder).await
    }

    async fn renew(&self, holder: Uuid) -> Result<()> {
        let renew = format!(
            "UPDATE {}.schema_locks USING TTL {LOCK_SECONDS} SET holder = ? WHERE name = 'migrations' IF holder = ?",
            self.keyspace
        );
        if self.conditional(&renew, (holder, holder), holder).await? {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Unavailable,
            "scylla: the right to migrate the schema was lost, try again",
        ))
    }

    async fn unlock(&self, holder: Uuid) -> Result<()> {
        let release = format!(
            "DELETE FROM {}.schema_locks WHERE name = 'migrations' IF holder = ?",
            self.keyspace
        );
        self.conditional(&release, (holder,), holder)
            .await
            .map(drop)
    }

    /// Whether the write was applied, now or by an earlier try: then the lock has this holder.
    async fn conditional(
        &self,
        cql: &str,
        values: impl SerializeRow,
        holder: Uuid,
    ) -> Result<bool> {
        let statement = prepare_conditional(self.session, cql).await?;
        match conditional(self.session, &statement, values).await? {
            Conditional::Applied => Ok(true),
            Conditional::Refused(row) => Ok(
                matches!(column(&row, "holder"), Some(CqlValue::Uuid(stored)) if *stored == holder),
            ),
        }
    }
}

/// The table and column of a statement that adds one, `ALTER TABLE {}.table ADD IF NOT EXISTS column type`.
fn added_column(statement: &str) -> Option<(&str, &str)> {
    let (table, rest) = statement
        .strip_prefix("ALTER TABLE {}.")?
        .split_once(" ADD IF NOT EXISTS ")?;
    Some((table, rest.split_once(' ')?.0))
}

/// What was applied must be what this release holds under the same number.
fn check_checksums(stored: &[(i32, String)]) -> Result<()> {
    for migration in MIGRATIONS {
        let other = stored
            .iter()
            .find(|(version, _)| *version == migration.version)
            .is_some_and(|(_, stored)| *stored != checksum(migration));
        if other {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                format!(
                    "scylla: migration {} was applied with other statements than this release holds",
                    migration.version
                ),
            ));
        }
    }
    Ok(())
}

/// Of the statements, without the blanks of their layout.
fn checksum(migration: &Migration) -> String {
    let mut hash = Sha256::new();
    for statement in migration.statements {
        for word in statement.split_whitespace() {
            hash.update(word);
            hash.update(b" ");
        }
        hash.update(b";");
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

async fn query(session: &Session, cql: &str, values: impl SerializeRow) -> Result<Vec<Row>> {
    session
        .query_unpaged(cql, values)
        .await
        .map_err(failed)?
        .into_rows_result()
        .map_err(Error::internal)?
        .rows::<Row>()
        .map_err(Error::internal)?
        .map(|row| row.map_err(Error::internal))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_dense_from_one() {
        let versions: Vec<i32> = MIGRATIONS
            .iter()
            .map(|migration| migration.version)
            .collect();
        let dense: Vec<i32> = (1..).take(MIGRATIONS.len()).collect();
        assert_eq!(versions, dense);
    }

    /// A released migration must never change: databases that have it would differ from new ones.
    #[test]
    fn released_migrations_are_as_they_were() {
        let known = [(1, FIRST)];
        for (version, expected) in known {
            let migration = MIGRATIONS.iter().find(|m| m.version == version).unwrap();
            assert_eq!(checksum(migration), expected, "migration {version}");
        }
    }

    const FIRST: &str = "dded3d04f393b399b58e438ff621a128afa55bf3fdb8a8e7a7ba44a3845caf1b";

    #[test]
    fn every_statement_may_run_twice() {
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements) {
            assert!(statement.contains("IF NOT EXISTS"), "{statement}");
        }
    }

    /// OPS-06: what alters a table must be understood, for it is sent without the words that make it repeatable.
    #[test]
    fn columns_are_added_one_by_one() {
        assert_eq!(
            added_column("ALTER TABLE {}.users ADD IF NOT EXISTS name_fence uuid"),
            Some(("users", "name_fence"))
        );
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements) {
            assert_eq!(
                statement.starts_with("ALTER"),
                added_column(statement).is_some(),
                "{statement}"
            );
        }
    }

    #[test]
    fn only_harmless_keyspace_names_are_taken() {
        for good in ["carillon", "c1_test"] {
            assert!(check_keyspace_name(good).is_ok(), "{good}");
        }
        for bad in ["", "1a", "A", "a;drop", "a b", &"a".repeat(49)] {
            assert!(check_keyspace_name(bad).is_err(), "{bad}");
        }
    }
}
