//! Messages per second of the room log on ScyllaDB (or Cassandra), beside the same rows written by its driver alone, in turns.
//!
//! `cargo run --release -p carillon-adapters --example append_scylla -- HOST:PORT [writers] [batch] [seconds]`; each writer fills a
//! room of its own in another partition, a batch at a time. The driver's part writes the three rows of each message at the same
//! consistency, as many at once, and nothing else: no proof of ownership, no marks of senders. The keyspace is dropped at the end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_adapters::scylla::{ScyllaOptions, Stores, connect, migrate_with, open_session};
use carillon_domain::{
    ClientMessageId, MessageId, ReplicaId, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, Mentions, MessageType, RoomEvent},
    partition::Partition,
    ports::Epoch,
};
use futures::{StreamExt, TryStreamExt, stream};
use scylla::{
    client::session::Session,
    statement::{prepared::PreparedStatement, unprepared::Statement},
    value::CqlTimestamp,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How often each of the two has its turn.
const TURNS: usize = 3;
/// Writes of a batch under way at once, as the adapter has it.
const AT_ONCE: usize = 256;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let contact_point = arguments.next().ok_or("name a node: HOST:PORT")?;
    let writers: usize = arguments.next().map_or(Ok(16), |text| text.parse())?;
    let batch: usize = arguments.next().map_or(Ok(32), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let options = ScyllaOptions {
        contact_points: vec![contact_point],
        datacenter: None,
        keyspace: format!("append_{}", std::process::id()),
        replication_factor: 1,
        login: None,
    };
    migrate_with(&options).await?;
    let stores = connect(&options).await?;
    let session = open_session(&options).await?;
    session.use_keyspace(&*options.keyspace, false).await?;
    let driver = Arc::new(Driver::new(session).await?);

    let mut rooms = Vec::new();
    for _ in 0..writers {
        rooms.push(Room::open(&stores, &rooms).await?);
    }
    let (mut by_driver, mut by_log) = (Vec::new(), Vec::new());
    for turn in 0..=TURNS {
        let length = Duration::from_secs(seconds);
        let raw = during(length, &mut rooms, batch, |events, _| {
            let driver = driver.clone();
            async move { driver.write(&events).await }
        })
        .await?;
        let ours = during(length, &mut rooms, batch, |events, epoch| {
            let log = stores.log.clone();
            async move {
                let partition = Partition::of_room(events[0].room);
                Ok(log.append(partition, epoch, &events).await?)
            }
        })
        .await?;
        // The first turn warms up.
        if turn > 0 {
            println!(
                "driver {raw:.0} messages/s, room log {ours:.0}: {:.2}",
                ours / raw
            );
            by_driver.push(raw);
            by_log.push(ours);
        }
    }
    let total = |rates: &[f64]| rates.iter().sum::<f64>() / rates.len() as f64;
    println!(
        "{writers} writers, batches of {batch}: {:.2} of the driver's rate",
        total(&by_log) / total(&by_driver)
    );
    let mut drop = Statement::new(format!("DROP KEYSPACE {}", options.keyspace));
    drop.set_request_timeout(Some(Duration::from_secs(60)));
    driver.session.query_unpaged(drop, ()).await?;
    Ok(())
}

/// A room that is written to.
struct Room {
    id: RoomId,
    sender: UserId,
    epoch: Epoch,
    head: u64,
}

impl Room {
    /// In a partition that none of the others is in.
    async fn open(stores: &Stores, others: &[Self]) -> Result<Self, Failure> {
        let id = loop {
            let id = RoomId::new();
            let taken = |other: &Self| Partition::of_room(other.id) == Partition::of_room(id);
            if !others.iter().any(taken) {
                break id;
            }
        };
        let owner = ReplicaId("append".into());
        let epoch = stores.log.acquire(Partition::of_room(id), &owner).await?;
        stores.log.open(id, epoch).await?;
        Ok(Self {
            id,
            sender: UserId::new(),
            epoch,
            head: 0,
        })
    }

    fn next(&mut self) -> RoomEvent {
        let id = MessageId::new();
        self.head += 1;
        RoomEvent {
            room: self.id,
            sequence: Sequence(self.head),
            messages_before: self.head - 1,
            time: Timestamp(1_700_000_000_000),
            actor: self.sender,
            body: EventBody::Message {
                id,
                draft: Draft {
                    client_message_id: ClientMessageId(id.to_string()),
                    message_type: MessageType::Text,
                    content: "The quick brown fox jumps over the lazy dog.".repeat(2),
                    reply_to: None,
                },
                mentions: Mentions::default(),
            },
        }
    }
}

/// Messages per second when every room is written to, a batch after the other.
async fn during<F: Future<Output = Result<(), Failure>>>(
    length: Duration,
    rooms: &mut [Room],
    batch: usize,
    write: impl Fn(Vec<RoomEvent>, Epoch) -> F,
) -> Result<f64, Failure> {
    let began = Instant::now();
    let write = &write;
    let written = rooms.iter_mut().map(|room| async move {
        let mut written = 0;
        while began.elapsed() < length {
            let events = (0..batch).map(|_| room.next()).collect();
            write(events, room.epoch).await?;
            written += batch;
        }
        Ok::<_, Failure>(written)
    });
    let written: usize = futures::future::try_join_all(written)
        .await?
        .into_iter()
        .sum();
    Ok(written as f64 / began.elapsed().as_secs_f64())
}

/// The driver alone.
struct Driver {
    session: Session,
    message: PreparedStatement,
    sent: PreparedStatement,
    index: PreparedStatement,
}

impl Driver {
    async fn new(session: Session) -> Result<Self, Failure> {
        let prepare = async |cql: &str| {
            let mut statement = session.prepare(cql).await?;
            statement.set_is_idempotent(true);
            Ok::<_, Failure>(statement)
        };
        let message = prepare("INSERT INTO messages (room, bucket, slot, seq, epoch, time, actor, before, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)").await?;
        let sent = prepare(
            "INSERT INTO sent (sender, client_message_id, room, seq, epoch) VALUES (?, ?, ?, ?, ?)",
        )
        .await?;
        let index = prepare("INSERT INTO message_index (id, room, seq) VALUES (?, ?, ?)").await?;
        Ok(Self {
            session,
            message,
            sent,
            index,
        })
    }

    async fn write(&self, events: &[RoomEvent]) -> Result<(), Failure> {
        let rows = events
            .iter()
            .flat_map(|event| [(event, 0), (event, 1), (event, 2)]);
        stream::iter(rows)
            .map(|(event, row)| self.write_row(event, row))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn write_row(&self, event: &RoomEvent, row: usize) -> Result<(), Failure> {
        let EventBody::Message { id, draft, .. } = &event.body else {
            return Ok(());
        };
        let (room, sequence) = (event.room.0, event.sequence.0.cast_signed());
        match row {
            0 => {
                let values = (
                    room,
                    sequence / 1_000,
                    sequence,
                    sequence,
                    1_i64,
                    CqlTimestamp(event.time.0),
                    event.actor.0,
                    event.messages_before.cast_signed(),
                    serde_json::to_string(&event.body)?,
                );
                self.session.execute_unpaged(&self.message, values).await?;
            }
            1 => {
                let values = (
                    event.actor.0,
                    &draft.client_message_id.0,
                    room,
                    sequence,
                    1_i64,
                );
                self.session.execute_unpaged(&self.sent, values).await?;
            }
            _ => {
                let values = (id.0, room, sequence);
                self.session.execute_unpaged(&self.index, values).await?;
            }
        }
        Ok(())
    }
}
