//! People with several devices each, who talk, change their minds, look things up, and get over every lost connection.
//!
//! Everything that they were told goes into the [`History`], which the checker compares with the rooms afterwards. A device
//! behaves as a good client does: it retries with the same client message id, resumes, and pulls what it is told to pull.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{sync::mpsc, task::JoinSet};

use super::plan::Plan;
use crate::world::client::{Answer, PATIENCE, Person};

/// How long one attempt may take before the device tries another way.
const ATTEMPT: Duration = Duration::from_secs(4);
/// How long something may be refused before the plan fails: longer than any fault lasts.
const GIVE_UP: Duration = Duration::from_secs(90);

/// A send that was acknowledged.
pub struct Sent {
    pub person: usize,
    pub room: usize,
    pub client_message_id: String,
    pub content: String,
    pub sequence: u64,
    pub started: Instant,
    pub answered: Instant,
    /// Attempts before the one that was answered.
    pub retries: usize,
}

/// A page of the newest messages.
pub struct Looked {
    pub room: usize,
    pub started: Instant,
    pub ended: Instant,
    /// The largest sequence among them, 0 for none.
    pub newest: u64,
}

/// A mark that was acknowledged, or one that was read.
pub struct Marked {
    pub person: usize,
    pub room: usize,
    pub started: Instant,
    pub ended: Instant,
    pub sequence: u64,
    /// Read from the conversation list, rather than set.
    pub read: bool,
}

/// What the author knows of a message after an acknowledged change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Now {
    Content(String),
    Deleted,
}

/// All that people were told.
#[derive(Default)]
pub struct History {
    pub sent: Vec<Sent>,
    pub looked: Vec<Looked>,
    pub marked: Vec<Marked>,
    pub changed: BTreeMap<String, Now>,
    pub reconnects: usize,
    pub resyncs: usize,
    pub conflicts: usize,
}

impl History {
    fn add(&mut self, other: Self) {
        self.sent.extend(other.sent);
        self.looked.extend(other.looked);
        self.marked.extend(other.marked);
        self.changed.extend(other.changed);
        self.reconnects += other.reconnects;
        self.resyncs += other.resyncs;
        self.conflicts += other.conflicts;
    }
}

/// What happens to a device from outside.
pub enum Mishap {
    Drop,
    Lag(Duration),
}

/// The people, at work.
pub struct Crowd {
    pub rooms: Vec<String>,
    mishaps: BTreeMap<(usize, usize), mpsc::UnboundedSender<Mishap>>,
    stop: Arc<AtomicBool>,
    devices: JoinSet<Result<Device>>,
}

impl Crowd {
    /// Registers everybody, lets them join every room, and sets them to work.
    pub async fn start(plan: &Plan, bases: &[String]) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let base = &bases[0];
        let mut people = Vec::new();
        for n in 0..plan.people {
            people.push(Person::register(base, &format!("person{n}")).await?);
        }
        let mut rooms = Vec::new();
        for n in 0..plan.rooms {
            let owner = &people[n % people.len()];
            let body = json!({"name": format!("room{n}"), "description": "", "type": "public"});
            let made = owner.ask(base, Method::POST, "/rooms", Some(&body)).await?;
            rooms.push(made["id"].as_str().context("id")?.to_owned());
        }
        for person in &people {
            for room in &rooms {
                person
                    .ask(base, Method::POST, &format!("/rooms/{room}/join"), None)
                    .await?;
            }
        }
        let mut devices = JoinSet::new();
        let mut mishaps = BTreeMap::new();
        for (person, first) in people.into_iter().enumerate() {
            let (username, mut first) = (first.username.clone(), Some(first));
            for index in 0..plan.devices {
                let mut me = match first.take() {
                    Some(me) => me,
                    None => Person::login(base, &format!("person{person}"), &username).await?,
                };
                // From the beginning, so that everything is seen.
                for room in &rooms {
                    me.seen.entry(room.clone()).or_default();
                }
                let (sender, receiver) = mpsc::unbounded_channel();
                mishaps.insert((person, index), sender);
                let device = Device {
                    person,
                    index,
                    me,
                    bases: bases.to_vec(),
                    at: (person + index) % bases.len(),
                    rooms: rooms.clone(),
                    random: StdRng::seed_from_u64(
                        plan.seed ^ ((person as u64) << 32) ^ ((index as u64) << 48),
                    ),
                    mishaps: receiver,
                    stop: stop.clone(),
                    clocks_jump: plan.jumps(),
                    mine: Vec::new(),
                    next: 0,
                    history: History::default(),
                };
                devices.spawn(device.live());
            }
        }
        Ok(Self {
            rooms,
            mishaps,
            stop,
            devices,
        })
    }

    /// Lets something happen to a device; nothing if a plan names one that isn't there.
    pub fn befall(&self, person: usize, device: usize, mishap: Mishap) {
        if let Some(sender) = self.mishaps.get(&(person, device)) {
            // A device that failed already has its error reported by `finish`.
            let _ = sender.send(mishap);
        }
    }

    /// The error of a device that gave up, if one did.
    pub fn first_failure(&mut self) -> Result<()> {
        match self.devices.try_join_next() {
            None => Ok(()),
            Some(ended) => {
                ended??;
                bail!("a device stopped by itself")
            }
        }
    }

    /// Lets everybody end what they do; the devices, and all that they were told.
    pub async fn finish(mut self) -> Result<(Vec<Device>, History)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut devices = Vec::new();
        let mut history = History::default();
        while let Some(ended) = self.devices.join_next().await {
            let mut device = ended??;
            history.add(std::mem::take(&mut device.history));
            devices.push(device);
        }
        Ok((devices, history))
    }
}

/// One device of a person.
pub struct Device {
    pub person: usize,
    pub index: usize,
    pub me: Person,
    bases: Vec<String>,
    at: usize,
    rooms: Vec<String>,
    random: StdRng,
    mishaps: mpsc::UnboundedReceiver<Mishap>,
    stop: Arc<AtomicBool>,
    /// Whether the plan moves clocks, so that what goes by the time of day may be refused.
    clocks_jump: bool,
    /// Messages that this device sent and did not delete: id and room.
    mine: Vec<(String, usize)>,
    next: u64,
    history: History,
}

impl Device {
    async fn live(mut self) -> Result<Self> {
        let name = format!("device {}/{}", self.person, self.index);
        while !self.stop.load(Ordering::Relaxed) {
            match self.mishaps.try_recv() {
                Ok(Mishap::Drop) => self.me.drop_socket(),
                // Nothing is read, and nothing written: a phone in a tunnel.
                Ok(Mishap::Lag(time)) => tokio::time::sleep(time).await,
                Err(_) => {}
            }
            if !self.me.is_connected() {
                self.reconnect().await.with_context(|| name.clone())?;
                continue;
            }
            self.act().await.with_context(|| name.clone())?;
            let pause = Duration::from_millis(self.random.random_range(0..40));
            self.read_for(pause).await.with_context(|| name.clone())?;
        }
        Ok(self)
    }

    fn base(&self) -> String {
        self.bases[self.at % self.bases.len()].clone()
    }

    /// One attempt to connect and resume; a failure waits a little and turns to the next gateway.
    async fn reconnect(&mut self) -> Result<()> {
        let base = self.base();
        self.history.reconnects += 1;
        match tokio::time::timeout(ATTEMPT, self.me.connect(&base, true)).await {
            Ok(Ok(())) => self.pull_if_told().await,
            Ok(Err(error)) if error.to_string().contains("came after") => Err(error),
            _ => {
                self.me.drop_socket();
                if matches!(self.me.closed, Some(4001 | 4002)) {
                    self.log_in_again().await;
                }
                self.at += 1;
                let pause = self.random.random_range(10..150);
                tokio::time::sleep(Duration::from_millis(pause)).await;
                Ok(())
            }
        }
    }

    /// A new session: the old one was ended, or Redis forgot it.
    async fn log_in_again(&mut self) {
        let (base, username) = (self.base(), self.me.username.clone());
        let login = Person::login(&base, &self.me.name, &username);
        if let Ok(Ok(fresh)) = tokio::time::timeout(ATTEMPT, login).await {
            self.me.access_token = fresh.access_token;
            self.me.refresh_token = fresh.refresh_token;
        }
    }

    /// Reads what comes for a while.
    async fn read_for(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while self.me.is_connected() {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(frame) = tokio::time::timeout(left, self.me.frame(PATIENCE)).await else {
                break;
            };
            if let Some(frame) = frame? {
                self.me.take(frame)?;
            }
        }
        self.pull_if_told().await
    }

    /// `resync`: reads the rooms that the socket gave up on, until nothing is missing.
    async fn pull_if_told(&mut self) -> Result<()> {
        let mut rooms = Vec::new();
        self.me.others.retain(|frame| {
            if frame["type"] == "resync" {
                rooms.extend(frame["payload"]["room_id"].as_str().map(str::to_owned));
            }
            false
        });
        for room in rooms {
            self.history.resyncs += 1;
            // The socket's events begin somewhere in what is pulled now, so they may come twice.
            self.me.pulled.insert(room.clone());
            let deadline = Instant::now() + GIVE_UP;
            loop {
                ensure!(Instant::now() < deadline, "a pull was not answered");
                let last = self.last(&room);
                let path = format!("/rooms/{room}/events?after={last}&limit=500");
                let Some(page) = self.get(&path).await? else {
                    continue;
                };
                let items = page["items"].as_array().context("items")?;
                if items.is_empty() {
                    break;
                }
                for item in items {
                    self.me.take(item.clone())?;
                }
            }
        }
        Ok(())
    }

    fn last(&self, room: &str) -> u64 {
        let seen = self.me.seen.get(room);
        seen.and_then(|events| events.keys().next_back().copied())
            .unwrap_or(0)
    }

    /// A read that is tried once; `None` when it should be tried again.
    async fn get(&mut self, path: &str) -> Result<Option<Value>> {
        Ok(self.call(Method::GET, path, None).await?.map(|a| a.body))
    }

    /// One attempt over REST; `None` when it may be repeated, an error when it must not.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Option<Answer>> {
        let base = self.base();
        let call = self.me.call(&base, method.clone(), path, body);
        let Ok(Ok(answer)) = tokio::time::timeout(ATTEMPT, call).await else {
            self.at += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Ok(None);
        };
        match answer.status.as_u16() {
            401 => {
                self.log_in_again().await;
                Ok(None)
            }
            503 | 504 => {
                self.at += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(None)
            }
            429 => bail!("the limits are out of the way, and yet: {}", answer.body),
            500.. => bail!(
                "{method} {path} was answered {}: {}",
                answer.status,
                answer.body
            ),
            _ => Ok(Some(answer)),
        }
    }

    /// Repeats a request until it is answered; the answer, and how often it was repeated.
    async fn insist(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(Answer, usize)> {
        let deadline = Instant::now() + GIVE_UP;
        for retries in 0.. {
            if let Some(answer) = self.call(method.clone(), path, body).await? {
                return Ok((answer, retries));
            }
            ensure!(Instant::now() < deadline, "{method} {path}: no answer");
        }
        unreachable!("the deadline ends the loop")
    }

    async fn act(&mut self) -> Result<()> {
        match self.random.random_range(0..100) {
            0..62 => self.send().await,
            62..70 => self.edit().await,
            70..74 => self.delete().await,
            74..84 => self.look().await,
            84..92 => self.mark().await,
            _ => self.list().await,
        }
    }

    async fn send(&mut self) -> Result<()> {
        let room = self.random.random_range(0..self.rooms.len());
        self.next += 1;
        let id = format!("{}-{}-{}", self.person, self.index, self.next);
        let content = format!("{id} {}", self.random.random::<u32>());
        let started = Instant::now();
        let (message, retries) = self.send_as(room, &id, &content).await?;
        let sequence = message["sequence"].as_u64().context("sequence")?;
        let answered = Instant::now();
        // Now and then a client doesn't know that it was answered.
        match self.random.random_range(0..100) {
            0..8 => {
                let (again, _) = self.send_as(room, &id, &content).await?;
                ensure!(
                    again["sequence"] == sequence && again["id"] == message["id"],
                    "a retry of {id} at {sequence} was answered {again}"
                );
            }
            8..10 => {
                let path = format!("/rooms/{}/messages", self.rooms[room]);
                let other =
                    json!({"client_message_id": id, "type": "text", "content": "other content"});
                let (answer, _) = self.insist(Method::POST, &path, Some(&other)).await?;
                ensure!(
                    answer.status == 409 && answer.body["code"] == "idempotency_conflict",
                    "other content under {id} was answered {}: {}",
                    answer.status,
                    answer.body
                );
                self.history.conflicts += 1;
            }
            _ => {}
        }
        self.mine
            .push((message["id"].as_str().context("id")?.to_owned(), room));
        self.history.sent.push(Sent {
            person: self.person,
            room,
            client_message_id: id,
            content,
            sequence,
            started,
            answered,
            retries,
        });
        Ok(())
    }

    /// Sends until acknowledged, each attempt over the socket or REST.
    async fn send_as(&mut self, room: usize, id: &str, content: &str) -> Result<(Value, usize)> {
        let deadline = Instant::now() + GIVE_UP;
        for retries in 0.. {
            ensure!(Instant::now() < deadline, "{id} was not taken");
            if self.me.is_connected() && self.random.random_range(0..3) > 0 {
                let payload = json!({"room_id": self.rooms[room], "client_message_id": id, "type": "text", "content": content});
                let asked = self.me.socket_request("send_message", payload);
                match tokio::time::timeout(ATTEMPT, asked).await {
                    Ok(Ok(answer)) if answer["type"] == "ack" => {
                        return Ok((answer["payload"]["message"].clone(), retries));
                    }
                    Ok(Ok(answer)) if answer["payload"]["retryable"] == true => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    Ok(Ok(answer)) => bail!("a send was answered {answer}"),
                    Ok(Err(error)) if error.to_string().contains("came after") => {
                        return Err(error);
                    }
                    _ => self.me.drop_socket(),
                }
                continue;
            }
            let path = format!("/rooms/{}/messages", self.rooms[room]);
            let body = json!({"client_message_id": id, "type": "text", "content": content});
            if let Some(answer) = self.call(Method::POST, &path, Some(&body)).await? {
                ensure!(
                    answer.status.is_success(),
                    "a send was answered {}: {}",
                    answer.status,
                    answer.body
                );
                return Ok((answer.body, retries));
            }
        }
        unreachable!("the deadline ends the loop")
    }

    async fn edit(&mut self) -> Result<()> {
        let Some((id, _)) = self.one_of_mine() else {
            return Ok(());
        };
        let content = format!("edited {}", self.random.random::<u32>());
        let body = json!({"content": content});
        let path = format!("/messages/{id}");
        let (answer, retries) = self.insist(Method::PATCH, &path, Some(&body)).await?;
        if self.is_too_late(&answer) {
            self.give_up_on(&id, retries);
            return Ok(());
        }
        ensure!(
            answer.status.is_success(),
            "an edit was answered {}: {}",
            answer.status,
            answer.body
        );
        self.history.changed.insert(id, Now::Content(content));
        Ok(())
    }

    async fn delete(&mut self) -> Result<()> {
        let Some((id, _)) = self.one_of_mine() else {
            return Ok(());
        };
        let path = format!("/messages/{id}");
        let (answer, retries) = self.insist(Method::DELETE, &path, None).await?;
        if self.is_too_late(&answer) {
            self.give_up_on(&id, retries);
            return Ok(());
        }
        ensure!(
            answer.status.is_success(),
            "a delete was answered {}: {}",
            answer.status,
            answer.body
        );
        self.mine.retain(|(mine, _)| *mine != id);
        self.history.changed.insert(id, Now::Deleted);
        Ok(())
    }

    /// By a clock that jumped ahead, the time in which a message may be changed is over.
    fn is_too_late(&self, answer: &Answer) -> bool {
        self.clocks_jump
            && answer.status == 409
            && answer.body["detail"]
                .as_str()
                .is_some_and(|detail| detail.starts_with("a message can be changed for"))
    }

    /// A change that was refused; if not at once, an attempt before may have been taken all the same, or may still be.
    fn give_up_on(&mut self, id: &str, retries: usize) {
        if retries > 0 {
            self.mine.retain(|(mine, _)| mine != id);
            self.history.changed.remove(id);
        }
    }

    fn one_of_mine(&mut self) -> Option<(String, usize)> {
        let count = self.mine.len();
        (count > 0).then(|| self.mine[self.random.random_range(0..count)].clone())
    }

    async fn look(&mut self) -> Result<()> {
        let room = self.random.random_range(0..self.rooms.len());
        let started = Instant::now();
        let path = format!("/rooms/{}/messages?limit=20", self.rooms[room]);
        let Some(page) = self.get(&path).await? else {
            return Ok(());
        };
        let items = page["items"].as_array().context("items")?;
        let newest = items.iter().filter_map(|item| item["sequence"].as_u64());
        self.history.looked.push(Looked {
            room,
            started,
            ended: Instant::now(),
            newest: newest.max().unwrap_or(0),
        });
        Ok(())
    }

    async fn mark(&mut self) -> Result<()> {
        let room = self.random.random_range(0..self.rooms.len());
        // Often an old place: the largest wins.
        let last = self.last(&self.rooms[room].clone());
        if last == 0 {
            return Ok(());
        }
        let sequence = self.random.random_range(1..=last);
        let started = Instant::now();
        let path = format!("/rooms/{}/read", self.rooms[room]);
        let body = json!({"sequence": sequence});
        let Some(answer) = self.call(Method::POST, &path, Some(&body)).await? else {
            return Ok(());
        };
        ensure!(
            answer.status.is_success(),
            "a mark was answered {}: {}",
            answer.status,
            answer.body
        );
        self.history.marked.push(Marked {
            person: self.person,
            room,
            started,
            ended: Instant::now(),
            sequence,
            read: false,
        });
        Ok(())
    }

    async fn list(&mut self) -> Result<()> {
        let started = Instant::now();
        let Some(list) = self.get("/rooms/me?limit=100").await? else {
            return Ok(());
        };
        let ended = Instant::now();
        for item in list["items"].as_array().context("items")? {
            let room = self.rooms.iter().position(|room| item["id"] == **room);
            let read = item["read_sequence"].as_u64().context("read_sequence")?;
            if let Some(room) = room {
                self.history.marked.push(Marked {
                    person: self.person,
                    room,
                    started,
                    ended,
                    sequence: read,
                    read: true,
                });
            }
        }
        Ok(())
    }

    /// After the faults: a session that holds, also when the last one was made by a clock that was wrong.
    pub async fn wake(&mut self) -> Result<()> {
        self.insist(Method::GET, "/rooms/me?limit=1", None)
            .await
            .map(drop)
    }

    /// After the faults: connects, and reads until it has seen everything up to these places.
    pub async fn settle(&mut self, heads: &BTreeMap<String, u64>) -> Result<()> {
        let deadline = Instant::now() + GIVE_UP;
        loop {
            if !self.me.is_connected() {
                self.reconnect().await?;
            } else {
                self.read_for(Duration::from_millis(50)).await?;
            }
            if heads.iter().all(|(room, head)| self.last(room) >= *head) {
                return Ok(());
            }
            let missing: Vec<_> = heads
                .iter()
                .map(|(room, head)| (self.last(room), *head))
                .collect();
            ensure!(
                Instant::now() < deadline,
                "device {}/{} did not catch up; it has seen, of: {missing:?}",
                self.person,
                self.index
            );
        }
    }
}
