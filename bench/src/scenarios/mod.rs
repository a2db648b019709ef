//! What is measured. Each scenario takes a town and its options and answers a measurement with its checks.

pub mod answers;
pub mod big;
pub mod fanout;
pub mod history;
pub mod idle;
pub mod sends;
pub mod slow;
pub mod storm;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine;
use crate::report::{Better, Measurement};

/// What every scenario is given besides its own options.
pub struct Setting<'a> {
    /// Column of the table.
    pub subject: &'a str,
    /// The server's processes, if known; for CPU time, together with those that they started.
    pub pids: &'a [u32],
    /// Those of them whose memory grows with the sockets.
    pub memory_pids: &'a [u32],
    /// Where progress is shown.
    pub progress: &'a crate::progress::Progress,
    /// The file whose lock is held while figures are taken.
    pub lock: Option<&'a Path>,
}

impl Setting<'_> {
    /// Waits until nobody else holds the lock, if there is one; it is held until the answer is dropped.
    pub async fn alone(&self) -> Result<Option<File>> {
        let Some(path) = self.lock else {
            return Ok(None);
        };
        let file = File::create(path).with_context(|| format!("cannot open {}", path.display()))?;
        self.progress.say("  waiting for the lock");
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await?;
        let file = locked.with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Some(file))
    }
}

/// CPU time of both sides over a stretch of time: tells which side was the limit.
pub struct CpuClock<'a> {
    start: Instant,
    server: f64,
    client: f64,
    pids: &'a [u32],
}

impl<'a> CpuClock<'a> {
    /// Starts.
    pub fn start(pids: &'a [u32]) -> Result<Self> {
        Ok(Self {
            start: Instant::now(),
            server: machine::cpu_seconds_with_children(pids)?,
            client: machine::cpu_seconds(&[std::process::id()])?,
            pids,
        })
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Per cent of one core that server and client used since the start.
    pub fn shares(&self) -> Result<Shares> {
        let elapsed = self.start.elapsed().as_secs_f64();
        let server = machine::cpu_seconds_with_children(self.pids)? - self.server;
        let client = machine::cpu_seconds(&[std::process::id()])? - self.client;
        Ok(Shares {
            server: (!self.pids.is_empty()).then_some(100.0 * server / elapsed),
            client: 100.0 * client / elapsed,
        })
    }
}

/// Per cent of one core.
#[derive(Clone, Copy, Debug)]
pub struct Shares {
    server: Option<f64>,
    client: f64,
}

impl Shares {
    /// Into the table.
    pub fn note(&self, measurement: &mut Measurement) {
        self.note_as(measurement, ", saturated");
    }

    /// Into the table, with when it was.
    pub fn note_as(&self, measurement: &mut Measurement, when: &str) {
        if let Some(server) = self.server {
            measurement.figure(&format!("server CPU %{when}"), server, Better::Neither);
        }
        measurement.figure(&format!("client CPU %{when}"), self.client, Better::Neither);
    }
}
