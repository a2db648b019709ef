//! Reconnect storm: all sockets are gone at once while other people go on sending; how long until everybody is back and has what they
//! missed, and what the senders notice of it.
//!
//! The sockets end in one of two ways: cut off by the client's side, or by a server that is asked to stop (it closes them with 4000,
//! spread over its drain time) and started again on its data. In the second way the senders' sockets end too: a send counts from when it
//! was due until its ack, over however many sockets it takes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use super::Setting;
use crate::checks::{Audit, Check, Failures, Seen, Span, Tracker};
use crate::frames::{self, Kind, Stamp, Stamper, now_nanos};
use crate::machine::{self, Cores};
use crate::pace;
use crate::report::{Better, Measurement};
use crate::resident::{Gone, Orders, Resident, Watch};
use crate::server::Server;
use crate::town::{SOCKETS_AT_ONCE, Town};
use crate::websocket::Writer;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Sockets that are dropped
    #[arg(long, default_value_t = 10_000)]
    pub sockets: usize,
    /// Devices per account, a socket each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub devices_per_user: u16,
    /// Rooms that the accounts are spread over, with one more person each who sends
    #[arg(long, default_value_t = 100)]
    pub rooms: usize,
    /// Sends per second, over all rooms
    #[arg(long, default_value_t = 500.0)]
    pub rate: f64,
    /// Seconds of sending before the sockets are dropped
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Seconds of sending from then on; everybody must be back by then
    #[arg(long, default_value_t = 40)]
    pub storm_seconds: u64,
    /// Milliseconds that a client waits before it comes back, at most; twice as many for each try that failed
    #[arg(long, default_value_t = 1_000)]
    pub back_off: u64,
    /// Let the server drain and start it again, instead of cutting the sockets off
    #[arg(long)]
    pub drain: bool,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

struct Board {
    stamper: Stamper,
    rooms: Vec<Room>,
    /// When the sockets were dropped; 0 before.
    dropped: AtomicU64,
    connections: AtomicU64,
    next_number: AtomicU64,
    acknowledged: AtomicU64,
    resent: AtomicU64,
    resyncs: AtomicU64,
    tries: AtomicU64,
    /// When and why sockets ended, by close code and reason.
    closes: Mutex<BTreeMap<String, Vec<u64>>>,
    /// Why tries failed: how many by text.
    failed: Mutex<BTreeMap<String, u64>>,
    /// Of each resident: when it was back, and when it had caught up.
    returns: Mutex<Returns>,
    /// When each send was due, and how long its ack took, in nanoseconds.
    sends: Mutex<Vec<(u64, u64)>>,
    failures: Failures,
}

#[derive(Default)]
struct Returns {
    back: Vec<u64>,
    caught_up: Vec<u64>,
}

struct Room {
    id: String,
    /// Place of the last message that was acknowledged.
    highest: AtomicU64,
    outbox: Mutex<Outbox>,
}

/// What the one who sends to a room has not got acknowledged.
#[derive(Default)]
struct Outbox {
    writer: Option<Writer>,
    /// When they were due, by number.
    waiting: BTreeMap<u64, u64>,
    /// Those of them that the server could not take: to be sent again.
    refused: Vec<u64>,
    span: Span,
    seen: Seen,
}

/// Watches a resident that only listens.
struct Listener {
    board: Arc<Board>,
    room: usize,
    tracker: Arc<Mutex<Tracker>>,
    /// The place up to which it must get, to have caught up; `None` when it has.
    target: Option<u64>,
    last: u64,
}

/// Watches the resident that sends to a room.
struct Sender {
    board: Arc<Board>,
    room: usize,
}

/// Measures. `server`: to be drained, if that is asked for.
pub async fn run(
    town: Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
    server: &mut Server,
    cores: &Cores,
) -> Result<Measurement> {
    let progress = setting.progress;
    ensure!(!town.is_bare(), "a bare server can't resume");
    ensure!(
        !options.drain || server.is_started(),
        "--drain needs a server that is started here: --server"
    );
    ensure!(
        options.sockets > 0 && options.rooms > 0 && options.rate > 0.0,
        "--sockets, --rooms and --rate must be above 0"
    );
    let devices = usize::from(options.devices_per_user);
    let listeners = options.sockets.div_ceil(devices);
    ensure!(
        options.rooms <= listeners,
        "{} accounts can't fill {} rooms",
        listeners,
        options.rooms
    );
    machine::ensure_open_files(options.sockets + options.rooms)?;
    let way = if options.drain { "drained" } else { "cut" };
    let name = format!("storm, {} sockets {way}", options.sockets);
    let mut measurement = Measurement::new(name, setting.subject);
    measurement.parameter("rooms", options.rooms);
    measurement.parameter("sends/s", options.rate);
    measurement.parameter("back-off ms", options.back_off);

    // The senders come first, with a device each; the others have several.
    let people = town.people(options.rooms, 1, progress).await?;
    let senders = people.clone();
    let people = town
        .people(options.rooms + listeners, devices, progress)
        .await?;
    let mut rooms = Vec::with_capacity(options.rooms);
    for (index, sender) in senders.iter().enumerate() {
        let mut members = vec![sender.clone()];
        let others = people[options.rooms..].iter();
        members.extend(others.skip(index).step_by(options.rooms).cloned());
        rooms.push(Room {
            id: town.room("storm", &members, progress).await?,
            highest: AtomicU64::new(0),
            outbox: Mutex::default(),
        });
    }
    let board = Arc::new(Board {
        stamper: Stamper::new(&format!("{}-r", town.run), options.content_bytes),
        rooms,
        dropped: AtomicU64::new(0),
        connections: AtomicU64::new(0),
        next_number: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        resent: AtomicU64::new(0),
        resyncs: AtomicU64::new(0),
        tries: AtomicU64::new(0),
        closes: Mutex::default(),
        failed: Mutex::default(),
        returns: Mutex::default(),
        sends: Mutex::default(),
        failures: Failures::default(),
    });

    let orders = |first: usize| {
        Arc::new(Orders {
            cuts: watch::Sender::new(0),
            first: Semaphore::new(first),
            back_off: Duration::from_millis(options.back_off),
            reading: AtomicU64::new(0),
            receive_buffer: None,
        })
    };
    let (of_listeners, of_senders) = (orders(SOCKETS_AT_ONCE), orders(SOCKETS_AT_ONCE));
    let mut residents = JoinSet::new();
    for (room, sender) in senders.iter().enumerate() {
        let resident = Resident {
            town: town.clone(),
            index: room,
            token: sender.tokens[0].clone(),
            room_id: board.rooms[room].id.clone(),
            orders: of_senders.clone(),
        };
        let watch = Sender {
            board: board.clone(),
            room,
        };
        residents.spawn(resident.stay(watch));
    }
    let mut trackers: Vec<(usize, Arc<Mutex<Tracker>>)> = Vec::with_capacity(options.sockets);
    let tokens = people[options.rooms..]
        .iter()
        .enumerate()
        .flat_map(|(index, person)| {
            let tokens = person.tokens[..devices].iter();
            tokens.map(move |token| (index % options.rooms, token.clone()))
        });
    for (room, token) in tokens.take(options.sockets) {
        let tracker: Arc<Mutex<Tracker>> = Arc::default();
        let resident = Resident {
            town: town.clone(),
            index: options.rooms + trackers.len(),
            token,
            room_id: board.rooms[room].id.clone(),
            orders: of_listeners.clone(),
        };
        let watch = Listener {
            board: board.clone(),
            room,
            tracker: tracker.clone(),
            target: None,
            last: 0,
        };
        trackers.push((room, tracker));
        residents.spawn(resident.stay(watch));
    }
    let everybody = (options.rooms + options.sockets) as u64;
    progress
        .wait("sockets", town.patience(), &board.failures, || {
            (board.connections.load(Relaxed), everybody)
        })
        .await?;
    let tries_before = board.tries.load(Relaxed);

    // Sending begins; then the sockets are dropped.
    let alone = setting.alone().await?;
    let before = Duration::from_secs(options.seconds);
    let duration = before + Duration::from_secs(options.storm_seconds);
    let begun = now_nanos();
    let (receivers, pacer) = pace::start(options.rate, duration, options.rooms);
    let expected = pacer.total;
    let mut sending = JoinSet::new();
    for (room, due) in receivers.into_iter().enumerate() {
        sending.spawn(send(board.clone(), room, due));
    }
    let label = format!("{:.0} sends/s", options.rate);
    progress
        .run_for(
            &label,
            before,
            &board.failures,
            || false,
            || format!("{} acknowledged", board.acknowledged.load(Relaxed)),
        )
        .await?;
    board.dropped.store(now_nanos(), Relaxed);
    let mut ready = None;
    if options.drain {
        progress.say("  the server drains and is started again");
        server.restart(cores).await?;
        ready = Some(now_nanos());
    } else {
        of_listeners.cuts.send_modify(|cuts| *cuts += 1);
    }
    let wanted = trackers.len() as u64;
    let is_back = || board.returns.lock().caught_up.len() as u64;
    progress
        .wait(
            "sockets back and caught up",
            town.patience(),
            &board.failures,
            || (is_back(), wanted),
        )
        .await?;
    let all_back = now_nanos();
    let sent = || board.next_number.load(Relaxed);
    progress
        .wait(&label, town.patience(), &board.failures, || {
            (sent(), expected)
        })
        .await?;
    let load_ended = begun + duration.as_nanos() as u64;
    while let Some(task) = sending.join_next().await {
        task.context("a sender panicked")?;
    }
    pacer.finish()?;
    progress
        .wait(
            "sends acknowledged",
            town.patience(),
            &board.failures,
            || (board.acknowledged.load(Relaxed), expected),
        )
        .await?;
    let everything = || {
        let at_the_end = trackers.iter().filter(|(room, tracker)| {
            tracker.lock().last() >= board.rooms[*room].highest.load(Relaxed)
        });
        (at_the_end.count() as u64, wanted)
    };
    drop(alone);
    // What never comes is told by the checks.
    let outcome = progress
        .wait(
            "sockets that have everything",
            town.patience(),
            &board.failures,
            everything,
        )
        .await;
    if let Err(error) = outcome {
        board.failures.note(format!("{error:#}"));
    }

    residents.abort_all();
    board.figures(&mut measurement, ready, all_back);
    let tries = board.tries.load(Relaxed) - tries_before;
    measurement.figure("tries that failed", tries as f64, Better::Lower);
    let mut audit = Audit::default();
    for (room, tracker) in &trackers {
        audit.add(&tracker.lock(), &board.rooms[*room].outbox.lock().span);
    }
    measurement.checks = audit.checks();
    measurement.checks.push(Check::equal(
        "every send acknowledged once",
        board
            .rooms
            .iter()
            .map(|room| room.outbox.lock().span.count)
            .sum(),
        expected,
    ));
    measurement.checks.push(Check {
        name: "everybody was back and caught up before the load ended".to_owned(),
        passed: all_back < load_ended,
        detail: format!(
            "{:.1} s before",
            seconds(load_ended as i64 - all_back as i64)
        ),
    });
    measurement.checks.push(board.check_closes(options.drain));
    measurement.checks.push(board.failures.check());
    Ok(measurement)
}

fn seconds(nanos: i64) -> f64 {
    nanos as f64 / 1e9
}

/// Sends to one room what is due, over whatever socket its sender has.
async fn send(board: Arc<Board>, room: usize, mut due: mpsc::Receiver<u64>) {
    const AGAIN: Duration = Duration::from_millis(250);
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (writer, texts) = tokio::select! {
            next = due.recv() => {
                let Some(due) = next else { break };
                let number = board.next_number.fetch_add(1, Relaxed);
                let mut outbox = board.rooms[room].outbox.lock();
                outbox.waiting.insert(number, due);
                (outbox.writer.clone(), vec![board.text(room, number, due)])
            }
            _ = again.tick() => board.refused(room),
        };
        board.write(writer, &texts).await;
    }
    // What was refused late is still due.
    while !board.rooms[room].outbox.lock().waiting.is_empty() {
        again.tick().await;
        let (writer, texts) = board.refused(room);
        board.write(writer, &texts).await;
    }
}

// === impl Board ===

impl Board {
    fn text(&self, room: usize, number: u64, due: u64) -> String {
        let stamp = Stamp { number, due };
        self.stamper.send_message(&self.rooms[room].id, stamp)
    }

    /// What was refused and is to be sent again, if there is a socket.
    fn refused(&self, room: usize) -> (Option<Writer>, Vec<String>) {
        let mut outbox = self.rooms[room].outbox.lock();
        let Some(writer) = outbox.writer.clone() else {
            return (None, Vec::new());
        };
        let refused = std::mem::take(&mut outbox.refused);
        let texts = refused
            .into_iter()
            .filter_map(|number| Some(self.text(room, number, *outbox.waiting.get(&number)?)))
            .collect();
        (Some(writer), texts)
    }

    /// A socket that takes nothing is noticed by whoever reads it, and everything is sent again on the next one.
    async fn write(&self, writer: Option<Writer>, texts: &[String]) {
        if let Some(writer) = writer
            && !texts.is_empty()
        {
            let _ = writer.send_all(texts).await;
        }
    }

    fn lost(&self, gone: Gone) {
        match gone {
            Gone::Cut => {}
            Gone::Closed(reason) => {
                let mut closes = self.closes.lock();
                closes.entry(reason).or_default().push(now_nanos());
            }
            Gone::Failed(error) => {
                self.tries.fetch_add(1, Relaxed);
                // Numbers of sockets and places would make every text another one.
                let text: String = error.chars().filter(|c| !c.is_ascii_digit()).collect();
                *self.failed.lock().entry(text).or_default() += 1;
            }
        }
    }

    fn figures(&self, measurement: &mut Measurement, ready: Option<u64>, all_back: u64) {
        let dropped = self.dropped.load(Relaxed);
        let returns = self.returns.lock();
        let since = |at: &u64| at.saturating_sub(dropped);
        let spread = |times: &[u64]| {
            let mut histogram = pace::histogram();
            times
                .iter()
                .for_each(|at| pace::record(&mut histogram, 0, since(at)));
            histogram
        };
        let mut figure = |name: &str, value: f64, better| measurement.figure(name, value, better);
        let quantiles = |histogram: &Histogram<u64>| {
            [0.5, 0.99].map(|quantile| histogram.value_at_quantile(quantile) as f64 / 1_000.0)
        };
        let [p50, p99] = quantiles(&spread(&returns.caught_up));
        figure("caught up after, p50 ms", p50, Better::Lower);
        figure("caught up after, p99 ms", p99, Better::Lower);
        figure(
            "all back and caught up after, s",
            seconds((all_back - dropped) as i64),
            Better::Lower,
        );
        if let Some(ready) = ready {
            figure(
                "server ready again after, s",
                seconds(since(&ready) as i64),
                Better::Neither,
            );
            figure(
                "all caught up after it was ready, s",
                seconds((all_back - ready) as i64),
                Better::Lower,
            );
        }
        let told = self.told_to_resume();
        if let (Some(first), Some(last)) = (told.first(), told.last()) {
            figure("close codes 4000", told.len() as f64, Better::Neither);
            figure(
                "from the first of them to the last, s",
                seconds((last - first) as i64),
                Better::Neither,
            );
        }
        // Through a drain there is a time without any server.
        let away = ready.unwrap_or(dropped);
        let periods = [
            ("before", 0, dropped),
            ("while the server was away", dropped, away),
            ("while they came back", away, all_back),
            ("after", all_back, u64::MAX),
        ];
        for (period, from, to) in periods {
            let mut histogram = pace::histogram();
            for (due, took) in self.sends.lock().iter() {
                if (from..to).contains(due) {
                    pace::record(&mut histogram, 0, *took);
                }
            }
            if histogram.is_empty() {
                continue;
            }
            let [p50, p99] = quantiles(&histogram);
            figure(
                &format!("ack of a send {period}, p50 ms"),
                p50,
                Better::Lower,
            );
            figure(
                &format!("ack of a send {period}, p99 ms"),
                p99,
                Better::Lower,
            );
            figure(
                &format!("ack of a send {period}, max ms"),
                histogram.max() as f64 / 1_000.0,
                Better::Neither,
            );
        }
        figure(
            "sends made again",
            self.resent.load(Relaxed) as f64,
            Better::Neither,
        );
        figure(
            "resyncs",
            self.resyncs.load(Relaxed) as f64,
            Better::Neither,
        );
        for (error, count) in self.failed.lock().iter().take(5) {
            measurement.parameter(&format!("failed tries: {error:.120}"), count);
        }
    }

    /// When sockets were closed with 4000, ascending.
    fn told_to_resume(&self) -> Vec<u64> {
        let closes = self.closes.lock();
        let mut told: Vec<u64> = closes
            .iter()
            .filter(|(reason, _)| reason.starts_with("close code 4000 "))
            .flat_map(|(_, times)| times.iter().copied())
            .collect();
        told.sort_unstable();
        told
    }

    /// A drain closes with 4000, not more than a quarter of the sockets within one second; without it nothing is closed.
    fn check_closes(&self, drain: bool) -> Check {
        const SECOND: u64 = 1_000_000_000;
        let told = self.told_to_resume();
        let at_once = told
            .iter()
            .enumerate()
            .map(|(index, at)| told[..=index].iter().filter(|t| **t + SECOND > *at).count())
            .max()
            .unwrap_or(0);
        let closes = self.closes.lock();
        let counts: Vec<String> = closes
            .iter()
            .map(|(reason, times)| format!("{} x {reason}", times.len()))
            .collect();
        let all: usize = closes.values().map(Vec::len).sum();
        let few = told.len() < 100;
        Check {
            name: if drain {
                "every close says 4000, at most a quarter of them within a second"
            } else {
                "the server closed nothing"
            }
            .to_owned(),
            passed: if drain {
                all == told.len() && !told.is_empty() && (few || at_once * 4 <= told.len())
            } else {
                all == 0
            },
            detail: format!("{}; {at_once} within a second", counts.join(", ")),
        }
    }
}

// === impl Watch ===

impl Watch for Listener {
    fn connected(&mut self, _: &Writer, _: u64) {
        self.board.connections.fetch_add(1, Relaxed);
        if self.board.dropped.load(Relaxed) > 0 {
            let target = self.board.rooms[self.room].highest.load(Relaxed);
            self.board.returns.lock().back.push(now_nanos());
            self.target = Some(target);
            self.look();
        }
    }

    fn event(&mut self, sequence: u64, frame: &[u8]) {
        if self.board.stamper.read(frame).is_none() {
            let text = frames::excerpt(frame);
            return self
                .board
                .failures
                .note(format!("not a message of this run: {text}"));
        }
        self.tracker.lock().observe(sequence);
        self.last = sequence;
        self.look();
    }

    fn other(&mut self, kind: Kind, frame: &[u8]) {
        match kind {
            Kind::Resync => {
                self.board.resyncs.fetch_add(1, Relaxed);
            }
            Kind::Error => self.board.failures.note(frames::excerpt(frame)),
            _ => {}
        }
    }

    fn gone(&mut self, gone: Gone) {
        self.board.lost(gone);
    }
}

impl Listener {
    fn look(&mut self) {
        if self.target.is_some_and(|target| self.last >= target) {
            self.target = None;
            self.board.returns.lock().caught_up.push(now_nanos());
        }
    }
}

impl Watch for Sender {
    fn connected(&mut self, writer: &Writer, _: u64) {
        self.board.connections.fetch_add(1, Relaxed);
        let (board, room, writer) = (self.board.clone(), self.room, writer.clone());
        let texts: Vec<String> = {
            let mut outbox = board.rooms[room].outbox.lock();
            outbox.writer = Some(writer.clone());
            outbox.refused.clear();
            let waiting = outbox.waiting.iter();
            waiting
                .map(|(number, due)| board.text(room, *number, *due))
                .collect()
        };
        board.resent.fetch_add(texts.len() as u64, Relaxed);
        tokio::spawn(async move { board.write(Some(writer), &texts).await });
    }

    fn event(&mut self, _: u64, _: &[u8]) {}

    fn other(&mut self, kind: Kind, frame: &[u8]) {
        let number = frames::request_number(frame);
        let mut outbox = self.board.rooms[self.room].outbox.lock();
        match (kind, number, frames::sequence(frame)) {
            (Kind::Ack, Some(number), Some(sequence)) => {
                if let Some(due) = outbox.waiting.remove(&number) {
                    outbox.span.observe(sequence);
                    let took = now_nanos().saturating_sub(due);
                    self.board.sends.lock().push((due, took));
                    self.board.acknowledged.fetch_add(1, Relaxed);
                    let highest = &self.board.rooms[self.room].highest;
                    highest.fetch_max(sequence, Relaxed);
                } else if !outbox.seen.insert(number) {
                    // Sent again it may be acknowledged twice, not three times.
                    let text = format!("message {number} was acknowledged again and again");
                    self.board.failures.note(text);
                }
            }
            // Only what may be tried again: a store or a role that is away.
            (Kind::Error, Some(number), _) if frames::is_retryable(frame) => {
                outbox.refused.push(number);
                self.board.resent.fetch_add(1, Relaxed);
            }
            (Kind::Error | Kind::Ack, ..) => self.board.failures.note(frames::excerpt(frame)),
            _ => {}
        }
    }

    fn gone(&mut self, gone: Gone) {
        self.board.rooms[self.room].outbox.lock().writer = None;
        self.board.lost(gone);
    }
}
