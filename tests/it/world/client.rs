//! A person with a device, through the public API only: REST by reqwest, WebSocket by tungstenite.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{SinkExt as _, StreamExt as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

/// How long anything may take before a test fails. Nothing asserts that it is faster.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A person.
pub struct Person {
    pub name: String,
    /// What to log in with again.
    pub username: String,
    pub id: String,
    pub access_token: String,
    pub refresh_token: String,
    http: reqwest::Client,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    next_request: u64,
    /// Answers that came while something else was waited for.
    answers: BTreeMap<String, Value>,
    /// Every room event seen on sockets, by room and place.
    pub seen: BTreeMap<String, BTreeMap<u64, Value>>,
    /// Rooms of which this connection's events may come again, because they were pulled.
    pub pulled: BTreeSet<String>,
    /// Frames that are no room events, oldest first.
    pub others: Vec<Value>,
    /// Code of the last close frame.
    pub closed: Option<u16>,
}

/// An HTTP answer.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

/// A client without certificates: tests speak plain HTTP on loopback.
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .expect("a client without options builds")
}

/// One request with a JSON answer; anything else is wrapped as a string.
pub async fn request(
    http: &reqwest::Client,
    method: Method,
    url: &str,
    token: Option<&str>,
    body: Option<&Value>,
) -> Result<Answer> {
    let mut request = http.request(method, url);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.json(body);
    }
    let response = request
        .send()
        .await
        .with_context(|| format!("asking {url}"))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
    Ok(Answer {
        status,
        headers,
        body,
    })
}

impl Person {
    /// Registers and logs in.
    pub async fn register(base: &str, name: &str) -> Result<Self> {
        let http = http();
        let unique = format!("{name}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let account = json!({"username": unique, "email": format!("{unique}@example.com"), "password": "correct horse battery"});
        let made = request(
            &http,
            Method::POST,
            &format!("{base}/api/v1/auth/register"),
            None,
            Some(&account),
        )
        .await?;
        ensure!(
            made.status == StatusCode::CREATED,
            "register answered {}: {}",
            made.status,
            made.body
        );
        Self::login(base, name, &unique).await
    }

    /// A further device of somebody who is registered under `username`.
    pub async fn login(base: &str, name: &str, username: &str) -> Result<Self> {
        let http = http();
        let login = json!({"username": username, "password": "correct horse battery", "device": format!("{name}'s device")});
        let tokens = request(
            &http,
            Method::POST,
            &format!("{base}/api/v1/auth/login"),
            None,
            Some(&login),
        )
        .await?;
        ensure!(
            tokens.status == StatusCode::OK,
            "login answered {}: {}",
            tokens.status,
            tokens.body
        );
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(Self {
            name: name.to_owned(),
            username: username.to_owned(),
            id: text(&tokens.body["user"]["id"]),
            access_token: text(&tokens.body["access_token"]),
            refresh_token: text(&tokens.body["refresh_token"]),
            http,
            socket: None,
            next_request: 1,
            answers: BTreeMap::new(),
            seen: BTreeMap::new(),
            pulled: BTreeSet::new(),
            others: Vec::new(),
            closed: None,
        })
    }

    /// A request in this person's name; `path` begins after `/api/v1`.
    pub async fn call(
        &self,
        base: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        request(
            &self.http,
            method,
            &format!("{base}/api/v1{path}"),
            Some(&self.access_token),
            body,
        )
        .await
    }

    /// A request that must succeed.
    pub async fn ask(
        &self,
        base: &str,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value> {
        let answer = self.call(base, method.clone(), path, body).await?;
        ensure!(
            answer.status.is_success(),
            "{method} {path} of {} answered {}: {}",
            self.name,
            answer.status,
            answer.body
        );
        Ok(answer.body)
    }

    /// Opens a socket with first-message auth; `resume` continues from what was seen.
    pub async fn connect(&mut self, base: &str, resume: bool) -> Result<()> {
        let url = format!("{}/api/v1/ws", base.replacen("http", "ws", 1));
        let (socket, _) = tokio::time::timeout(PATIENCE, tokio_tungstenite::connect_async(&url))
            .await
            .context("connecting")??;
        self.socket = Some(socket);
        self.closed = None;
        self.pulled.clear();
        let mut payload = json!({"token": self.access_token});
        if resume {
            let places: BTreeMap<&String, u64> = self
                .seen
                .iter()
                .map(|(room, events)| (room, events.keys().next_back().copied().unwrap_or(0)))
                .collect();
            payload["resume"] = json!(places);
        }
        let first = self
            .frame(PATIENCE)
            .await?
            .context("the socket closed before auth_required")?;
        ensure!(
            first["type"] == "auth_required",
            "expected auth_required, got {first}"
        );
        self.send_frame(&json!({"type": "auth", "id": "auth", "payload": payload}))
            .await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let frame = self
                .frame(deadline.saturating_duration_since(Instant::now()))
                .await?
                .context("the socket closed before connection_ack")?;
            if frame["type"] == "connection_ack" {
                return Ok(());
            }
            self.take(frame)?;
        }
    }

    /// Drops the connection without a word.
    pub fn drop_socket(&mut self) {
        self.socket = None;
    }

    /// Whether there is a socket.
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends a raw frame.
    pub async fn send_frame(&mut self, frame: &Value) -> Result<()> {
        self.send_raw(Message::text(frame.to_string())).await
    }

    /// Sends anything.
    pub async fn send_raw(&mut self, message: Message) -> Result<()> {
        let socket = self.socket.as_mut().context("not connected")?;
        tokio::time::timeout(PATIENCE, socket.send(message))
            .await
            .context("writing to the socket")??;
        Ok(())
    }

    /// The next frame; `None` when the socket closed.
    pub async fn frame(&mut self, patience: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + patience;
        loop {
            let socket = self.socket.as_mut().context("not connected")?;
            let next = tokio::time::timeout(
                deadline.saturating_duration_since(Instant::now()),
                socket.next(),
            )
            .await;
            match next.with_context(|| format!("{} waited {patience:?} for a frame", self.name))? {
                Some(Ok(Message::Text(text))) => return Ok(Some(serde_json::from_str(&text)?)),
                Some(Ok(Message::Close(close))) => {
                    self.closed = close.map(|close| close.code.into());
                    self.socket = None;
                    return Ok(None);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    self.socket = None;
                    return Ok(None);
                }
            }
        }
    }

    /// Files a frame, checking that each place of a room has one content and comes in order on one connection.
    pub fn take(&mut self, frame: Value) -> Result<()> {
        let kind = frame["type"].as_str().unwrap_or_default().to_owned();
        if (kind == "ack" || kind == "error" || kind == "pong")
            && let Some(id) = frame.get("id").filter(|id| !id.is_null())
        {
            self.answers.insert(
                id.as_str().map_or_else(|| id.to_string(), str::to_owned),
                frame,
            );
            return Ok(());
        }
        let payload = &frame["payload"];
        let place = (payload["room_id"].as_str(), payload["sequence"].as_u64());
        // Every event of a room's log, and nothing else, says how many messages were before it.
        let is_event = payload["messages_before"].is_u64();
        let (true, (Some(room), Some(sequence))) = (is_event, place) else {
            self.others.push(frame);
            return Ok(());
        };
        let events = self.seen.entry(room.to_owned()).or_default();
        if self.pulled.contains(room) && events.contains_key(&sequence) {
            return Ok(());
        }
        if let Some((last, _)) = events.last_key_value() {
            ensure!(
                sequence > *last,
                "{}: place {sequence} of a room came after {last}: {frame}",
                self.name
            );
        }
        events.insert(sequence, frame);
        Ok(())
    }

    /// Sends a request and waits for its ack or error frame.
    pub async fn socket_request(&mut self, kind: &str, payload: Value) -> Result<Value> {
        let id = self.next_request.to_string();
        self.next_request += 1;
        self.send_frame(&json!({"type": kind, "id": id, "payload": payload}))
            .await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.answers.remove(&id) {
                return Ok(answer);
            }
            let Some(frame) = self
                .frame(deadline.saturating_duration_since(Instant::now()))
                .await?
            else {
                bail!(
                    "{}: the socket closed ({:?}) before {kind} was answered",
                    self.name,
                    self.closed
                );
            };
            self.take(frame)?;
        }
    }

    /// Reads frames until `found` holds for what was seen.
    pub async fn wait_until(
        &mut self,
        what: &str,
        mut found: impl FnMut(&Self) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !found(self) {
            let frame = self
                .frame(deadline.saturating_duration_since(Instant::now()))
                .await
                .with_context(|| {
                    format!(
                        "{} waits for {what}; seen {:?}, others {:?}",
                        self.name,
                        self.places(),
                        self.others
                    )
                })?;
            let Some(frame) = frame else {
                bail!(
                    "{}: the socket closed ({:?}) while waiting for {what}",
                    self.name,
                    self.closed
                )
            };
            self.take(frame)?;
        }
        Ok(())
    }

    fn places(&self) -> BTreeMap<&String, Vec<u64>> {
        self.seen
            .iter()
            .map(|(room, events)| (room, events.keys().copied().collect()))
            .collect()
    }

    /// The texts of new messages seen in a room, in order.
    pub fn texts(&self, room: &str) -> Vec<String> {
        let Some(events) = self.seen.get(room) else {
            return Vec::new();
        };
        let messages = events
            .values()
            .filter(|event| event["type"] == "new_message");
        messages
            .map(|event| {
                event["payload"]["content"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    /// Whether the places seen of a room have no gap.
    pub fn is_dense(&self, room: &str) -> bool {
        let Some(events) = self.seen.get(room) else {
            return true;
        };
        let (first, last) = (events.keys().next(), events.keys().next_back());
        first
            .zip(last)
            .is_none_or(|(first, last)| last - first + 1 == events.len() as u64)
    }

    /// Every page of a room's history, oldest first.
    pub async fn history(&self, base: &str, room: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut before = String::new();
        loop {
            let page = self
                .ask(
                    base,
                    Method::GET,
                    &format!("/rooms/{room}/messages?limit=100{before}"),
                    None,
                )
                .await?;
            let items = page["items"].as_array().context("items")?;
            if items.is_empty() {
                return Ok(all);
            }
            before = format!(
                "&before={}",
                items
                    .iter()
                    .filter_map(|m| m["sequence"].as_u64())
                    .min()
                    .context("sequence")?
            );
            let mut items = items.clone();
            items.sort_by_key(|message| message["sequence"].as_u64());
            all.splice(0..0, items);
        }
    }
}
