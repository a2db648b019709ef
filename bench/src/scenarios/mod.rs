//! What is measured. Each scenario takes a town and its options and answers a measurement with its checks.

pub mod fanout;
pub mod history;
pub mod idle;
pub mod sends;

use std::time::{Duration, Instant};

use anyhow::Result;

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
        if let Some(server) = self.server {
            measurement.figure("server CPU %, saturated", server, Better::Neither);
        }
        measurement.figure("client CPU %, saturated", self.client, Better::Neither);
    }
}
