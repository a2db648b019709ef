//! One room, many members: deliveries per second at saturation, then latency at half of it.
//!
//! Saturation is a closed loop: a fixed number of messages is under way, and the next one goes out when one has reached every member. So
//! no queue in the server grows without bound, and the server's own limits are not what is measured. Latency is an open loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{CpuClock, Setting, Shares};
use crate::checks::{Audit, Check, Failures, Seen, Span, Tracker};
use crate::frames::{self, Kind, Stamp, Stamper, now_nanos};
use crate::pace;
use crate::report::{Better, Measurement};
use crate::town::{Person, Town};
use crate::websocket::{Socket, Turn, Writer};

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Members of the room, beside the senders; several numbers for several rooms
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1000])]
    pub members: Vec<usize>,
    /// Members that send
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub senders: u16,
    /// Messages under way at saturation; the best of these counts
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 128])]
    pub windows: Vec<u32>,
    /// Seconds per window, and of the run at half load
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Deliveries/s of one more run after that at half load, the same for every server; 0 for none, as with --messages
    #[arg(long, default_value_t = SAME_LOAD)]
    pub same_load: f64,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
    /// Send exactly this many messages per window and at half load, instead of for some seconds
    #[arg(long)]
    pub messages: Option<u64>,
}

/// About half of what a hub does that writes each delivery by itself.
pub const SAME_LOAD: f64 = 50_000.0;
/// Messages under way, at most: the ring of counters.
const RING: u64 = 1 << 16;
/// Frames that a sender writes at once.
const BURST: usize = 16;

/// What all sockets of the room share.
pub(super) struct Board {
    pub stamper: Stamper,
    pub room_id: String,
    members: u32,
    /// How many members have seen message n, at n modulo [`RING`].
    seen: Box<[AtomicU32]>,
    sent: AtomicU64,
    completed: AtomicU64,
    deliveries: AtomicU64,
    permits: Semaphore,
    stop: AtomicBool,
    /// Latencies of messages due from then on are kept.
    keep_from: AtomicU64,
    pub latencies: Mutex<Histogram<u64>>,
    pub acks: Mutex<Acks>,
    pub failures: Failures,
}

#[derive(Default)]
pub(super) struct Acks {
    pub span: Span,
    seen: Seen,
}

/// A room with everybody in it connected, and all of them following it.
pub(super) struct Hall {
    pub board: Arc<Board>,
    pub senders: Vec<Writer>,
    trackers: Vec<Arc<Mutex<Tracker>>>,
    readers: JoinSet<()>,
    writers: BTreeMap<usize, Writer>,
}

/// Measures a room of `members` members.
pub async fn run(
    town: Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
    members: usize,
) -> Result<Measurement> {
    let mut measurement = Measurement::new(format!("fanout, {members} members"), setting.subject);
    measurement.parameter("senders", options.senders);
    measurement.parameter("content bytes", options.content_bytes);
    measurement.parameter("seconds", options.seconds);

    let people = members + usize::from(options.senders);
    let people = town.people(people, 1, setting.progress).await?;
    let hall = gather(&town, setting, options, members, &people).await?;
    let saturation = saturate(&hall.board, &town, setting, options, &hall.senders).await?;
    let per_second = saturation.rate / 2.0 / members as f64;
    at_load(&hall, &town, setting, options, per_second).await?;

    measurement.figure("deliveries/s, saturated", saturation.rate, Better::Higher);
    measurement.figure(
        "messages under way",
        f64::from(saturation.window),
        Better::Neither,
    );
    saturation.shares.note(&mut measurement);
    measurement.figure(
        "deliveries/s at half load",
        per_second * members as f64,
        Better::Neither,
    );
    measurement.latencies(&hall.board.latencies.lock());
    if options.same_load > 0.0 && options.messages.is_none() {
        *hall.board.latencies.lock() = pace::histogram();
        let per_second = options.same_load / members as f64;
        at_load(&hall, &town, setting, options, per_second).await?;
        let load = format!("{:.0} deliveries/s", options.same_load);
        measurement.latencies_at(&load, &hall.board.latencies.lock());
    }
    measurement.checks = hall.checks();
    hall.close().await;
    Ok(measurement)
}

/// Makes a room of `people`, of whom the first `members` and senders are connected, and sends one message to them.
pub(super) async fn gather(
    town: &Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
    members: usize,
    people: &[Person],
) -> Result<Hall> {
    let progress = setting.progress;
    ensure!(members > 0, "a room without members has no deliveries");
    ensure!(!options.windows.is_empty(), "--windows names no window");
    let senders = usize::from(options.senders);
    let room_id = town.room("fanout", people, progress).await?;
    let board = Arc::new(Board {
        stamper: Stamper::new(&format!("{}-f{members}", town.run), options.content_bytes)
            .speaking(town.wire()),
        room_id: room_id.clone(),
        members: members as u32,
        seen: (0..RING).map(|_| AtomicU32::new(0)).collect(),
        sent: AtomicU64::new(0),
        completed: AtomicU64::new(0),
        deliveries: AtomicU64::new(0),
        permits: Semaphore::new(0),
        stop: AtomicBool::new(false),
        keep_from: AtomicU64::new(u64::MAX),
        latencies: Mutex::new(pace::histogram()),
        acks: Mutex::default(),
        failures: Failures::default(),
    });

    let wanted = people[..members + senders]
        .iter()
        .map(|person| (person.tokens[0].clone(), Some(room_id.clone())))
        .collect();
    let mut readers = JoinSet::new();
    let mut writers: BTreeMap<usize, Writer> = BTreeMap::new();
    let trackers: Vec<Arc<Mutex<Tracker>>> = (0..members).map(|_| Arc::default()).collect();
    town.connect_all(wanted, progress, |index, socket| {
        writers.insert(index, socket.writer());
        match index.checked_sub(senders) {
            None => readers.spawn(read_as_sender(socket, board.clone())),
            Some(member) => readers.spawn(read_as_member(
                socket,
                board.clone(),
                trackers[member].clone(),
            )),
        };
    })
    .await?;
    let senders: Vec<Writer> = writers.range(..senders).map(|(_, w)| w.clone()).collect();

    // One message to everybody first: all must follow the room before time is taken.
    senders[0].send(&board.next_message(now_nanos())).await?;
    board
        .drain("first message at its members", town, setting)
        .await?;
    // Its completion gave a permit that no window accounts for.
    board.permits.forget_permits(1);
    Ok(Hall {
        board,
        senders,
        trackers,
        readers,
        writers,
    })
}

pub(super) struct Saturation {
    pub rate: f64,
    window: u32,
    shares: Shares,
}

/// The best of the windows.
pub(super) async fn saturate(
    board: &Arc<Board>,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
    writers: &[Writer],
) -> Result<Saturation> {
    const WARM_UP: Duration = Duration::from_secs(1);
    let mut windows = options.windows.clone();
    windows.sort_unstable();
    let mut best: Option<Saturation> = None;
    let mut permits_given = 0;
    for window in windows {
        ensure!(
            window > 0 && u64::from(window) < RING,
            "a window is 1 to {} messages",
            RING - 1
        );
        board.permits.add_permits((window - permits_given) as usize);
        permits_given = window;
        board.stop.store(false, Relaxed);
        let stop_at = options
            .messages
            .map(|messages| board.sent.load(Relaxed) + messages);
        let mut senders = JoinSet::new();
        for writer in writers {
            senders.spawn(send_closed_loop(board.clone(), writer.clone(), stop_at));
        }
        let label = format!("saturation, {window} messages under way");
        let progress = setting.progress;
        let enough = || stop_at.is_some_and(|limit| board.completed.load(Relaxed) >= limit);
        if stop_at.is_none() {
            progress
                .run_for(&label, WARM_UP, &board.failures, enough, || {
                    "warming up".to_owned()
                })
                .await?;
        }
        let before = board.deliveries.load(Relaxed);
        let clock = CpuClock::start(setting.pids)?;
        let rate = || {
            let delivered = board.deliveries.load(Relaxed) - before;
            delivered as f64 / clock.elapsed().as_secs_f64()
        };
        let limit = match options.messages {
            Some(_) => town.patience(),
            None => Duration::from_secs(options.seconds),
        };
        progress
            .run_for(&label, limit, &board.failures, enough, || {
                format!("{:.0} deliveries/s", rate())
            })
            .await?;
        let measured = Saturation {
            rate: rate(),
            window,
            shares: clock.shares()?,
        };
        board.stop.store(true, Relaxed);
        board
            .drain("messages at every member", town, setting)
            .await?;
        while let Some(sender) = senders.join_next().await {
            sender.context("a sender panicked")??;
        }
        if best.as_ref().is_none_or(|best| measured.rate > best.rate) {
            best = Some(measured);
        }
    }
    best.context("no window was measured")
}

/// Keeps as many messages under way as there are permits.
async fn send_closed_loop(board: Arc<Board>, writer: Writer, stop_at: Option<u64>) -> Result<()> {
    loop {
        let first = board.permits.acquire().await?;
        let mut count = 1;
        first.forget();
        while count < BURST
            && let Ok(more) = board.permits.try_acquire()
        {
            more.forget();
            count += 1;
        }
        let mut texts = Vec::with_capacity(count);
        let is_over = || {
            board.stop.load(Relaxed)
                || stop_at.is_some_and(|limit| board.sent.load(Relaxed) >= limit)
        };
        while texts.len() < count && !is_over() {
            texts.push(board.next_message(now_nanos()));
        }
        board.permits.add_permits(count - texts.len());
        if texts.is_empty() {
            return Ok(());
        }
        writer.send_all(&texts).await?;
    }
}

/// Sends at a fixed rate and keeps the latencies, except of the first tenth.
pub(super) async fn at_load(
    hall: &Hall,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
    per_second: f64,
) -> Result<()> {
    let (board, writers) = (&hall.board, &hall.senders);
    let duration = match options.messages {
        Some(messages) => Duration::from_secs_f64(messages as f64 / per_second),
        None => Duration::from_secs(options.seconds),
    };
    board
        .keep_from
        .store(now_nanos() + duration.as_nanos() as u64 / 10, Relaxed);
    let expected = board.sent.load(Relaxed);
    let (receivers, pacer) = pace::start(per_second, duration, writers.len());
    let expected = expected + pacer.total;
    let mut senders = JoinSet::new();
    for (receiver, writer) in receivers.into_iter().zip(writers) {
        senders.spawn(send_open_loop(board.clone(), writer.clone(), receiver));
    }
    setting
        .progress
        .wait(
            &format!("{per_second:.0} messages/s"),
            town.patience(),
            &board.failures,
            || (board.sent.load(Relaxed), expected),
        )
        .await?;
    while let Some(sender) = senders.join_next().await {
        sender.context("a sender panicked")??;
    }
    pacer.finish()?;
    board.drain("messages at every member", town, setting).await
}

/// Sends what is due.
async fn send_open_loop(
    board: Arc<Board>,
    writer: Writer,
    mut due: mpsc::Receiver<u64>,
) -> Result<()> {
    let mut batch = Vec::with_capacity(BURST);
    while due.recv_many(&mut batch, BURST).await > 0 {
        let under_way = board.sent.load(Relaxed) - board.completed.load(Relaxed);
        if under_way + (BURST as u64) * 64 >= RING {
            board.failures.note(format!(
                "{under_way} messages are under way: the load is too high"
            ));
            return Ok(());
        }
        let texts: Vec<String> = batch.drain(..).map(|due| board.next_message(due)).collect();
        writer.send_all(&texts).await?;
    }
    Ok(())
}

async fn read_as_sender(mut socket: Socket, board: Arc<Board>) {
    board
        .read_all(&mut socket, |frame| match frames::kind(frame) {
            Kind::Ack => match (frames::request_number(frame), frames::sequence(frame)) {
                (Some(number), Some(sequence)) => {
                    let mut acks = board.acks.lock();
                    acks.span.observe(sequence);
                    if !acks.seen.insert(number) {
                        board
                            .failures
                            .note(format!("message {number} was acknowledged twice"));
                    }
                }
                _ => board.failures.note(format!(
                    "an ack without id or sequence: {}",
                    frames::excerpt(frame)
                )),
            },
            Kind::Error => board.failures.note(frames::excerpt(frame)),
            _ => {}
        })
        .await;
}

async fn read_as_member(mut socket: Socket, board: Arc<Board>, tracker: Arc<Mutex<Tracker>>) {
    board
        .read_all(&mut socket, |frame| match frames::kind(frame) {
            Kind::NewMessage => match (frames::sequence(frame), board.stamper.read(frame)) {
                (Some(sequence), Some(stamp)) => {
                    tracker.lock().observe(sequence);
                    board.delivered(stamp);
                }
                _ => board.failures.note(format!(
                    "not a message of this run: {}",
                    frames::excerpt(frame)
                )),
            },
            Kind::Error | Kind::Resync => board.failures.note(frames::excerpt(frame)),
            _ => {}
        })
        .await;
}

// === impl Hall ===

impl Hall {
    /// That everything was acknowledged, and seen by everybody.
    pub fn checks(&self) -> Vec<Check> {
        let mut audit = Audit::default();
        let span = self.board.acks.lock().span.clone();
        self.trackers
            .iter()
            .for_each(|tracker| audit.add(&tracker.lock(), &span));
        let mut checks = audit.checks();
        checks.push(Check::equal(
            "every message acknowledged once",
            span.count,
            self.board.sent.load(Relaxed),
        ));
        checks.push(self.board.failures.check());
        checks
    }

    /// Everybody says goodbye.
    pub async fn close(mut self) {
        self.readers.abort_all();
        for writer in self.writers.values() {
            writer.close().await;
        }
    }
}

// === impl Board ===

impl Board {
    fn next_message(&self, due: u64) -> String {
        let number = self.sent.fetch_add(1, Relaxed);
        self.stamper
            .send_message(&self.room_id, Stamp { number, due })
    }

    fn delivered(&self, stamp: Stamp) {
        self.deliveries.fetch_add(1, Relaxed);
        if stamp.due >= self.keep_from.load(Relaxed) {
            pace::record(&mut self.latencies.lock(), stamp.due, now_nanos());
        }
        let seen = &self.seen[(stamp.number % RING) as usize];
        if seen.fetch_add(1, Relaxed) + 1 == self.members {
            seen.store(0, Relaxed);
            self.permits.add_permits(1);
            self.completed.fetch_add(1, Relaxed);
        }
    }

    /// Waits until everything sent is acknowledged and has reached every member.
    async fn drain(&self, label: &str, town: &Town, setting: &Setting<'_>) -> Result<()> {
        setting
            .progress
            .wait(label, town.patience(), &self.failures, || {
                let acknowledged = self.acks.lock().span.count;
                let done = self.completed.load(Relaxed).min(acknowledged);
                (done, self.sent.load(Relaxed))
            })
            .await
    }

    async fn read_all(&self, socket: &mut Socket, mut on_text: impl FnMut(&[u8])) {
        loop {
            match socket.read(&mut on_text).await {
                Ok(Turn::Open) => {}
                Ok(Turn::Closed(reason)) => {
                    return self
                        .failures
                        .note(format!("the server closed a socket: {reason}"));
                }
                Err(error) => return self.failures.note(format!("{error:#}")),
            }
        }
    }
}
