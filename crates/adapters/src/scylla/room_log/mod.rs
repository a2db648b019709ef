//! [`RoomLog`]: the events of all rooms, written by one owner per partition and protected from all earlier ones.
//!
//! **Who owns.** `partition_epochs` holds the epoch of each partition; taking one raises it with a conditional write.
//!
//! **Why an acknowledged event can't be lost.** `append` first writes its rows at quorum (W), and then reads the epoch at
//! quorum (R); it answers `Ok` only if R still shows its own epoch. A new owner first raises the epoch (C) and then looks for
//! the head at quorum (H). The conditional write C answers only after it was committed at quorum, so that a quorum read which
//! begins later sees it: no serial read is needed for R. If R didn't see C, then R began before C answered; W ended before R
//! began, and H began after C answered, so W ended before H began, and two quorums overlap: H sees what W wrote.
//!
//! **Why an unacknowledged event can't come back.** See [`fences`]: the new owner's fence lies after the head that it found,
//! and what it found is written again at quorum before it goes on, so that every later owner finds it too.
//!
//! **Why a late fence can't take anything away.** An opener that is paused before it fences may wake up when a later owner has
//! adopted what it would void. Therefore the fences of a room are those that its newest opener knows: it deletes all of earlier
//! epochs and writes again what it read, with timestamps made of its epoch, so that whatever an earlier one still writes is
//! deleted already. A fence that the opener's quorum read missed was not complete by then, so its owner finds the epoch raised
//! when it checks, and never serves.
//!
//! `room_heads` is a lower bound, written some time after an append was acknowledged: everything up to it is acknowledged,
//! indexed and projected. It saves reading, and nothing breaks when it is old or missing.

mod append;
mod fences;
mod heads;
mod load;
mod open;
mod projections;
mod purge;
mod read;

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    ClientMessageId, Error, ErrorCode, MessageId, ReplicaId, Result, RoomId, Sequence, Timestamp,
    UserId,
    event::{EventBody, RoomEvent, StoredMessage},
    partition::Partition,
    ports::{Epoch, Fence, Floor, OpenRoom, RoomLog},
};
use scylla::{
    statement::{Consistency, SerialConsistency, prepared::PreparedStatement},
    value::{CqlTimestamp, CqlValue},
};
use tracing::Instrument;
use uuid::Uuid;

use self::heads::Heads;
use super::{
    database::{Conditional, Database, column, cql_time, signed, some_at_a_time, unsigned},
    rooms::{MARK_READ, Marks, UNLIST},
};

/// Places per partition of `messages`. Part of the stored format.
const BUCKET: u64 = 1000;
/// Events of one room in one append, and so the most that a crashed owner may have left half done.
const MAX_BATCH: usize = 512;

/// The logs of all rooms. Cheap to clone.
#[derive(Clone)]
pub(super) struct Log(Arc<Inner>);

struct Inner {
    database: Database,
    statements: Statements,
    marks: Marks,
    heads: Heads,
}

struct Statements {
    epoch: PreparedStatement,
    epoch_serial: PreparedStatement,
    first_epoch: PreparedStatement,
    raise_epoch: PreparedStatement,
    fences: PreparedStatement,
    put_fence: PreparedStatement,
    drop_fences: PreparedStatement,
    head: PreparedStatement,
    put_event: PreparedStatement,
    slots: PreparedStatement,
    put_sent: PreparedStatement,
    put_message: PreparedStatement,
    sent: PreparedStatement,
    message: PreparedStatement,
    member: PreparedStatement,
    put_member: PreparedStatement,
    drop_member: PreparedStatement,
    put_room_of_user: PreparedStatement,
    drop_room_of_user: PreparedStatement,
    mark_read: PreparedStatement,
    mark_deleted: PreparedStatement,
    unlist: PreparedStatement,
    drop_receipt: PreparedStatement,
    set_banned: PreparedStatement,
    set_invited: PreparedStatement,
    set_muted: PreparedStatement,
    put_invite: PreparedStatement,
    drop_invite: PreparedStatement,
    put_profile: PreparedStatement,
    put_retained: PreparedStatement,
    put_deleted: PreparedStatement,
    put_mention: PreparedStatement,
    floor: PreparedStatement,
    raise_floor: PreparedStatement,
    put_purged: PreparedStatement,
    drop_slots: PreparedStatement,
    drop_sent: PreparedStatement,
    drop_message: PreparedStatement,
    drop_deleted: PreparedStatement,
    drop_mention: PreparedStatement,
}

/// An event with the epoch that wrote it.
#[derive(Clone)]
struct Row {
    slot: Sequence,
    epoch: Epoch,
    event: RoomEvent,
}

/// A row of `messages`.
type Columns = (i64, i64, i64, CqlTimestamp, Uuid, i64, String);

impl Log {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        let put_head = database
            // The sequence is the write's timestamp: a late write of an old head changes nothing.
            .prepare("INSERT INTO room_heads (room, seq) VALUES (?, ?) USING TIMESTAMP ?")
            .await?;
        let marks = Marks::new(database).await?;
        Ok(Self(Arc::new(Inner {
            heads: Heads::start(database.clone(), put_head, marks.clone()),
            marks,
            statements: Statements::new(database).await?,
            database: database.clone(),
        })))
    }
}

impl Statements {
    async fn new(database: &Database) -> Result<Self> {
        let mut epoch_serial = database
            .prepare("SELECT epoch FROM partition_epochs WHERE partition = ?")
            .await?;
        epoch_serial.set_consistency(Consistency::LocalSerial);
        let mut first_epoch = database
            .prepare_once("INSERT INTO partition_epochs (partition, epoch, owner) VALUES (?, ?, ?) IF NOT EXISTS")
            .await?;
        first_epoch.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        let mut raise_epoch = database
            .prepare_once(
                "UPDATE partition_epochs SET epoch = ?, owner = ? WHERE partition = ? IF epoch = ?",
            )
            .await?;
        raise_epoch.set_serial_consistency(Some(SerialConsistency::LocalSerial));
        Ok(Self {
            epoch: database
                .prepare("SELECT epoch FROM partition_epochs WHERE partition = ?")
                .await?,
            epoch_serial,
            first_epoch,
            raise_epoch,
            fences: database
                .prepare("SELECT epoch, first FROM room_fences WHERE room = ?")
                .await?,
            put_fence: database
                .prepare(
                    "INSERT INTO room_fences (room, epoch, first) VALUES (?, ?, ?) USING TIMESTAMP ?",
                )
                .await?,
            drop_fences: database
                .prepare("DELETE FROM room_fences USING TIMESTAMP ? WHERE room = ? AND epoch < ?")
                .await?,
            head: database
                .prepare("SELECT seq FROM room_heads WHERE room = ?")
                .await?,
            put_event: database
                .prepare("INSERT INTO messages (room, bucket, slot, seq, epoch, time, actor, before, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")
                .await?,
            slots: database
                .prepare("SELECT slot, seq, epoch, time, actor, before, body FROM messages WHERE room = ? AND bucket = ? AND slot >= ? AND slot <= ?")
                .await?,
            put_sent: database
                .prepare("INSERT INTO sent (sender, client_message_id, room, seq, epoch) VALUES (?, ?, ?, ?, ?)")
                .await?,
            // The epoch is the write's timestamp: of two entries for one id, that of the later owner stays, however late the
            // other one comes.
            put_message: database
                .prepare("INSERT INTO message_index (id, room, seq) VALUES (?, ?, ?) USING TIMESTAMP ?")
                .await?,
            sent: database
                .prepare("SELECT room, seq FROM sent WHERE sender = ? AND client_message_id = ? LIMIT 256")
                .await?,
            message: database
                .prepare("SELECT room, seq FROM message_index WHERE id = ?")
                .await?,
            member: database
                .prepare("SELECT since, joined_at FROM members WHERE room = ? AND user = ?")
                .await?,
            // The event's sequence is the timestamp of what it projects, so that the later event wins in whatever order the
            // writes arrive: a join after a leave is stored, a leave that arrives after a later join is not.
            put_member: database
                .prepare("INSERT INTO members (room, user, role, since, joined_at) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?")
                .await?,
            drop_member: database
                .prepare("DELETE FROM members USING TIMESTAMP ? WHERE room = ? AND user = ?")
                .await?,
            put_room_of_user: database
                .prepare("INSERT INTO rooms_by_user (user, room, since) VALUES (?, ?, ?) USING TIMESTAMP ?")
                .await?,
            drop_room_of_user: database
                .prepare("DELETE FROM rooms_by_user USING TIMESTAMP ? WHERE user = ? AND room = ?")
                .await?,
            mark_read: database.prepare(MARK_READ).await?,
            mark_deleted: database
                .prepare("UPDATE rooms SET deleted_at = ? WHERE id = ?")
                .await?,
            unlist: database.prepare(UNLIST).await?,
            // Marks of the membership that ends are of places before its last event.
            drop_receipt: database
                .prepare("DELETE FROM receipts USING TIMESTAMP ? WHERE room = ? AND user = ?")
                .await?,
            set_banned: database
                .prepare("UPDATE restrictions USING TIMESTAMP ? SET banned = ? WHERE room = ? AND user = ?")
                .await?,
            set_invited: database
                .prepare("UPDATE restrictions USING TIMESTAMP ? SET invited = ? WHERE room = ? AND user = ?")
                .await?,
            set_muted: database
                .prepare("UPDATE restrictions USING TIMESTAMP ? SET muted_until = ? WHERE room = ? AND user = ?")
                .await?,
            put_invite: database
                .prepare("INSERT INTO invites (user, room) VALUES (?, ?) USING TIMESTAMP ?")
                .await?,
            drop_invite: database
                .prepare("DELETE FROM invites USING TIMESTAMP ? WHERE user = ? AND room = ?")
                .await?,
            put_profile: database
                .prepare("INSERT INTO room_profiles (room, name, description, rules) VALUES (?, ?, ?, ?) USING TIMESTAMP ?")
                .await?,
            put_retained: database
                .prepare("INSERT INTO retained_rooms (shard, room) VALUES (?, ?)")
                .await?,
            put_deleted: database
                .prepare("INSERT INTO deleted_messages (room, seq) VALUES (?, ?)")
                .await?,
            put_mention: database
                .prepare("INSERT INTO mentions (room, user, seq) VALUES (?, ?, ?)")
                .await?,
            floor: database
                .prepare("SELECT first, messages, purged FROM room_floors WHERE room = ?")
                .await?,
            // The first place is the timestamp, so that a floor never goes down.
            raise_floor: database
                .prepare("UPDATE room_floors USING TIMESTAMP ? SET first = ?, messages = ? WHERE room = ?")
                .await?,
            put_purged: database
                .prepare("UPDATE room_floors USING TIMESTAMP ? SET purged = ? WHERE room = ?")
                .await?,
            drop_slots: database
                .prepare("DELETE FROM messages USING TIMESTAMP ? WHERE room = ? AND bucket = ? AND slot >= ? AND slot < ?")
                .await?,
            drop_sent: database
                .prepare("DELETE FROM sent USING TIMESTAMP ? WHERE sender = ? AND client_message_id = ? AND room = ? AND seq = ?")
                .await?,
            drop_message: database
                .prepare("DELETE FROM message_index WHERE id = ?")
                .await?,
            drop_deleted: database
                .prepare("DELETE FROM deleted_messages USING TIMESTAMP ? WHERE room = ? AND seq = ?")
                .await?,
            drop_mention: database
                .prepare("DELETE FROM mentions USING TIMESTAMP ? WHERE room = ? AND user = ? AND seq = ?")
                .await?,
        })
    }
}

#[async_trait]
impl RoomLog for Log {
    async fn acquire(&self, partition: Partition, owner: &ReplicaId) -> Result<Epoch> {
        self.0
            .acquire(partition, owner)
            .instrument(span("scylla.acquire", "acquire"))
            .await
    }

    async fn open(&self, room: RoomId, epoch: Epoch) -> Result<OpenRoom> {
        self.0
            .open(room, epoch)
            .instrument(span("scylla.open", "open"))
            .await
    }

    async fn check(&self, partition: Partition, epoch: Epoch) -> Result<()> {
        self.0.check_owner(partition, epoch).await
    }

    async fn append(&self, partition: Partition, epoch: Epoch, events: &[RoomEvent]) -> Result<()> {
        crate::observe::timed("scylla", "append", self.0.append(partition, epoch, events))
            .instrument(span("scylla.append", "append"))
            .await
    }

    async fn raise_floor(&self, room: RoomId, floor: Floor) -> Result<()> {
        self.0
            .raise_floor(room, floor)
            .instrument(span("scylla.raise_floor", "raise_floor"))
            .await
    }

    async fn purge(&self, room: RoomId, fences: &[Fence], below: Sequence) -> Result<bool> {
        self.0
            .purge(room, fences, below)
            .instrument(span("scylla.purge", "purge"))
            .await
    }

    async fn events(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<RoomEvent>> {
        self.0
            .events(room, fences, from, to)
            .instrument(span("scylla.events", "events"))
            .await
    }

    async fn messages(
        &self,
        room: RoomId,
        fences: &[Fence],
        from: Sequence,
        to: Sequence,
    ) -> Result<Vec<StoredMessage>> {
        self.0
            .messages(room, fences, from, to)
            .instrument(span("scylla.messages", "messages"))
            .await
    }

    async fn find_sent(
        &self,
        sender: UserId,
        id: &ClientMessageId,
    ) -> Result<Vec<(RoomId, Sequence)>> {
        let rows: Vec<(Uuid, i64)> = self
            .0
            .database
            .rows("find_sent", &self.0.statements.sent, (sender.0, &id.0))
            .await?;
        let mut found: Vec<(RoomId, Sequence)> =
            rows.into_iter().map(place).collect::<Result<_>>()?;
        // One place may have been written under several epochs.
        found.dedup();
        Ok(found)
    }

    async fn find_message(&self, id: MessageId) -> Result<Option<(RoomId, Sequence)>> {
        self.0
            .database
            .row::<(Uuid, i64)>("find_message", &self.0.statements.message, (id.0,))
            .await?
            .map(place)
            .transpose()
    }
}

impl Inner {
    async fn acquire(&self, partition: Partition, owner: &ReplicaId) -> Result<Epoch> {
        let key = i32::from(partition.0);
        // A serial read first finishes a conditional write that was cut off, so that the next one doesn't fail for it.
        let mut current = self
            .database
            .row::<(i64,)>("read_epoch", &self.statements.epoch_serial, (key,))
            .await?
            .map(|(epoch,)| epoch);
        loop {
            let next = current.unwrap_or(0) + 1;
            let outcome = match current {
                None => {
                    let values = (key, next, &owner.0);
                    self.database
                        .conditional("acquire", &self.statements.first_epoch, values)
                        .await?
                }
                Some(current) => {
                    let values = (next, &owner.0, key, current);
                    self.database
                        .conditional("acquire", &self.statements.raise_epoch, values)
                        .await?
                }
            };
            match outcome {
                Conditional::Applied => return Ok(Epoch(unsigned(next)?)),
                Conditional::Refused(row) => match column(&row, "epoch") {
                    Some(CqlValue::BigInt(epoch)) => current = Some(*epoch),
                    _ => return Err(Error::defect("a partition has no epoch")),
                },
            }
        }
    }

    /// `NotOwner` when the partition's epoch is another one.
    async fn check_owner(&self, partition: Partition, epoch: Epoch) -> Result<()> {
        let current = self
            .database
            .row::<(i64,)>(
                "check_owner",
                &self.statements.epoch,
                (i32::from(partition.0),),
            )
            .await?;
        match current {
            Some((current,)) if unsigned(current)? == epoch.0 => Ok(()),
            _ => Err(superseded()),
        }
    }
}

fn superseded() -> Error {
    Error::new(
        ErrorCode::NotOwner,
        "the partition has a later owner, try again",
    )
}

fn bucket(slot: Sequence) -> u64 {
    slot.0 / BUCKET
}

fn place((room, sequence): (Uuid, i64)) -> Result<(RoomId, Sequence)> {
    Ok((RoomId(room), Sequence(unsigned(sequence)?)))
}

fn read_row(
    room: RoomId,
    (slot, sequence, epoch, time, actor, before, body): Columns,
) -> Result<Row> {
    let body: EventBody = serde_json::from_str(&body).map_err(Error::internal)?;
    Ok(Row {
        slot: Sequence(unsigned(slot)?),
        epoch: Epoch(unsigned(epoch)?),
        event: RoomEvent {
            room,
            sequence: Sequence(unsigned(sequence)?),
            messages_before: unsigned(before)?,
            time: Timestamp(time.0),
            actor: UserId(actor),
            body,
        },
    })
}

/// By the OpenTelemetry conventions for database clients; ScyllaDB speaks Cassandra's protocol.
fn span(name: &'static str, operation: &'static str) -> tracing::Span {
    tracing::info_span!(
        "scylla",
        otel.name = name,
        otel.kind = "client",
        db.system.name = "cassandra",
        db.operation.name = operation,
    )
}
