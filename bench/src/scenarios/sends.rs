//! Persisted 1:1 sends: acknowledgements per second of many pairs at saturation, then latency of the ack at half of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{CpuClock, Setting, Shares};
use crate::checks::{Audit, Check, Failures, Span, Tracker};
use crate::frames::{self, Kind, Stamp, Stamper, now_nanos};
use crate::pace;
use crate::pages::Pages;
use crate::report::{Better, Measurement};
use crate::town::{Person, Town};
use crate::websocket::{Socket, Turn, Writer};

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Pairs of people; one of each pair sends
    #[arg(long, default_value_t = 100)]
    pub pairs: usize,
    /// Sends of a pair that wait for their ack, at saturation; the best of these counts
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    pub windows: Vec<u32>,
    /// Seconds per window, and of the run at half load
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Sends/s of one more run after that at half load, the same for every server; 0 for none
    #[arg(long, default_value_t = SAME_LOAD)]
    pub same_load: f64,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

/// About half of what a hub on PostgreSQL does that is written as such hubs are.
pub const SAME_LOAD: f64 = 2_500.0;

struct Board {
    stamper: Stamper,
    next_number: AtomicU64,
    acknowledged: AtomicU64,
    delivered: AtomicU64,
    stop: AtomicBool,
    keep_from: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    failures: Failures,
}

/// A pair: the one that sends, and what both saw.
struct Pair {
    room_id: String,
    permits: Semaphore,
    sender: Mutex<SenderState>,
    tracker: Mutex<Tracker>,
}

#[derive(Default)]
struct SenderState {
    /// When the sends without ack were due, by number.
    waiting: BTreeMap<u64, u64>,
    span: Span,
}

/// Measures.
pub async fn run(town: Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    let progress = setting.progress;
    ensure!(options.pairs > 0, "--pairs must be at least 1");
    ensure!(!options.windows.is_empty(), "--windows names no window");
    let mut measurement =
        Measurement::new(format!("sends, {} pairs", options.pairs), setting.subject);
    measurement.parameter("content bytes", options.content_bytes);
    measurement.parameter("seconds", options.seconds);

    let people = town.people(options.pairs * 2, 1, progress).await?;
    let mut pairs = Vec::with_capacity(options.pairs);
    for (index, two) in people.chunks(2).enumerate() {
        progress.step("direct rooms", || format!("{index} of {}", options.pairs));
        pairs.push(Arc::new(Pair {
            room_id: town.direct_room(&two[0], &two[1]).await?,
            permits: Semaphore::new(0),
            sender: Mutex::default(),
            tracker: Mutex::default(),
        }));
    }
    let board = Arc::new(Board {
        stamper: Stamper::new(&format!("{}-s", town.run), options.content_bytes)
            .speaking(town.wire()),
        next_number: AtomicU64::new(0),
        acknowledged: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        keep_from: AtomicU64::new(u64::MAX),
        latencies: Mutex::new(pace::histogram()),
        failures: Failures::default(),
    });

    let wanted = people
        .iter()
        .enumerate()
        .map(|(index, person)| {
            let room_id = pairs[index / 2].room_id.clone();
            (person.tokens[0].clone(), Some(room_id))
        })
        .collect();
    let mut readers = JoinSet::new();
    let mut writers: BTreeMap<usize, Writer> = BTreeMap::new();
    town.connect_all(wanted, progress, |index, socket| {
        writers.insert(index, socket.writer());
        let (board, pair) = (board.clone(), pairs[index / 2].clone());
        if index % 2 == 0 {
            readers.spawn(read_as_sender(socket, board, pair));
        } else {
            readers.spawn(read_as_receiver(socket, board, pair));
        }
    })
    .await?;
    let senders: Vec<(Arc<Pair>, Writer)> = pairs
        .iter()
        .enumerate()
        .map(|(index, pair)| (pair.clone(), writers[&(index * 2)].clone()))
        .collect();

    let saturation = saturate(&board, &town, setting, options, &senders).await?;
    let per_second = saturation.rate / 2.0;
    at_load(&board, &town, setting, options, &senders, per_second).await?;

    measurement.figure(
        "acknowledged sends/s, saturated",
        saturation.rate,
        Better::Higher,
    );
    measurement.figure(
        "sends under way per pair",
        f64::from(saturation.window),
        Better::Neither,
    );
    saturation.shares.note(&mut measurement);
    measurement.figure("sends/s at half load", per_second, Better::Neither);
    measurement.latencies(&board.latencies.lock());
    if options.same_load > 0.0 {
        *board.latencies.lock() = pace::histogram();
        let per_second = options.same_load;
        at_load(&board, &town, setting, options, &senders, per_second).await?;
        let load = format!("{per_second:.0} sends/s");
        measurement.latencies_at(&load, &board.latencies.lock());
    }

    let mut audit = Audit::default();
    let mut span_count = 0;
    for pair in &pairs {
        let span = pair.sender.lock().span.clone();
        span_count += span.count;
        audit.add(&pair.tracker.lock(), &span);
    }
    measurement.checks = audit.checks();
    let sent = board.next_number.load(Relaxed);
    measurement.checks.push(Check::equal(
        "every message acknowledged once",
        span_count,
        sent,
    ));
    if !town.is_bare() {
        measurement
            .checks
            .push(check_history(&town, &people, &pairs, &board.stamper).await?);
    }
    measurement.checks.push(board.failures.check());
    readers.abort_all();
    for writer in writers.values() {
        writer.close().await;
    }
    Ok(measurement)
}

struct Saturation {
    rate: f64,
    window: u32,
    shares: Shares,
}

async fn saturate(
    board: &Arc<Board>,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
    senders: &[(Arc<Pair>, Writer)],
) -> Result<Saturation> {
    const WARM_UP: Duration = Duration::from_secs(1);
    let mut windows = options.windows.clone();
    windows.sort_unstable();
    let mut best: Option<Saturation> = None;
    let mut permits_given = 0;
    for window in windows {
        ensure!((1..=1024).contains(&window), "a window is 1 to 1024 sends");
        board.stop.store(false, Relaxed);
        let mut tasks = JoinSet::new();
        for (pair, writer) in senders {
            pair.permits.add_permits((window - permits_given) as usize);
            tasks.spawn(send_closed_loop(
                board.clone(),
                pair.clone(),
                writer.clone(),
            ));
        }
        permits_given = window;
        let label = format!("saturation, {window} sends under way per pair");
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
        let before = board.acknowledged.load(Relaxed);
        let clock = CpuClock::start(setting.pids)?;
        let rate = || {
            let acknowledged = board.acknowledged.load(Relaxed) - before;
            acknowledged as f64 / clock.elapsed().as_secs_f64()
        };
        progress
            .run_for(
                &label,
                Duration::from_secs(options.seconds),
                &board.failures,
                || false,
                || format!("{:.0} sends/s", rate()),
            )
            .await?;
        let measured = Saturation {
            rate: rate(),
            window,
            shares: clock.shares()?,
        };
        board.stop.store(true, Relaxed);
        board.drain(town, setting).await?;
        while let Some(task) = tasks.join_next().await {
            task.context("a sender panicked")??;
        }
        if best.as_ref().is_none_or(|best| measured.rate > best.rate) {
            best = Some(measured);
        }
    }
    best.context("no window was measured")
}

async fn send_closed_loop(board: Arc<Board>, pair: Arc<Pair>, writer: Writer) -> Result<()> {
    loop {
        let first = pair.permits.acquire().await?;
        if board.stop.load(Relaxed) {
            return Ok(());
        }
        first.forget();
        let mut texts = vec![board.next_message(&pair, now_nanos())];
        while let Ok(more) = pair.permits.try_acquire() {
            more.forget();
            texts.push(board.next_message(&pair, now_nanos()));
        }
        writer.send_all(&texts).await?;
    }
}

async fn at_load(
    board: &Arc<Board>,
    town: &Town,
    setting: &Setting<'_>,
    options: &Options,
    senders: &[(Arc<Pair>, Writer)],
    per_second: f64,
) -> Result<()> {
    let duration = Duration::from_secs(options.seconds);
    board
        .keep_from
        .store(now_nanos() + duration.as_nanos() as u64 / 10, Relaxed);
    let sent_before = board.next_number.load(Relaxed);
    let (receivers, pacer) = pace::start(per_second, duration, senders.len());
    let expected = sent_before + pacer.total;
    let mut tasks = JoinSet::new();
    for (receiver, (pair, writer)) in receivers.into_iter().zip(senders) {
        tasks.spawn(send_open_loop(
            board.clone(),
            pair.clone(),
            writer.clone(),
            receiver,
        ));
    }
    setting
        .progress
        .wait(
            &format!("{per_second:.0} sends/s"),
            town.patience(),
            &board.failures,
            || (board.next_number.load(Relaxed), expected),
        )
        .await?;
    while let Some(task) = tasks.join_next().await {
        task.context("a sender panicked")??;
    }
    pacer.finish()?;
    board.drain(town, setting).await
}

async fn send_open_loop(
    board: Arc<Board>,
    pair: Arc<Pair>,
    writer: Writer,
    mut due: mpsc::Receiver<u64>,
) -> Result<()> {
    const BURST: usize = 16;
    let mut batch = Vec::with_capacity(BURST);
    while due.recv_many(&mut batch, BURST).await > 0 {
        let texts: Vec<String> = batch
            .drain(..)
            .map(|due| board.next_message(&pair, due))
            .collect();
        writer.send_all(&texts).await?;
    }
    Ok(())
}

async fn read_as_sender(mut socket: Socket, board: Arc<Board>, pair: Arc<Pair>) {
    board
        .read_all(&mut socket, |frame| match frames::kind(frame) {
            Kind::Ack => match (frames::request_number(frame), frames::sequence(frame)) {
                (Some(number), Some(sequence)) => board.acknowledge(&pair, number, sequence),
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

async fn read_as_receiver(mut socket: Socket, board: Arc<Board>, pair: Arc<Pair>) {
    board
        .read_all(&mut socket, |frame| match frames::kind(frame) {
            Kind::NewMessage => match (frames::sequence(frame), board.stamper.read(frame)) {
                (Some(sequence), Some(_)) => {
                    pair.tracker.lock().observe(sequence);
                    board.delivered.fetch_add(1, Relaxed);
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

/// That what was acknowledged last is the newest in the store's history, for up to 20 pairs.
async fn check_history(
    town: &Town,
    people: &[Person],
    pairs: &[Arc<Pair>],
    stamper: &Stamper,
) -> Result<Check> {
    const LOOKED_AT: usize = 20;
    let (mut right, mut looked_at) = (0, 0);
    let mut pages = Pages::open(town, &people[0].tokens[0]).await?;
    for (pair, two) in pairs.iter().zip(people.chunks(2)).take(LOOKED_AT) {
        let token = &two[1].tokens[0];
        let page = pages.read(&pair.room_id, token, None, 1).await?;
        let span = pair.sender.lock().span.clone();
        let newest: Vec<u64> = (span.count > 0)
            .then_some(span.highest)
            .into_iter()
            .collect();
        let is_right =
            stamper.count(page.bytes()) as u64 == span.count.min(1) && page.sequences()? == newest;
        right += u64::from(is_right);
        looked_at += 1;
    }
    Ok(Check::equal(
        "last acknowledged message is the newest in history",
        right,
        looked_at,
    ))
}

// === impl Board ===

impl Board {
    fn next_message(&self, pair: &Pair, due: u64) -> String {
        let number = self.next_number.fetch_add(1, Relaxed);
        pair.sender.lock().waiting.insert(number, due);
        self.stamper
            .send_message(&pair.room_id, Stamp { number, due })
    }

    fn acknowledge(&self, pair: &Pair, number: u64, sequence: u64) {
        let mut sender = pair.sender.lock();
        let Some(due) = sender.waiting.remove(&number) else {
            return self.failures.note(format!(
                "message {number} was acknowledged twice, or by the wrong socket"
            ));
        };
        sender.span.observe(sequence);
        drop(sender);
        self.acknowledged.fetch_add(1, Relaxed);
        if due >= self.keep_from.load(Relaxed) {
            pace::record(&mut self.latencies.lock(), due, now_nanos());
        }
        pair.permits.add_permits(1);
    }

    async fn drain(&self, town: &Town, setting: &Setting<'_>) -> Result<()> {
        setting
            .progress
            .wait(
                "sends acknowledged and delivered",
                town.patience(),
                &self.failures,
                || {
                    let acknowledged = self.acknowledged.load(Relaxed);
                    let done = acknowledged.min(self.delivered.load(Relaxed));
                    (done, self.next_number.load(Relaxed))
                },
            )
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
