//! Slow readers: fan-out at half load without and with members that read less than they are sent, and what the others notice of it.
//!
//! A slow reader must be cut off with 4008 once what waits for it fills its bounded buffer, and must get everything by resuming.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, ensure};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::{Setting, fanout};
use crate::checks::{Audit, Check, Failures, Span, Tracker};
use crate::frames::{self, Kind};
use crate::machine;
use crate::pace;
use crate::report::{Better, Measurement};
use crate::resident::{Gone, Orders, Resident, Watch};
use crate::town::Town;
use crate::websocket::Writer;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Members that read as fast as they can, beside the senders
    #[arg(long, default_value_t = 100)]
    pub members: usize,
    /// Members that read slowly
    #[arg(long, default_value_t = 10)]
    pub slow: usize,
    /// How many times slower than they are sent to
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=1000))]
    pub times: u16,
    /// Members that send
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub senders: u16,
    /// Messages under way at saturation; the best of these counts
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 128])]
    pub windows: Vec<u32>,
    /// Messages per second instead of half of the saturation, which is then not looked for
    #[arg(long)]
    pub rate: Option<f64>,
    /// Seconds per window, and of each run at half load
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Bytes of a message's content
    #[arg(long, default_value_t = 100)]
    pub content_bytes: usize,
}

/// What the operating system keeps for a slow reader: so that it is the server that has to.
const RECEIVE_BUFFER: u32 = 32 * 1024;

/// What the slow ones saw, over all of them.
#[derive(Default)]
struct Board {
    connections: AtomicU64,
    resyncs: AtomicU64,
    cut_off: AtomicU64,
    memory: AtomicU64,
    failures: Failures,
}

/// What one of them saw.
#[derive(Default)]
struct Seen {
    /// The place after which its first socket began.
    start: Option<u64>,
    tracker: Tracker,
    cut_off: u64,
}

struct SlowReader {
    board: Arc<Board>,
    seen: Arc<Mutex<Seen>>,
}

/// Measures.
pub async fn run(town: Arc<Town>, setting: &Setting<'_>, options: &Options) -> Result<Measurement> {
    ensure!(!town.is_bare(), "a bare server can't resume");
    ensure!(options.slow > 0, "--slow must be at least 1");
    let progress = setting.progress;
    let mut measurement = Measurement::new(
        format!("slow, {} of {} members", options.slow, options.members),
        setting.subject,
    );
    measurement.parameter("times slower", options.times);
    measurement.parameter("content bytes", options.content_bytes);
    measurement.parameter("seconds", options.seconds);
    let as_fanout = fanout::Options {
        members: vec![options.members],
        senders: options.senders,
        windows: options.windows.clone(),
        seconds: options.seconds,
        same_load: 0.0,
        content_bytes: options.content_bytes,
        messages: None,
    };
    let others = options.members + usize::from(options.senders);
    let people = town.people(others + options.slow, 1, progress).await?;
    let hall = fanout::gather(&town, setting, &as_fanout, options.members, &people).await?;
    let alone = setting.alone().await?;
    let per_second = match options.rate {
        Some(rate) => rate,
        None => {
            let found = fanout::saturate(&hall.board, &town, setting, &as_fanout, &hall.senders);
            found.await?.rate / 2.0 / options.members as f64
        }
    };

    // Without, with, and without again: what changes on the machine meanwhile must not look like the work of the slow ones.
    let load = async || fanout::at_load(&hall, &town, setting, &as_fanout, per_second).await;
    load().await?;
    let mut without = std::mem::replace(&mut *hall.board.latencies.lock(), pace::histogram());

    let board = Arc::new(Board::default());
    let orders = Arc::new(Orders {
        cuts: watch::Sender::new(0),
        first: Semaphore::new(options.slow),
        back_off: Duration::from_secs(1),
        reading: AtomicU64::new((per_second / f64::from(options.times)).max(1.0) as u64),
        receive_buffer: Some(RECEIVE_BUFFER),
    });
    let mut residents = JoinSet::new();
    let mut slow: Vec<Arc<Mutex<Seen>>> = Vec::with_capacity(options.slow);
    for (index, person) in people.iter().enumerate().skip(others) {
        let resident = Resident {
            town: town.clone(),
            index,
            token: person.tokens[0].clone(),
            room_id: hall.board.room_id.clone(),
            orders: orders.clone(),
        };
        let seen: Arc<Mutex<Seen>> = Arc::default();
        slow.push(seen.clone());
        let board = board.clone();
        residents.spawn(resident.stay(SlowReader { board, seen }));
    }
    let count = options.slow as u64;
    progress
        .wait("slow sockets", town.patience(), &board.failures, || {
            (board.connections.load(Relaxed), count)
        })
        .await?;
    let memory = machine::resident_kib(setting.memory_pids)?;
    load().await?;
    let grown = machine::resident_kib(setting.memory_pids)?.saturating_sub(memory);
    board.memory.store(grown, Relaxed);
    let with = std::mem::replace(&mut *hall.board.latencies.lock(), pace::histogram());
    let cut_off = slow.iter().filter(|seen| seen.lock().cut_off > 0).count();

    // Now they read as fast as they can, and must get everything.
    orders.reading.store(0, Relaxed);
    let last = hall.board.acks.lock().span.highest;
    let outcome = progress
        .wait(
            "slow sockets that have everything",
            town.patience(),
            &board.failures,
            || {
                let level = slow
                    .iter()
                    .filter(|seen| seen.lock().tracker.last() >= last);
                (level.count() as u64, count)
            },
        )
        .await;
    if let Err(error) = outcome {
        board.failures.note(format!("{error:#}"));
    }
    residents.shutdown().await;
    load().await?;
    without.add(&*hall.board.latencies.lock())?;
    drop(alone);

    measurement.figure("messages/s", per_second, Better::Neither);
    let quantile = |histogram: &hdrhistogram::Histogram<u64>, at| {
        histogram.value_at_quantile(at) as f64 / 1_000.0
    };
    for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
        let (without, with) = (quantile(&without, at), quantile(&with, at));
        let mut figure = |name: &str, value, better| measurement.figure(name, value, better);
        figure(
            &format!("{name} ms of the others, without"),
            without,
            Better::Lower,
        );
        figure(
            &format!("{name} ms of the others, with"),
            with,
            Better::Lower,
        );
        figure(
            &format!("{name}, with / without"),
            with / without,
            Better::Lower,
        );
    }
    measurement.figure(
        "times cut off (4008)",
        board.cut_off.load(Relaxed) as f64,
        Better::Neither,
    );
    measurement.figure(
        "resyncs",
        board.resyncs.load(Relaxed) as f64,
        Better::Neither,
    );
    if !setting.memory_pids.is_empty() {
        measurement.figure(
            "server MiB more, with",
            board.memory.load(Relaxed) as f64 / 1024.0,
            Better::Lower,
        );
    }
    measurement.checks = hall.checks();
    measurement.checks.push(Check::equal(
        "every slow reader was cut off with 4008",
        cut_off as u64,
        count,
    ));
    let mut audit = Audit::default();
    for seen in &slow {
        let seen = seen.lock();
        let start = seen.start.unwrap_or(last);
        let missed = Span {
            count: last.saturating_sub(start),
            lowest: start + 1,
            highest: last,
        };
        audit.add(&seen.tracker, &missed);
    }
    let resumed = audit.checks().into_iter().map(|check| Check {
        name: format!("slow readers: {}", check.name),
        ..check
    });
    measurement.checks.extend(resumed);
    measurement.checks.push(Check {
        name: "slow readers: no errors".to_owned(),
        ..board.failures.check()
    });
    hall.close().await;
    Ok(measurement)
}

// === impl Watch ===

impl Watch for SlowReader {
    fn connected(&mut self, _: &Writer, last: u64) {
        self.board.connections.fetch_add(1, Relaxed);
        self.seen.lock().start.get_or_insert(last);
    }

    fn event(&mut self, sequence: u64, _: &[u8]) {
        self.seen.lock().tracker.observe(sequence);
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
        match gone {
            Gone::Closed(reason) if reason.starts_with("close code 4008 ") => {
                self.board.cut_off.fetch_add(1, Relaxed);
                self.seen.lock().cut_off += 1;
            }
            Gone::Closed(reason) => {
                let text = format!("closed otherwise than with 4008: {reason}");
                self.board.failures.note(text);
            }
            Gone::Failed(error) => self.board.failures.note(error),
            Gone::Cut => {}
        }
    }
}
