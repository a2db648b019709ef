//! [`Archive`]: what there is, by token, and rows put back as they were.
//!
//! Ids are read in the order of their tokens, a page after another one's last id. Two ids with one token (one pair in 10^19) at the
//! border of two pages would lose the second.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, MediaId, Result, RoomId, UserId,
    event::RoomEvent,
    ports::{Archive, Bounds, Floor, OpenRoom, Reached, ReadMark, Receipt, RoomStore as _},
    room::{Room, Standing},
    time::{Clock as _, SystemClock},
};
use futures::future::BoxFuture;
use scylla::{client::session::Session, statement::prepared::PreparedStatement};
use uuid::Uuid;

use super::{
    database::{Database, cql_time, failed, signed, some_at_a_time},
    room_log::Log,
    rooms::{RECEIPT_DELIVERED, RECEIPT_READ, Rooms, row_limit},
};

/// What a store says of a load, in the place of a migration's checksum.
const LOADING: &str = "loading";
const LOADED: &str = "loaded";

/// The whole keyspace.
pub(super) struct Whole {
    database: Database,
    rooms: Arc<Rooms>,
    log: Log,
    ids: [Ids; 3],
    any: Vec<PreparedStatement>,
    load: PreparedStatement,
    note_load: PreparedStatement,
    receipt_read: PreparedStatement,
    receipt_delivered: PreparedStatement,
}

/// Reads of a table's ids.
struct Ids {
    first: PreparedStatement,
    after: PreparedStatement,
}

/// Places in [`Whole::ids`].
const USERS: usize = 0;
const ROOMS: usize = 1;
const MEDIA: usize = 2;

/// Refuses a keyspace that holds a part of a backup.
pub(super) async fn check_loaded(session: &Session, keyspace: &str) -> Result<()> {
    let cql = format!(
        "SELECT name, checksum FROM {keyspace}.schema_migrations WHERE component = 'restore' AND version = 1"
    );
    let rows = session
        .query_unpaged(cql, ())
        .await
        .map_err(failed)?
        .into_rows_result()
        .map_err(Error::internal)?;
    match rows
        .maybe_first_row::<(String, String)>()
        .map_err(Error::internal)?
    {
        Some((backup, state)) if state != LOADED => Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "scylla: backup {backup} is being restored into keyspace {keyspace}, or a restore of it didn't end: wait for it, or run it again"
            ),
        )),
        _ => Ok(()),
    }
}

impl Whole {
    pub(super) async fn new(database: &Database, rooms: Arc<Rooms>, log: Log) -> Result<Self> {
        let mut any = Vec::new();
        for table in [
            "users",
            "rooms",
            "messages",
            "media",
            "push_targets",
            "contacts",
            "blocks",
        ] {
            let column = match table {
                "users" | "rooms" | "media" => "id",
                "messages" => "room",
                _ => "user",
            };
            let cql = format!("SELECT {column} FROM {table} LIMIT 1");
            any.push(database.prepare(&cql).await?);
        }
        Ok(Self {
            ids: [
                Ids::new(database, "users").await?,
                Ids::new(database, "rooms").await?,
                Ids::new(database, "media").await?,
            ],
            any,
            load: database
                .prepare("SELECT name, checksum FROM schema_migrations WHERE component = 'restore' AND version = 1")
                .await?,
            note_load: database
                .prepare("INSERT INTO schema_migrations (component, version, name, checksum, applied_at) VALUES ('restore', 1, ?, ?, ?)")
                .await?,
            receipt_read: database.prepare(RECEIPT_READ).await?,
            receipt_delivered: database.prepare(RECEIPT_DELIVERED).await?,
            database: database.clone(),
            rooms,
            log,
        })
    }

    /// Whether it holds nothing that somebody wrote.
    async fn is_empty(&self) -> Result<bool> {
        for statement in &self.any {
            let row: Option<(Uuid,)> = self.database.row("is_empty", statement, ()).await?;
            if row.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn note_load(&self, backup: &str, state: &str) -> Result<()> {
        let values = (backup, state, cql_time(SystemClock.now()));
        self.database
            .write("note_load", &self.note_load, values)
            .await
    }

    async fn ids(&self, table: usize, after: Option<Uuid>, limit: usize) -> Result<Vec<Uuid>> {
        let (ids, limit) = (&self.ids[table], row_limit(limit));
        let rows: Vec<(Uuid,)> = match after {
            None => self.database.rows("scan", &ids.first, (limit,)).await?,
            Some(after) => {
                let values = (after, limit);
                self.database.rows("scan", &ids.after, values).await?
            }
        };
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    async fn load_receipt(&self, room: RoomId, receipt: &Receipt) -> Result<()> {
        let user = receipt.user.0;
        // The marks' sequences are the timestamps: who left since has a deletion that is later.
        let values = |reached: Reached| {
            let sequence = signed(reached.sequence.0);
            (room.0, user, sequence, cql_time(reached.time), sequence)
        };
        if let Some(read) = receipt.read {
            self.database
                .write("mark_receipt", &self.receipt_read, values(read))
                .await?;
        }
        if let Some(delivered) = receipt.delivered {
            let values = values(delivered);
            self.database
                .write("mark_delivered", &self.receipt_delivered, values)
                .await?;
        }
        Ok(())
    }
}

impl Ids {
    async fn new(database: &Database, table: &str) -> Result<Self> {
        Ok(Self {
            first: database
                .prepare(&format!("SELECT id FROM {table} LIMIT ?"))
                .await?,
            after: database
                .prepare(&format!(
                    "SELECT id FROM {table} WHERE token(id) > token(?) LIMIT ?"
                ))
                .await?,
        })
    }
}

#[async_trait]
impl Archive for Whole {
    async fn users(&self, after: Option<UserId>, limit: usize) -> Result<Vec<UserId>> {
        let ids = self.ids(USERS, after.map(|id| id.0), limit).await?;
        Ok(ids.into_iter().map(UserId).collect())
    }

    async fn rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>> {
        let ids = self.ids(ROOMS, after.map(|id| id.0), limit).await?;
        Ok(ids.into_iter().map(RoomId).collect())
    }

    async fn media(&self, after: Option<MediaId>, limit: usize) -> Result<Vec<MediaId>> {
        let ids = self.ids(MEDIA, after.map(|id| id.0), limit).await?;
        Ok(ids.into_iter().map(MediaId).collect())
    }

    async fn peek(&self, room: RoomId) -> Result<OpenRoom> {
        self.log.peek(room).await
    }

    async fn begin_load(&self, backup: &str) -> Result<bool> {
        let stands: Option<(String, String)> =
            self.database.row("read_load", &self.load, ()).await?;
        match stands {
            Some((begun, state)) if begun == backup => return Ok(state == LOADING),
            Some((other, state)) if state == LOADING => {
                return Err(Error::new(
                    ErrorCode::FailedPrecondition,
                    format!(
                        "the keyspace holds a part of backup {other}: restore that one again, or drop the keyspace"
                    ),
                ));
            }
            _ => {}
        }
        if !self.is_empty().await? {
            return Err(Error::new(
                ErrorCode::FailedPrecondition,
                "the keyspace isn't empty: a backup is only restored into a new one",
            ));
        }
        self.note_load(backup, LOADING).await?;
        Ok(true)
    }

    async fn end_load(&self, backup: &str) -> Result<()> {
        self.note_load(backup, LOADED).await
    }

    async fn load_room(&self, room: &Room, bounds: Bounds) -> Result<()> {
        // Its log first: where a room is, its log is.
        self.log.load_bounds(room, bounds).await?;
        if let Some([a, b]) = room.pair {
            self.rooms.direct_room(a, b, room.id).await?;
        }
        self.rooms.create(room).await
    }

    async fn load_standings(&self, room: RoomId, standings: &[(UserId, Standing)]) -> Result<()> {
        self.log.load_standings(room, standings).await
    }

    async fn load_events(&self, room: RoomId, floor: Floor, events: &[RoomEvent]) -> Result<()> {
        self.log.load_events(room, floor, events).await
    }

    async fn load_marks(&self, user: UserId, marks: &[(RoomId, ReadMark)]) -> Result<()> {
        self.log.load_marks(user, marks).await
    }

    async fn load_receipts(&self, room: RoomId, receipts: &[Receipt]) -> Result<()> {
        let mut writes: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for receipt in receipts {
            writes.push(Box::pin(self.load_receipt(room, receipt)));
        }
        some_at_a_time(writes).await.map(drop)
    }
}
