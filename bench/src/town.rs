//! People, rooms and sockets on a server, whichever kind it is. What a scenario needs before it can begin.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt, stream};
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::frames::{self, Kind};
use crate::machine;
use crate::progress::Progress;
use crate::rest::Rest;
use crate::server::Server;
use crate::websocket::{Socket, Turn};
use crate::wire::{Wire, nats, socketio};

/// Password of every account made here.
const PASSWORD: &str = "carillon bench password";
/// Requests at once while accounts and rooms are made.
const AT_ONCE: usize = 16;
/// Sockets that open at once.
pub const SOCKETS_AT_ONCE: usize = 64;
/// Where sockets are opened.
const WS_PATH: &str = "/api/v1/ws";

/// An account with the tokens of its devices.
#[derive(Clone, Debug)]
pub struct Person {
    /// Its id.
    pub user_id: String,
    /// An access token per device.
    pub tokens: Vec<String>,
}

/// A server with people on it.
pub struct Town {
    address: SocketAddr,
    wire: Wire,
    /// What a server without accounts is told.
    shared_token: String,
    /// Eight hexadecimal digits that tell this run's accounts and messages from others.
    pub run: String,
    rest: Rest,
    people: Mutex<Vec<Person>>,
    patience: Duration,
}

impl Town {
    /// Nobody there yet.
    pub fn new(server: &Server, patience: Duration) -> Self {
        Self {
            address: server.address,
            wire: server.wire,
            shared_token: server.shared_token.clone(),
            run: format!("{:08x}", rand::random::<u32>()),
            rest: Rest::new(server.address),
            people: Mutex::new(Vec::new()),
            patience,
        }
    }

    /// What is spoken here.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// Whether nothing is stored here.
    pub fn is_bare(&self) -> bool {
        self.wire == Wire::Bare
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// REST calls.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// How long to wait for anything that does not move.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// `count` people, new ones made as needed, each logged in on at least `devices` devices.
    pub async fn people(
        &self,
        count: usize,
        devices: usize,
        progress: &Progress,
    ) -> Result<Vec<Person>> {
        let known = self.people.lock().len();
        let made = Mutex::new(0_usize);
        let wanted = count.saturating_sub(known);
        let newcomers: Vec<Person> = stream::iter(known..count.max(known))
            .map(|index| {
                let made = &made;
                async move {
                    let person = self.register(index).await?;
                    *made.lock() += 1;
                    progress.step("accounts", || format!("{} of {wanted}", made.lock()));
                    anyhow::Ok(person)
                }
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        self.people.lock().extend(newcomers);

        let missing: Vec<usize> = self.people.lock()[..count]
            .iter()
            .enumerate()
            .flat_map(|(index, person)| {
                std::iter::repeat_n(index, devices.saturating_sub(person.tokens.len()))
            })
            .collect();
        let wanted = missing.len();
        let made = Mutex::new(0_usize);
        stream::iter(missing)
            .map(|index| {
                let made = &made;
                async move {
                    let (user_id, token) = self.log_in(index).await?;
                    let mut people = self.people.lock();
                    people[index].user_id = user_id;
                    people[index].tokens.push(token);
                    *made.lock() += 1;
                    progress.step("logins", || format!("{} of {wanted}", made.lock()));
                    anyhow::Ok(())
                }
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(self.people.lock()[..count].to_vec())
    }

    fn username(&self, index: usize) -> String {
        format!("b{}x{index}", self.run)
    }

    async fn register(&self, index: usize) -> Result<Person> {
        if self.wire.has_rest() {
            let username = self.username(index);
            let email = format!("{username}@bench.example");
            let body = json!({"username": username, "email": email, "password": PASSWORD});
            self.rest
                .call(Method::POST, "/api/v1/auth/register", None, Some(body))
                .await?;
        }
        Ok(Person {
            user_id: String::new(),
            tokens: Vec::new(),
        })
    }

    async fn log_in(&self, index: usize) -> Result<(String, String)> {
        if !self.wire.has_rest() {
            return Ok((format!("user-{index}"), self.shared_token.clone()));
        }
        let body = json!({"username": self.username(index), "password": PASSWORD});
        let answer = self
            .rest
            .call(Method::POST, "/api/v1/auth/login", None, Some(body))
            .await?;
        let user_id = text(&answer["user"]["id"], "user.id of a login")?;
        Ok((
            user_id,
            text(&answer["access_token"], "access_token of a login")?,
        ))
    }

    /// Ids of `count` accounts that never log in: members to fill rooms with.
    pub async fn strangers(&self, count: usize, progress: &Progress) -> Result<Vec<String>> {
        let made = Mutex::new(0_usize);
        stream::iter(0..count)
            .map(|index| {
                let made = &made;
                async move {
                    let username = format!("s{}x{index}", self.run);
                    let email = format!("{username}@bench.example");
                    let body = json!({"username": username, "email": email, "password": PASSWORD});
                    let path = "/api/v1/auth/register";
                    let answer = self.rest.call(Method::POST, path, None, Some(body)).await?;
                    *made.lock() += 1;
                    progress.step("accounts", || format!("{} of {count}", made.lock()));
                    text(&answer["id"], "id of a new account")
                }
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await
    }

    /// A public room with these people in it, the first as its owner.
    pub async fn room(&self, name: &str, people: &[Person], progress: &Progress) -> Result<String> {
        let name = format!("{name} {} {:08x}", self.run, rand::random::<u32>());
        if !self.wire.has_rest() {
            return self.room_without_rest(name.replace(' ', "-")).await;
        }
        let owner = people.first().context("a room needs an owner")?;
        let body = json!({"name": name, "description": "load test", "type": "public"});
        let answer = self
            .rest
            .call(
                Method::POST,
                "/api/v1/rooms",
                Some(&owner.tokens[0]),
                Some(body),
            )
            .await?;
        let room_id = text(&answer["id"], "id of a new room")?;
        let path = format!("/api/v1/rooms/{room_id}/join");
        let (joined, wanted) = (Mutex::new(0_usize), people.len() - 1);
        stream::iter(&people[1..])
            .map(|person| async {
                self.rest
                    .call(Method::POST, &path, Some(&person.tokens[0]), None)
                    .await?;
                *joined.lock() += 1;
                progress.step("joins", || format!("{} of {wanted}", joined.lock()));
                anyhow::Ok(())
            })
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(room_id)
    }

    /// The direct room of two people.
    pub async fn direct_room(&self, one: &Person, other: &Person) -> Result<String> {
        if !self.wire.has_rest() {
            let name = format!("{}-{}-{}", self.run, one.user_id, other.user_id);
            return self.room_without_rest(name).await;
        }
        let body = json!({"recipient_id": other.user_id});
        let answer = self
            .rest
            .call(Method::POST, "/api/v1/dm", Some(&one.tokens[0]), Some(body))
            .await?;
        text(&answer["id"], "id of a direct room")
    }

    /// Opens a socket and waits until the server says that it is authenticated; a server without accounts must be told the room,
    /// another knows whose it is. `index` chooses the source address.
    pub async fn connect(
        &self,
        index: usize,
        token: &str,
        room_id: Option<&str>,
    ) -> Result<Socket> {
        let opening = async {
            let socket = self.open(self.source(index), token, room_id).await?;
            anyhow::Ok(socket)
        };
        match tokio::time::timeout(self.patience, opening).await {
            Ok(socket) => socket.with_context(|| format!("socket {index}")),
            Err(_) => bail!(
                "socket {index} was not authenticated within {:?}",
                self.patience
            ),
        }
    }

    async fn open(
        &self,
        source: Option<Ipv4Addr>,
        token: &str,
        room_id: Option<&str>,
    ) -> Result<Socket> {
        if self.wire == Wire::Nats {
            let mut socket = Socket::connect_nats(self.address, source, token).await?;
            let writer = socket.writer();
            if let Some(room_id) = room_id {
                writer.send(&format!("SUB live.{room_id} 1")).await?;
            }
            writer.send(self.wire.ping()).await?;
            wait_for(&mut socket, Kind::Pong).await?;
            return Ok(socket);
        }
        let path = match self.wire {
            Wire::SocketIo => socketio::PATH,
            _ => WS_PATH,
        };
        let mut socket = Socket::connect(self.address, source, path, Some(token), None).await?;
        if self.wire == Wire::SocketIo {
            socket.writer().send(&socketio::connect(token)).await?;
        }
        wait_for(&mut socket, Kind::ConnectionAck).await?;
        if let (Wire::Bare, Some(room_id)) = (self.wire, room_id) {
            let join =
                format!(r#"{{"type":"join_room","id":"cb0","payload":{{"room_id":"{room_id}"}}}}"#);
            socket.writer().send(&join).await?;
            wait_for(&mut socket, Kind::Ack).await?;
        }
        Ok(socket)
    }

    /// A room of a server that knows no members; NATS must be told to store what is sent there.
    async fn room_without_rest(&self, room_id: String) -> Result<String> {
        if self.wire == Wire::Nats {
            let mut socket = self.connect(0, &self.shared_token, None).await?;
            let request = nats::create_stream(&room_id);
            socket.writer().send(&request).await?;
            tokio::time::timeout(self.patience, wait_for(&mut socket, Kind::Ack))
                .await
                .map_err(|_| anyhow!("no answer within {:?}", self.patience))
                .flatten()
                .context("cannot make a stream")?;
        }
        Ok(room_id)
    }

    /// Opens a socket of Carillon's that nobody has authenticated yet. `receive_buffer`: see [`Socket::connect`].
    pub async fn open_socket(&self, index: usize, receive_buffer: Option<u32>) -> Result<Socket> {
        let source = self.source(index);
        Socket::connect(self.address, source, WS_PATH, None, receive_buffer).await
    }

    /// Where the `index`-th socket connects from, if it matters.
    fn source(&self, index: usize) -> Option<Ipv4Addr> {
        machine::source_address(index).filter(|_| self.address.ip().is_loopback())
    }

    /// Opens a socket for each (token, room), many at once, in this order; `opened` gets each as soon as it is there.
    pub async fn connect_all(
        self: &Arc<Self>,
        wanted: Vec<(String, Option<String>)>,
        progress: &Progress,
        mut opened: impl FnMut(usize, Socket),
    ) -> Result<()> {
        let count = wanted.len();
        machine::ensure_open_files(count)?;
        let mut sockets = stream::iter(wanted.into_iter().enumerate())
            .map(|(index, (token, room))| {
                let town = self.clone();
                async move {
                    let socket = town.connect(index, &token, room.as_deref()).await?;
                    anyhow::Ok((index, socket))
                }
            })
            .buffer_unordered(SOCKETS_AT_ONCE);
        let mut done = 0;
        while let Some((index, socket)) = sockets
            .try_next()
            .await
            .with_context(|| format!("{done} of {count} sockets were open"))?
        {
            opened(index, socket);
            done += 1;
            progress.step("sockets", || format!("{done} of {count}"));
        }
        Ok(())
    }
}

async fn wait_for(socket: &mut Socket, wanted: Kind) -> Result<()> {
    let mut seen = None;
    while seen.is_none() {
        let turn = socket
            .read(|frame| match frames::kind(frame) {
                kind if kind == wanted => seen = Some(Ok(())),
                Kind::Error => seen = Some(Err(frames::excerpt(frame))),
                _ => {}
            })
            .await?;
        if let Turn::Closed(reason) = turn {
            bail!("the server closed the socket instead of {wanted:?}: {reason}");
        }
    }
    seen.unwrap_or(Ok(()))
        .map_err(|error| anyhow!("instead of {wanted:?} the server sent {error}"))
}

fn text(value: &Value, what: &str) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| anyhow!("the answer has no {what}"))
}
