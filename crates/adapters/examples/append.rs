//! Appends per second of the embedded store, every append synced before it is answered.
//!
//! `cargo run -p carillon-adapters --example append -- [callers] [seconds] [directory]`; each caller appends one message at a
//! time to a room of its own. Without a directory, one is made in the current directory and removed afterwards.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use carillon_adapters::embedded;
use carillon_domain::{
    ClientMessageId, MessageId, ReplicaId, RoomId, Sequence, Timestamp, UserId,
    event::{Draft, EventBody, MessageType, RoomEvent},
    partition::Partition,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let callers: usize = arguments.next().map_or(Ok(256), |text| text.parse())?;
    let seconds: u64 = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let given = arguments.next().map(PathBuf::from);
    let directory = given
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("append-{}", std::process::id())));
    let stores = embedded::open(&directory)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let appended = runtime.block_on(async {
        let end = Instant::now() + Duration::from_secs(seconds);
        let tasks: Vec<_> = (0..callers)
            .map(|_| tokio::spawn(append_until(stores.clone(), end)))
            .collect();
        let mut appended = Vec::new();
        for task in tasks {
            appended.extend(task.await??);
        }
        stores.close().await?;
        Ok::<_, Box<dyn std::error::Error>>(appended)
    })?;
    let mut times = appended;
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{callers} callers: {} appends/s, each synced; p50 {:?}, p99 {:?}, most {:?}",
        times.len() as u64 / seconds,
        at(0.5),
        at(0.99),
        at(1.0)
    );
    drop(stores);
    if given.is_none() {
        std::fs::remove_dir_all(directory)?;
    }
    Ok(())
}

/// Appends to a new room; how long each append took.
async fn append_until(
    stores: embedded::Stores,
    end: Instant,
) -> carillon_domain::Result<Vec<Duration>> {
    let (room, sender) = (RoomId::new(), UserId::new());
    let partition = Partition::of_room(room);
    let owner = ReplicaId("append".into());
    let mut epoch = stores.log.acquire(partition, &owner).await?;
    let mut times = Vec::new();
    while Instant::now() < end {
        let id = MessageId::new();
        let count = times.len() as u64;
        let event = RoomEvent {
            room,
            sequence: Sequence(count + 1),
            messages_before: count,
            time: Timestamp(0),
            actor: sender,
            body: EventBody::Message {
                id,
                draft: Draft {
                    client_message_id: ClientMessageId(id.to_string()),
                    message_type: MessageType::Text,
                    content: "The quick brown fox jumps over the lazy dog.".into(),
                    reply_to: None,
                },
            },
        };
        let began = Instant::now();
        match stores.log.append(partition, epoch, &[event]).await {
            Ok(()) => times.push(began.elapsed()),
            // Another caller's room is in the same partition.
            Err(error) if error.code == carillon_domain::ErrorCode::NotOwner => {
                epoch = stores.log.acquire(partition, &owner).await?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(times)
}
