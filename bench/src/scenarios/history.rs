//! Pages of 50 at random places of filled rooms: pages per second at saturation, then latency at a fixed rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{CpuClock, Setting, Shares};
use crate::checks::{Check, Failures, Span};
use crate::frames::{self, Kind, Stamp, Stamper, now_nanos};
use crate::pace;
use crate::pages::{Page, Pages};
use crate::report::{Better, Measurement};
use crate::town::{Person, Town};
use crate::websocket::Turn;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rooms
    #[arg(long, default_value_t = 4)]
    pub rooms: usize,
    /// Messages in each room, at least 50
    #[arg(long, default_value_t = 25_000)]
    pub messages: u64,
    /// Connections that ask at the same time
    #[arg(long, default_value_t = 32)]
    pub connections: usize,
    /// Pages per second while latencies are taken
    #[arg(long, default_value_t = 1_000.0)]
    pub rate: f64,
    /// Seconds at saturation, and of the run at the fixed rate
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

/// Messages of a page.
const PAGE: u64 = 50;
/// Sends under way while a room is filled: as many as a gateway takes from one socket at a time.
const FILL_WINDOW: usize = 32;
/// One page in so many is parsed and compared with what it must hold; of the others only the messages are counted.
const PARSED_ONE_IN: u64 = 64;

/// A filled room.
pub(super) struct Room {
    pub id: String,
    /// Of somebody who may read it.
    pub token: String,
    pub span: Span,
}

pub(super) struct Board {
    stamper: Stamper,
    rooms: Vec<Room>,
    pages: AtomicU64,
    parsed: AtomicU64,
    stop: AtomicBool,
    keep_from: AtomicU64,
    pub latencies: Mutex<Histogram<u64>>,
    failures: Failures,
}

/// Fills the rooms, then reads.
pub async fn run(town: Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    ensure!(!town.is_bare(), "a bare server keeps no history");
    ensure!(
        options.messages >= PAGE,
        "--messages must be at least {PAGE}"
    );
    ensure!(
        options.rooms > 0 && options.connections > 0 && options.rate > 0.0,
        "--rooms, --connections and --rate must be above 0"
    );
    let mut measurement = Measurement::new(
        format!("history, {} x {}", options.rooms, options.messages),
        setting.subject,
    );
    measurement.parameter("connections", options.connections);
    measurement.parameter("content bytes", options.content_bytes);
    measurement.parameter("page", PAGE);

    let people = town.people(options.rooms, 1, setting.progress).await?;
    let stamper =
        Stamper::new(&format!("{}-h", town.run), options.content_bytes).speaking(town.wire());
    let rooms = fill(&town, setting, options, &people, &stamper).await?;
    let filled: u64 = rooms.iter().map(|room| room.span.count).sum();
    let board = Arc::new(Board::new(stamper, rooms));

    let (rate, shares) = saturate(&board, &town, setting, options).await?;
    fixed_rate(&board, &town, setting, options).await?;

    measurement.figure("pages/s, saturated", rate, Better::Higher);
    shares.note(&mut measurement);
    measurement.figure(
        "pages/s while latencies are taken",
        options.rate,
        Better::Neither,
    );
    measurement.latencies(&board.latencies.lock());
    measurement.checks = vec![
        Check::equal(
            "every message of the filling acknowledged",
            filled,
            options.messages * options.rooms as u64,
        ),
        board.check_pages(),
        board.failures.check(),
    ];
    Ok(measurement)
}

/// A room per person, filled through their socket, all at the same time.
async fn fill(
    town: &Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
    people: &[Person],
    stamper: &Stamper,
) -> Result<Vec<Room>> {
    let progress = setting.progress;
    let done = AtomicU64::new(0);
    let wanted = options.messages * people.len() as u64;
    let failures = Failures::default();
    let filling =
        futures::future::try_join_all(people.iter().enumerate().map(async |(index, person)| {
            let first_number = index as u64 * options.messages;
            let numbers = first_number..first_number + options.messages;
            fill_room(town, setting, person, stamper, numbers, &done).await
        }));
    let watching = progress.wait(
        "messages of the filling",
        town.patience(),
        &failures,
        || (done.load(Relaxed), wanted),
    );
    let (rooms, ()) = futures::future::try_join(filling, watching).await?;
    Ok(rooms)
}

async fn fill_room(
    town: &Arc<Town>,
    setting: &Setting<'_>,
    person: &Person,
    stamper: &Stamper,
    numbers: std::ops::Range<u64>,
    done: &AtomicU64,
) -> Result<Room> {
    let owner = std::slice::from_ref(person);
    let id = town.room("history", owner, setting.progress).await?;
    let token = person.tokens[0].clone();
    let targets = std::slice::from_ref(&id);
    let spans = pour(town, &token, stamper, targets, numbers, done).await?;
    let span = spans.into_iter().next().context("one room was filled")?;
    span.ensure_dense()?;
    Ok(Room { id, token, span })
}

/// Sends messages through one socket, message n to the room n modulo how many there are; a span of acks per room.
pub(super) async fn pour(
    town: &Town,
    token: &str,
    stamper: &Stamper,
    rooms: &[String],
    numbers: std::ops::Range<u64>,
    done: &AtomicU64,
) -> Result<Vec<Span>> {
    let mut socket = town
        .connect(0, token, rooms.first().map(String::as_str))
        .await?;
    let writer = socket.writer();
    let permits = Semaphore::new(FILL_WINDOW);
    let wanted = numbers.end - numbers.start;
    let place = |number: u64| (number % rooms.len() as u64) as usize;

    let sending = async {
        let mut numbers = numbers.peekable();
        while numbers.peek().is_some() {
            permits.acquire().await?.forget();
            let mut count = 1;
            while count < FILL_WINDOW
                && let Ok(more) = permits.try_acquire()
            {
                more.forget();
                count += 1;
            }
            let texts: Vec<String> = numbers
                .by_ref()
                .take(count)
                .map(|number| {
                    let stamp = Stamp { number, due: 0 };
                    stamper.send_message(&rooms[place(number)], stamp)
                })
                .collect();
            writer.send_all(&texts).await?;
        }
        anyhow::Ok(())
    };
    let reading = async {
        let mut spans = vec![Span::default(); rooms.len()];
        let mut acknowledged = 0;
        let mut refused = None;
        while acknowledged < wanted {
            let turn = socket
                .read(|frame| match frames::kind(frame) {
                    Kind::Ack => {
                        let number = frames::request_number(frame).unwrap_or(0);
                        spans[place(number)].observe(frames::sequence(frame).unwrap_or(0));
                        acknowledged += 1;
                        done.fetch_add(1, Relaxed);
                        permits.add_permits(1);
                    }
                    Kind::Error => refused = Some(frames::excerpt(frame)),
                    _ => {}
                })
                .await?;
            if let Some(refused) = &refused {
                bail!("a message of the filling was refused: {refused}");
            }
            if let Turn::Closed(reason) = turn {
                bail!("the server closed a socket that fills a room: {reason}");
            }
        }
        Ok(spans)
    };
    let ((), spans) = futures::future::try_join(sending, reading).await?;
    writer.close().await;
    Ok(spans)
}

async fn saturate(
    board: &Arc<Board>,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
) -> Result<(f64, Shares)> {
    const WARM_UP: Duration = Duration::from_secs(1);
    let mut workers = JoinSet::new();
    for _ in 0..options.connections {
        let mut pages = Pages::open(town, &board.rooms[0].token).await?;
        let board = board.clone();
        workers.spawn(async move {
            while !board.stop.load(Relaxed) {
                board.read_page(&mut pages).await;
            }
        });
    }
    let label = format!("saturation, {} connections", options.connections);
    let progress = setting.progress;
    progress
        .run_for(
            &label,
            WARM_UP,
            &board.failures,
            || false,
            || "warming up".to_owned(),
        )
        .await?;
    let before = board.pages.load(Relaxed);
    let clock = CpuClock::start(setting.pids)?;
    let rate = || (board.pages.load(Relaxed) - before) as f64 / clock.elapsed().as_secs_f64();
    progress
        .run_for(
            &label,
            Duration::from_secs(options.seconds),
            &board.failures,
            || false,
            || format!("{:.0} pages/s", rate()),
        )
        .await?;
    let measured = (rate(), clock.shares()?);
    board.stop.store(true, Relaxed);
    while let Some(worker) = workers.join_next().await {
        worker.context("a reader panicked")?;
    }
    Ok(measured)
}

pub(super) async fn fixed_rate(
    board: &Arc<Board>,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
) -> Result<()> {
    let duration = Duration::from_secs(options.seconds);
    let mut connections = Vec::with_capacity(options.connections);
    for _ in 0..options.connections {
        connections.push(Pages::open(town, &board.rooms[0].token).await?);
    }
    board
        .keep_from
        .store(now_nanos() + duration.as_nanos() as u64 / 10, Relaxed);
    let before = board.pages.load(Relaxed);
    // One queue for all connections: a page waits only when every connection is busy.
    let (mut receivers, pacer) = pace::start(options.rate, duration, 1);
    let mut due = receivers.pop().context("one worker was asked for")?;
    let (hand_out, take) = shared_channel();
    let mut workers = JoinSet::new();
    workers.spawn(async move {
        while let Some(at) = due.recv().await {
            if hand_out.send(at).await.is_err() {
                return;
            }
        }
    });
    for mut pages in connections {
        let (board, take) = (board.clone(), take.clone());
        workers.spawn(async move {
            loop {
                let next = take.lock().await.recv().await;
                let Some(at) = next else { return };
                board.read_page(&mut pages).await;
                if at >= board.keep_from.load(Relaxed) {
                    pace::record(&mut board.latencies.lock(), at, now_nanos());
                }
            }
        });
    }
    let wanted = pacer.total;
    setting
        .progress
        .wait(
            &format!("{:.0} pages/s", options.rate),
            town.patience(),
            &board.failures,
            || (board.pages.load(Relaxed) - before, wanted),
        )
        .await?;
    while let Some(worker) = workers.join_next().await {
        worker.context("a reader panicked")?;
    }
    pacer.finish()
}

/// Work for whichever worker is free.
type Shared = Arc<tokio::sync::Mutex<mpsc::Receiver<u64>>>;

fn shared_channel() -> (mpsc::Sender<u64>, Shared) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Arc::new(tokio::sync::Mutex::new(receiver)))
}

// === impl Board ===

impl Board {
    /// Nothing read yet.
    pub fn new(stamper: Stamper, rooms: Vec<Room>) -> Self {
        Self {
            stamper,
            rooms,
            pages: AtomicU64::new(0),
            parsed: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            keep_from: AtomicU64::new(u64::MAX),
            latencies: Mutex::new(pace::histogram()),
            failures: Failures::default(),
        }
    }

    /// That every page held what it should.
    pub fn check_pages(&self) -> Check {
        let (pages, parsed) = (self.pages.load(Relaxed), self.parsed.load(Relaxed));
        let first = self.failures.first();
        Check {
            name: "pages hold 50 messages, parsed ones the right 50".to_owned(),
            passed: parsed > 0 && first.is_none(),
            detail: format!(
                "{pages} pages, {parsed} parsed{}",
                first.map_or(String::new(), |error| format!("; {error}"))
            ),
        }
    }

    /// Reads a page before a random place, and looks whether it is the right one.
    async fn read_page(&self, pages: &mut Pages) {
        let (room, before) = {
            let mut random = rand::rng();
            let room = &self.rooms[random.random_range(0..self.rooms.len())];
            let Span {
                lowest, highest, ..
            } = room.span;
            (room, random.random_range(lowest + PAGE..=highest + 1))
        };
        let answer = pages.read(&room.id, &room.token, Some(before), PAGE).await;
        let number = self.pages.fetch_add(1, Relaxed);
        let verdict = answer
            .and_then(|page| self.check_page(&page, number.is_multiple_of(PARSED_ONE_IN), before));
        if let Err(error) = verdict {
            let id = &room.id;
            self.failures
                .note(format!("room {id} before {before}: {error:#}"));
        }
    }

    fn check_page(&self, page: &Page, parse: bool, before: u64) -> Result<()> {
        let found = self.stamper.count(page.bytes()) as u64;
        ensure!(found == PAGE, "{found} messages instead of {PAGE}");
        if parse {
            let mut sequences = page.sequences()?;
            sequences.sort_unstable();
            ensure!(
                sequences.iter().copied().eq(before - PAGE..before),
                "it holds the sequences {sequences:?}"
            );
            self.parsed.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}
