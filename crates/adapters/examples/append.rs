//! Appends per second of the embedded store, every append synced before it is answered; then how long a page takes to read.
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
    event::{Draft, EventBody, Mentions, MessageType, RoomEvent},
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
    let (mut appends, mut pages) = runtime.block_on(async {
        let end = Instant::now() + Duration::from_secs(seconds);
        let tasks: Vec<_> = (0..callers)
            .map(|_| tokio::spawn(append_until(stores.clone(), end)))
            .collect();
        let (mut appends, mut rooms) = (Vec::new(), Vec::new());
        for task in tasks {
            let (room, times) = task.await??;
            rooms.push((room, times.len() as u64));
            appends.extend(times);
        }
        let pages = read_pages(&stores, &rooms).await?;
        stores.close().await?;
        Ok::<_, Box<dyn std::error::Error>>((appends, pages))
    })?;
    println!(
        "{callers} callers: {} appends/s, each synced; {}",
        appends.len() as u64 / seconds,
        spread(&mut appends)
    );
    println!("a page of 50 messages: {}", spread(&mut pages));
    drop(stores);
    if given.is_none() {
        std::fs::remove_dir_all(directory)?;
    }
    Ok(())
}

fn spread(times: &mut [Duration]) -> String {
    times.sort();
    let Some(last) = times.len().checked_sub(1) else {
        return "none".into();
    };
    let at = |percent: usize| times[last * percent / 100];
    format!("p50 {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100))
}

/// Reads pages at random places, one after the other; how long each took.
async fn read_pages(
    stores: &embedded::Stores,
    rooms: &[(RoomId, u64)],
) -> carillon_domain::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for (room, length) in rooms.iter().cycle().take(5_000) {
        let first = rand::random_range(0..=length.saturating_sub(50));
        let began = Instant::now();
        stores
            .log
            .messages(*room, &[], Sequence(first + 1), Sequence(first + 50))
            .await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

/// Appends to a new room; how long each append took.
async fn append_until(
    stores: embedded::Stores,
    end: Instant,
) -> carillon_domain::Result<(RoomId, Vec<Duration>)> {
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
                mentions: Mentions::default(),
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
    Ok((room, times))
}
