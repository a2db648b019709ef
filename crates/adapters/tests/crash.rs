//! Crashes: a child process appends and is killed at random moments; and journals whose end is torn.
//!
//! Promise 1 and 2: whatever was acknowledged is there afterwards, once, at its place, without a gap.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use carillon_adapters::{
    conformance::room_log::Writer,
    embedded::{self, Stores},
};
use carillon_domain::{
    ClientMessageId, RoomId, Sequence, UserId,
    event::{EventBody, RoomEvent},
    ports::RoomLog,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

const DIRECTORY: &str = "CARILLON_CRASH_DIRECTORY";
const ROOMS: usize = 6;

// === the child ===

/// What [`nothing_acknowledged_is_lost_when_the_process_is_killed`] is in the process that it kills.
async fn child(directory: &Path) {
    let stores = embedded::open(directory).unwrap();
    let rooms = known_rooms(&stores).await;
    let tasks: Vec<_> = rooms
        .into_iter()
        .map(|(user, room)| {
            let log = stores.log.clone();
            tokio::spawn(append_for_ever(log, user, room))
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// The rooms of the directory, made if there are none: each found through a mark that its user has read it.
async fn known_rooms(stores: &Stores) -> Vec<(UserId, RoomId)> {
    let mut rooms = Vec::new();
    for n in 0..ROOMS {
        let user = user(n);
        let room = stores
            .rooms
            .direct_room(user, user, RoomId::new())
            .await
            .unwrap();
        rooms.push((user, room));
    }
    rooms
}

fn user(n: usize) -> UserId {
    UserId(uuid::Uuid::from_u128(1 + n as u128))
}

async fn append_for_ever(log: std::sync::Arc<dyn RoomLog>, user: UserId, room: RoomId) {
    let mut writer = Writer::open(&*log, room).await;
    let mut last: Option<RoomEvent> = None;
    loop {
        // Batches of several sizes, with changes among them.
        let count = 1 + writer.head.0 % 4;
        let mut events = Vec::new();
        for _ in 0..count {
            let body = match &last {
                Some(RoomEvent {
                    sequence,
                    body: EventBody::Message { id, .. },
                    ..
                }) if writer.head.0 % 5 == 0 => EventBody::Edited {
                    id: *id,
                    target: *sequence,
                    content: "x".repeat(1 + writer.head.0 as usize % 3000),
                },
                _ => carillon_adapters::conformance::room_log::text("hello"),
            };
            let event = writer.event(user, body);
            if matches!(event.body, EventBody::Message { .. }) {
                last = Some(event.clone());
            }
            events.push(event);
        }
        writer.try_append(&events).await.unwrap();
        let mut lines = String::new();
        for event in &events {
            lines.push_str(&serde_json::to_string(event).unwrap());
            lines.push('\n');
        }
        // One write: a kill may cut the last line, never mix two.
        let mut out = std::io::stdout().lock();
        out.write_all(lines.as_bytes()).unwrap();
        out.flush().unwrap();
    }
}

// === the killer ===

/// Promise 1, MSG-20: ten processes, each killed in the middle of its work.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        return child(Path::new(&directory)).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(20);
    let mut acknowledged: Vec<RoomEvent> = Vec::new();
    for round in 0..10 {
        let until = random.random_range(1..400);
        let events = run_and_kill(folder.path(), until);
        assert!(!events.is_empty(), "round {round} appended something");
        acknowledged.extend(events);
        let stores = embedded::open(folder.path()).unwrap();
        check(&stores, &acknowledged).await;
        stores.close().await.unwrap();
    }
}

/// Runs the child until it acknowledged so many events, then kills it; every event that it acknowledged.
fn run_and_kill(directory: &Path, until: usize) -> Vec<RoomEvent> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "nothing_acknowledged_is_lost_when_the_process_is_killed",
            "--nocapture",
        ])
        .env(DIRECTORY, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut events = Vec::new();
    let mut killed = false;
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        // The test harness prints lines of its own; the last line may be cut.
        let start = line.find('{').unwrap_or(line.len());
        if let Ok(event) = serde_json::from_str::<RoomEvent>(line[start..].trim_end()) {
            events.push(event);
        }
        line.clear();
        if events.len() >= until && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    let status = child.wait().unwrap();
    assert!(killed && !status.success(), "the child ended by itself");
    events
}

/// Everything acknowledged is there once, at its place; the rooms are dense; indexes and counts fit the logs.
async fn check(stores: &Stores, acknowledged: &[RoomEvent]) {
    let mut histories = HashMap::new();
    for (_, room) in known_rooms(stores).await {
        let writer = Writer::open(&*stores.log, room).await;
        let history = writer.history().await;
        assert_eq!(history.len() as u64, writer.head.0, "dense up to the head");
        let mut messages = 0;
        for (event, place) in history.iter().zip(1..) {
            assert_eq!(event.sequence, Sequence(place));
            assert_eq!(event.messages_before, messages);
            messages = event.messages_after();
            if let EventBody::Message { id, draft, .. } = &event.body {
                let of_client: &ClientMessageId = &draft.client_message_id;
                let found = stores.log.find_sent(event.actor, of_client).await.unwrap();
                assert_eq!(found, [(room, event.sequence)], "indexed once");
                let found = stores.log.find_message(*id).await.unwrap();
                assert_eq!(found, Some((room, event.sequence)));
            }
        }
        assert_eq!(writer.messages, messages);
        check_changes(&writer, &history).await;
        histories.insert(room, history);
    }
    for event in acknowledged {
        let place = usize::try_from(event.sequence.0).unwrap() - 1;
        assert_eq!(
            histories[&event.room].get(place),
            Some(event),
            "an acknowledged event is at its place"
        );
    }
}

/// The messages with their changes say the same as the events.
async fn check_changes(writer: &Writer<'_>, history: &[RoomEvent]) {
    let mut changes: HashMap<Sequence, Vec<RoomEvent>> = HashMap::new();
    for event in history {
        if let Some(target) = event.target() {
            changes.entry(target).or_default().push(event.clone());
        }
    }
    let mut from = Sequence(1);
    while from <= writer.head {
        let to = Sequence(writer.head.0.min(from.0 + 999));
        let messages = writer.log.messages(writer.room, &writer.fences, from, to);
        for message in messages.await.unwrap() {
            let expected = changes.remove(&message.sent.sequence).unwrap_or_default();
            assert_eq!(message.changes, expected);
        }
        from = to.next();
    }
    assert!(changes.is_empty());
}

// === torn journals ===

/// Promise 1: parts of the last write are lost or garbage, as after a power cut in the middle of it. All that was acknowledged
/// before is there, and the store goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_torn_journal_loses_only_its_last_write() {
    let folder = tempfile::tempdir().unwrap();
    let stores = embedded::open(folder.path()).unwrap();
    let (user, room) = known_rooms(&stores).await[0];
    let mut writer = Writer::open(&*stores.log, room).await;
    let mut acknowledged = Vec::new();
    for n in 0..40 {
        acknowledged.push(writer.send(user, &format!("message {n}")).await);
    }
    drop(writer);
    stores.close().await.unwrap();
    drop(stores);

    let journal = journal_of(folder.path());
    let mut bytes = std::fs::read(&journal).unwrap();
    // Zeros follow the last write in a preallocated journal.
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.resize(end + 4096, 0);
    let mut random = StdRng::seed_from_u64(7);
    for round in 0..50 {
        // Less than the last write has: nothing before it is touched.
        let torn = random.random_range(1..100);
        let mut damaged = bytes.clone();
        match round % 5 {
            0 => damaged.truncate(end - torn),
            1 => damaged[end - torn..end].fill(0),
            2 => random.fill(&mut damaged[end - torn..end]),
            // Its end is there, but not its middle.
            3 => damaged[end - 110..end - 100].fill(b'?'),
            // The last write is whole, and garbage follows.
            _ => random.fill(&mut damaged[end..end + torn]),
        }
        std::fs::write(&journal, &damaged).unwrap();
        let stores = embedded::open(folder.path())
            .unwrap_or_else(|error| panic!("round {round}: {error} {}", error.cause_chain()));
        let writer = Writer::open(&*stores.log, room).await;
        let history = writer.history().await;
        let whole = if round % 5 == 4 { 40 } else { 39 };
        assert!(history.len() >= whole, "round {round}: {}", history.len());
        assert_eq!(history[..], acknowledged[..history.len()], "round {round}");
        check(&stores, &acknowledged[..whole]).await;
        // And it goes on from there.
        let mut writer = Writer::open(&*stores.log, room).await;
        writer.send(user, "after").await;
        drop(writer);
        stores.close().await.unwrap();
        drop(stores);
        let stores = embedded::open(folder.path()).unwrap();
        let writer = Writer::open(&*stores.log, room).await;
        assert_eq!(writer.head.0, history.len() as u64 + 1);
        drop(writer);
        stores.close().await.unwrap();
        drop(stores);
        assert_eq!(journal_of(folder.path()), journal);
    }

    // In the middle it is no torn write: what was acknowledged after it must not disappear in silence.
    let mut damaged = bytes.clone();
    damaged[end / 2] ^= 1;
    std::fs::write(&journal, &damaged).unwrap();
    let error = embedded::open(folder.path()).err().unwrap();
    assert_eq!(error.code, carillon_domain::ErrorCode::FailedPrecondition);
    assert!(error.detail.contains("broken in the middle"), "{error}");
}

/// The journal that is written to.
fn journal_of(directory: &Path) -> PathBuf {
    std::fs::read_dir(directory.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jnl"))
        .max()
        .unwrap()
}
