//! Answers at moderate load: a mix of REST requests and socket requests at a fixed rate, and the latency of each kind.
//!
//! People in a few rooms, a socket each. What is due is handed to whoever is free; a latency counts from when the request was due.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{CpuClock, Setting};
use crate::checks::{Check, Failures, Span};
use crate::frames::{self, Kind, Stamp, Stamper, now_nanos};
use crate::pace;
use crate::report::{Better, Measurement};
use crate::rest::Connection;
use crate::town::{Person, Town};
use crate::websocket::{Socket, Turn, Writer};

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// People, a socket each
    #[arg(long, default_value_t = 100)]
    pub people: usize,
    /// Rooms, each with everybody whose number is the room's modulo how many there are
    #[arg(long, default_value_t = 10)]
    pub rooms: usize,
    /// Requests per second, over all kinds
    #[arg(long, default_value_t = 500.0)]
    pub rate: f64,
    /// Seconds
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
    /// Connections for REST
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ask {
    RestSend,
    RestHistory,
    RestRooms,
    RestRead,
    SocketSend,
    SocketRead,
    SocketTyping,
}

/// The mix, in turn.
const MIX: [Ask; 10] = [
    Ask::RestHistory,
    Ask::SocketSend,
    Ask::RestSend,
    Ask::SocketTyping,
    Ask::RestRooms,
    Ask::SocketRead,
    Ask::RestHistory,
    Ask::SocketSend,
    Ask::RestRead,
    Ask::SocketTyping,
];

const KINDS: [(Ask, &str); 7] = [
    (Ask::RestSend, "REST send"),
    (Ask::RestHistory, "REST history"),
    (Ask::RestRooms, "REST list of rooms"),
    (Ask::RestRead, "REST read mark"),
    (Ask::SocketSend, "socket send"),
    (Ask::SocketRead, "socket read mark"),
    (Ask::SocketTyping, "socket typing"),
];

/// Messages of a page of history.
const PAGE: u64 = 50;
/// A person's rooms of a list.
const LISTED: u64 = 20;

struct Board {
    stamper: Stamper,
    rooms: Vec<Room>,
    people: Vec<Person>,
    writers: Vec<Writer>,
    /// What was asked on sockets and not answered yet, by number: kind, when it was due, room.
    waiting: Mutex<HashMap<u64, (Ask, u64, usize)>>,
    keep_from: u64,
    answered: AtomicU64,
    latencies: Mutex<[Histogram<u64>; KINDS.len()]>,
    failures: Arc<Failures>,
}

struct Room {
    id: String,
    span: Mutex<Span>,
}

/// Measures.
pub async fn run(town: Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    ensure!(!town.is_bare(), "a bare server has no REST");
    ensure!(
        options.rooms > 0 && options.people >= options.rooms && options.connections > 0,
        "--rooms and --connections must be at least 1, and --people not fewer than --rooms"
    );
    let progress = setting.progress;
    let name = format!("answers, {:.0} requests/s", options.rate);
    let mut measurement = Measurement::new(name, setting.subject);
    measurement.parameter("people", options.people);
    measurement.parameter("rooms", options.rooms);
    measurement.parameter("content bytes", options.content_bytes);

    let people = town.people(options.people, 1, progress).await?;
    let mut rooms = Vec::with_capacity(options.rooms);
    for index in 0..options.rooms {
        let members = people.iter().skip(index).step_by(options.rooms);
        let members: Vec<Person> = members.cloned().collect();
        rooms.push(Room {
            id: town.room("answers", &members, progress).await?,
            span: Mutex::default(),
        });
    }
    let failures = Arc::new(Failures::default());
    let wanted = people
        .iter()
        .map(|person| (person.tokens[0].clone(), None))
        .collect();
    let mut sockets: Vec<Option<Socket>> = people.iter().map(|_| None).collect();
    town.connect_all(wanted, progress, |index, socket| {
        sockets[index] = Some(socket);
    })
    .await?;
    let sockets: Vec<Socket> = sockets.into_iter().flatten().collect();
    let mut connections = Vec::with_capacity(options.connections);
    for _ in 0..options.connections {
        connections.push(Connection::open(town.address()).await?);
    }

    let alone = setting.alone().await?;
    let duration = Duration::from_secs(options.seconds);
    let board = Arc::new(Board {
        stamper: Stamper::new(&format!("{}-a", town.run), options.content_bytes),
        rooms,
        people,
        writers: sockets.iter().map(Socket::writer).collect(),
        waiting: Mutex::default(),
        keep_from: now_nanos() + duration.as_nanos() as u64 / 10,
        answered: AtomicU64::new(0),
        latencies: Mutex::new(std::array::from_fn(|_| pace::histogram())),
        failures: failures.clone(),
    });
    let mut readers = JoinSet::new();
    for socket in sockets {
        readers.spawn(read(socket, board.clone()));
    }
    let clock = CpuClock::start(setting.pids)?;
    let (mut receivers, pacer) = pace::start(options.rate, duration, 1);
    let due = receivers.pop().context("one worker was asked for")?;
    let expected = pacer.total;
    let mut workers = JoinSet::new();
    let (hand_out, take) = mpsc::channel(1);
    let take = Arc::new(tokio::sync::Mutex::new(take));
    workers.spawn(ask_sockets(board.clone(), due, hand_out));
    for connection in connections {
        workers.spawn(ask_rest(board.clone(), connection, take.clone()));
    }
    progress
        .wait(
            &format!("{:.0} requests/s", options.rate),
            town.patience(),
            &failures,
            || (board.answered.load(Relaxed), expected),
        )
        .await?;
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker panicked")?;
    }
    pacer.finish()?;
    let shares = clock.shares()?;
    drop(alone);
    readers.abort_all();

    shares.note_as(&mut measurement, "");
    for ((_, name), histogram) in KINDS.iter().zip(board.latencies.lock().iter()) {
        for (quantile, at) in [("p50", 0.5), ("p99", 0.99)] {
            let millis = histogram.value_at_quantile(at) as f64 / 1_000.0;
            measurement.figure(&format!("{name}: {quantile} ms"), millis, Better::Lower);
        }
    }
    measurement.checks = vec![
        Check::equal(
            "every request answered with success",
            board.answered.load(Relaxed),
            expected,
        ),
        board.check_rooms(),
        failures.check(),
    ];
    for writer in &board.writers {
        writer.close().await;
    }
    Ok(measurement)
}

/// Asks what sockets are asked, and hands the rest to whoever has a connection.
async fn ask_sockets(
    board: Arc<Board>,
    mut due: mpsc::Receiver<u64>,
    rest: mpsc::Sender<(Ask, u64, u64)>,
) {
    let mut number = 0;
    while let Some(at) = due.recv().await {
        let ask = MIX[(number % MIX.len() as u64) as usize];
        let outcome = match ask {
            Ask::SocketSend | Ask::SocketRead | Ask::SocketTyping => {
                board.ask_socket(ask, number, at).await
            }
            _ => rest.send((ask, number, at)).await.map_err(Into::into),
        };
        if let Err(error) = outcome {
            return board.failures.note(format!("{ask:?}: {error:#}"));
        }
        number += 1;
    }
}

async fn ask_rest(
    board: Arc<Board>,
    mut connection: Connection,
    take: Arc<tokio::sync::Mutex<mpsc::Receiver<(Ask, u64, u64)>>>,
) {
    loop {
        let next = take.lock().await.recv().await;
        let Some((ask, number, due)) = next else {
            return;
        };
        match board.ask_rest(&mut connection, ask, number, due).await {
            Ok(()) => board.answer(ask, due),
            Err(error) => return board.failures.note(format!("{ask:?}: {error:#}")),
        }
    }
}

async fn read(mut socket: Socket, board: Arc<Board>) {
    loop {
        let turn = socket.read(|frame| match frames::kind(frame) {
            Kind::Ack => board.answered_on_socket(frame),
            Kind::Error | Kind::Resync => board.failures.note(frames::excerpt(frame)),
            _ => {}
        });
        match turn.await {
            Ok(Turn::Open) => {}
            Ok(Turn::Closed(reason)) => {
                let text = format!("the server closed a socket: {reason}");
                return board.failures.note(text);
            }
            Err(error) => return board.failures.note(format!("{error:#}")),
        }
    }
}

// === impl Board ===

impl Board {
    /// Who asks for the n-th thing, and in which room.
    fn who(&self, number: u64) -> (usize, usize) {
        // A factor without common divisor, so that everybody comes to ask every kind.
        let person = (number.wrapping_mul(7) % self.people.len() as u64) as usize;
        (person, person % self.rooms.len())
    }

    async fn ask_socket(&self, ask: Ask, number: u64, due: u64) -> Result<()> {
        let (person, room) = self.who(number);
        let id = &self.rooms[room].id;
        let text = match ask {
            Ask::SocketSend => self.stamper.send_message(id, Stamp { number, due }),
            Ask::SocketRead => frames::request(
                "read",
                number,
                &json!({"room_id": id, "sequence": self.rooms[room].last()}),
            ),
            _ => frames::request("typing", number, &json!({"room_id": id})),
        };
        self.waiting.lock().insert(number, (ask, due, room));
        self.writers[person].send(&text).await
    }

    fn answered_on_socket(&self, frame: &[u8]) {
        let number = frames::request_number(frame);
        let waiting = number.and_then(|number| self.waiting.lock().remove(&number));
        let Some((ask, due, room)) = waiting else {
            let text = frames::excerpt(frame);
            return self.failures.note(format!("nobody asked for {text}"));
        };
        if ask == Ask::SocketSend {
            match frames::sequence(frame) {
                Some(sequence) => self.rooms[room].span.lock().observe(sequence),
                None => self.failures.note(frames::excerpt(frame)),
            }
        }
        self.answer(ask, due);
    }

    async fn ask_rest(
        &self,
        connection: &mut Connection,
        ask: Ask,
        number: u64,
        due: u64,
    ) -> Result<()> {
        let (person, room) = self.who(number);
        let token = Some(self.people[person].tokens[0].as_str());
        let room = &self.rooms[room];
        let (method, path, body) = match ask {
            Ask::RestSend => {
                let message = self.stamper.message(Stamp { number, due });
                let path = format!("/api/v1/rooms/{}/messages", room.id);
                (Method::POST, path, Some(message))
            }
            Ask::RestHistory => {
                let path = format!("/api/v1/rooms/{}/messages?limit={PAGE}", room.id);
                (Method::GET, path, None)
            }
            Ask::RestRead => {
                let path = format!("/api/v1/rooms/{}/read", room.id);
                (Method::POST, path, Some(json!({"sequence": room.last()})))
            }
            _ => {
                let path = format!("/api/v1/rooms/me?limit={LISTED}");
                (Method::GET, path, None)
            }
        };
        let stored = room.span.lock().count;
        let (status, bytes) = connection
            .request(method, &path, token, body.as_ref())
            .await?;
        ensure!(
            status.is_success(),
            "{path} was answered {status}: {}",
            frames::excerpt(&bytes)
        );
        match ask {
            Ask::RestSend => match frames::sequence(&bytes) {
                Some(sequence) => room.span.lock().observe(sequence),
                None => bail!("a sent message has no sequence"),
            },
            Ask::RestHistory => {
                let found = self.stamper.count(&bytes) as u64;
                ensure!(
                    found >= stored.min(PAGE) && found <= PAGE,
                    "a page of {found} messages, {stored} were there"
                );
            }
            Ask::RestRooms => {
                let list: Value = serde_json::from_slice(&bytes).context("the list is no JSON")?;
                let found = list["items"].as_array().map(Vec::len);
                ensure!(found == Some(1), "a list of {found:?} rooms instead of 1");
            }
            _ => {}
        }
        Ok(())
    }

    fn answer(&self, ask: Ask, due: u64) {
        let now = now_nanos();
        let kind = KINDS.iter().position(|(kind, _)| *kind == ask);
        if due >= self.keep_from
            && let Some(kind) = kind
        {
            pace::record(&mut self.latencies.lock()[kind], due, now);
        }
        self.answered.fetch_add(1, Relaxed);
    }

    /// That every send of a room has a place of its own, without holes.
    fn check_rooms(&self) -> Check {
        let dense = self.rooms.iter().filter(|room| {
            let span = room.span.lock();
            span.count == 0 || span.ensure_dense().is_ok()
        });
        Check::equal(
            "rooms whose acknowledged sends are dense",
            dense.count() as u64,
            self.rooms.len() as u64,
        )
    }
}

impl Room {
    /// The last place that was acknowledged.
    fn last(&self) -> u64 {
        self.span.lock().highest
    }
}
