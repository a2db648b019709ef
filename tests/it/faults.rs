//! Promises 1 to 4 while processes are killed and paused. Senders retry with the same client message id until they are
//! acknowledged, as real clients do; afterwards every acknowledged message must be in the room exactly once, in one order.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::world::{
    client::{Person, http, request},
    platform::{QUICK, RealCluster, RealOptions, Up},
    servers,
};

/// A message that some sender was told is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Acknowledged {
    pub client_message_id: String,
    pub sequence: u64,
    /// When the sender was told.
    pub at: Instant,
}

/// Who sends in a room until told to stop; each message is retried, on the next gateway, until it is acknowledged.
#[derive(Clone)]
pub struct Sender {
    pub bases: Vec<String>,
    pub token: String,
    pub room: String,
    pub name: String,
    /// Between an answer and the next send.
    pub pace: Duration,
    pub stop: Arc<AtomicBool>,
    /// So far.
    pub acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
}

impl Sender {
    /// How many messages were acknowledged so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().expect("no panic").len()
    }

    /// Sends until told to stop.
    pub async fn run(self) -> Result<()> {
        let http = http();
        let mut at = 0;
        for n in 0.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            let id = format!("{}-{n}", self.name);
            let sequence = self.send(&http, &id, &mut at).await?;
            self.acknowledged
                .lock()
                .expect("no panic")
                .push(Acknowledged {
                    client_message_id: id,
                    sequence,
                    at: Instant::now(),
                });
            tokio::time::sleep(self.pace).await;
        }
        Ok(())
    }

    async fn send(&self, http: &reqwest::Client, id: &str, at: &mut usize) -> Result<u64> {
        let body = json!({"client_message_id": id, "type": "text", "content": id});
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let base = &self.bases[*at % self.bases.len()];
            let url = format!("{base}/api/v1/rooms/{}/messages", self.room);
            let problem =
                match request(http, Method::POST, &url, Some(&self.token), Some(&body)).await {
                    Ok(answer) if answer.status.is_success() => {
                        return answer.body["sequence"].as_u64().context("sequence");
                    }
                    // Only these may be retried; anything else is a defect that a retry would hide.
                    Ok(answer)
                        if [StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT]
                            .contains(&answer.status) =>
                    {
                        answer.body.to_string()
                    }
                    Ok(answer) => bail!("a send was answered {}: {}", answer.status, answer.body),
                    Err(error) => format!("{error:#}"),
                };
            ensure!(
                Instant::now() < deadline,
                "{id} was not taken for 60 s: {problem}"
            );
            *at += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Every acknowledged message exactly once at its acknowledged place; places dense; nothing that nobody sent.
pub async fn check_room(
    base: &str,
    reader: &Person,
    room: &str,
    acknowledged: &[Acknowledged],
) -> Result<()> {
    let history = reader.history(base, room).await?;
    let mut by_id: HashMap<&str, Vec<u64>> = HashMap::new();
    for message in &history {
        let id = message["client_message_id"]
            .as_str()
            .context("client_message_id")?;
        by_id
            .entry(id)
            .or_default()
            .push(message["sequence"].as_u64().context("sequence")?);
        ensure!(
            message["content"] == id,
            "content of another message: {message}"
        );
    }
    for ack in acknowledged {
        let places = by_id
            .get(ack.client_message_id.as_str())
            .with_context(|| format!("lost: {ack:?}"))?;
        ensure!(
            places.as_slice() == [ack.sequence],
            "{ack:?} is at {places:?}"
        );
    }
    ensure!(
        by_id.values().all(|places| places.len() == 1),
        "a message is there twice"
    );
    let events = all_events(base, reader, room).await?;
    ensure!(
        events
            .iter()
            .map(|event| event.0)
            .eq(1..=events.len() as u64),
        "the places of the log are not dense"
    );
    Ok(())
}

/// The whole log by catch-up from the beginning.
async fn all_events(base: &str, reader: &Person, room: &str) -> Result<Vec<(u64, Value)>> {
    let mut events: Vec<(u64, Value)> = Vec::new();
    loop {
        let after = events.last().map_or(0, |event| event.0);
        let page = reader
            .ask(
                base,
                Method::GET,
                &format!("/rooms/{room}/events?after={after}&limit=500"),
                None,
            )
            .await?;
        let items = page["items"].as_array().context("items")?;
        if items.is_empty() {
            return Ok(events);
        }
        for item in items {
            events.push((
                item["payload"]["sequence"].as_u64().context("sequence")?,
                item.clone(),
            ));
        }
    }
}

struct Load {
    room: String,
    reader: Person,
    stop: Arc<AtomicBool>,
    senders: Vec<(Sender, tokio::task::JoinHandle<Result<()>>)>,
    base: String,
}

impl Load {
    /// Some senders in one room, and a connected reader who resumes whenever the socket goes.
    async fn start(bases: &[String], senders: usize) -> Result<Self> {
        let base = bases[0].clone();
        let mut reader = Person::register(&base, "reader").await?;
        let made = reader
            .ask(
                &base,
                Method::POST,
                "/rooms",
                Some(&json!({"name": "load", "description": "", "type": "public"})),
            )
            .await?;
        let room = made["id"].as_str().context("id")?.to_owned();
        reader.connect(&base, false).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for n in 0..senders {
            let person = Person::register(&base, &format!("sender{n}")).await?;
            person
                .ask(&base, Method::POST, &format!("/rooms/{room}/join"), None)
                .await?;
            let mut mine = bases.to_vec();
            mine.rotate_left(n % bases.len());
            let sender = Sender {
                bases: mine,
                token: person.access_token.clone(),
                room: room.clone(),
                name: format!("s{n}"),
                pace: Duration::ZERO,
                stop: stop.clone(),
                acknowledged: Arc::default(),
            };
            tasks.push((sender.clone(), tokio::spawn(sender.run())));
        }
        Ok(Self {
            room,
            reader,
            stop,
            senders: tasks,
            base,
        })
    }

    /// Waits until the reader saw this many more messages, so that faults meet real traffic whatever the machine's speed.
    async fn flow(&mut self, messages: usize) -> Result<()> {
        let target = self.reader.texts(&self.room).len() + messages;
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.reader.texts(&self.room).len() < target {
            ensure!(
                Instant::now() < deadline,
                "only {} of {target} messages came within 60 s",
                self.reader.texts(&self.room).len()
            );
            if !self.reader.is_connected() {
                if self.reader.connect(&self.base.clone(), true).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                continue;
            }
            match self.reader.frame(Duration::from_secs(60)).await? {
                Some(frame) => self.reader.take(frame)?,
                None => continue,
            }
        }
        Ok(())
    }

    /// Stops the senders and checks everything: the log, and that the reader's sockets saw the same as the log.
    async fn finish(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acknowledged = Vec::new();
        for (sender, task) in self.senders {
            task.await??;
            acknowledged.append(&mut sender.acknowledged.lock().expect("no panic"));
        }
        check_room(&self.base, &self.reader, &self.room, &acknowledged).await?;
        let last = acknowledged
            .iter()
            .map(|ack| ack.sequence)
            .max()
            .context("nothing was sent")?;
        if !self.reader.is_connected() {
            self.reader.connect(&self.base, true).await?;
        }
        let room = self.room.clone();
        self.reader
            .wait_until("the last message", |p| {
                p.seen
                    .get(&room)
                    .is_some_and(|seen| seen.contains_key(&last))
            })
            .await?;
        ensure!(
            self.reader.is_dense(&room),
            "the reader's sockets left a gap"
        );
        let log: BTreeMap<u64, Value> = all_events(&self.base, &self.reader, &room)
            .await?
            .into_iter()
            .collect();
        for (place, seen) in &self.reader.seen[&room] {
            let stored = log
                .get(place)
                .with_context(|| format!("place {place} was delivered but is not in the log"))?;
            ensure!(
                stored["payload"]["content"] == seen["payload"]["content"],
                "delivered and stored differ at {place}"
            );
        }
        Ok(acknowledged.len())
    }
}

/// Promises 1 to 4 on embedded stores: kill -9 under load, several times.
#[tokio::test(flavor = "multi_thread")]
async fn embedded_kills_under_load() -> Result<()> {
    let mut up = Up::start(QUICK).await?;
    let mut load = Load::start(std::slice::from_ref(&up.base), 6).await?;
    for _ in 0..4 {
        load.flow(60).await?;
        up.kill_and_restart().await?;
    }
    load.flow(60).await?;
    let acknowledged = load.finish().await?;
    println!("embedded: {acknowledged} acknowledged sends survived 4 kills");
    Ok(())
}

/// Promises 1 to 4 on the real stores: the owner of the room is killed, and paused for longer than its lease and woken up
/// again, and a gateway is killed, all under load.
#[tokio::test(flavor = "multi_thread")]
async fn owners_and_gateways_die_under_load() -> Result<()> {
    let Some(servers) = servers::stores("faults::owners_and_gateways_die_under_load") else {
        return Ok(());
    };
    let options = RealOptions {
        gateways: 2,
        messages: 2,
        spec: QUICK.into(),
        ..Default::default()
    };
    let mut cluster = RealCluster::start(&servers, &options).await?;
    let bases: Vec<String> = cluster
        .gateways
        .iter()
        .map(|gateway| gateway.base.clone())
        .collect();
    let mut load = Load::start(&bases, 6).await?;
    let directory = cluster.directory.path().to_owned();
    load.flow(50).await?;
    // Whichever of the two owns the room, each is paused and each is killed once.
    for n in 0..2 {
        cluster.messages[n].process.signal("STOP");
        load.flow(50).await?;
        cluster.messages[n].process.signal("CONT");
        load.flow(50).await?;
        cluster.messages[n].process.kill();
        load.flow(50).await?;
        cluster.messages[n].restart(&directory).await?;
        load.flow(50).await?;
    }
    cluster.gateways[1].process.kill();
    load.flow(50).await?;
    cluster.gateways[1].restart(&directory).await?;
    load.flow(50).await?;
    let acknowledged = load.finish().await?;
    println!("real stores: {acknowledged} acknowledged sends survived 2 pauses and 3 kills");
    Ok(())
}
