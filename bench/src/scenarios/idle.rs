//! Idle authenticated sockets: how fast they open, what each costs the server, whether all are alive after a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use super::Setting;
use crate::checks::{Check, Failures};
use crate::frames::{self, Kind};
use crate::machine;
use crate::progress::Progress;
use crate::report::{Better, Measurement};
use crate::town::Town;
use crate::websocket::{Turn, Writer};

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many sockets
    #[arg(long, default_value_t = 10_000)]
    pub sockets: usize,
    /// Devices per account, a socket each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub devices_per_user: u16,
    /// Seconds that the sockets stay idle before memory is read
    #[arg(long, default_value_t = 20)]
    pub hold: u64,
}

/// Makes the accounts and logs every device in; an access token per socket.
pub async fn prepare(town: &Town, progress: &Progress, options: &Options) -> Result<Vec<String>> {
    machine::ensure_open_files(options.sockets)?;
    let devices = usize::from(options.devices_per_user);
    let people = town
        .people(options.sockets.div_ceil(devices), devices, progress)
        .await?;
    Ok(people
        .iter()
        .flat_map(|person| &person.tokens[..devices])
        .take(options.sockets)
        .cloned()
        .collect())
}

/// Opens a socket for each token, lets them idle, reads memory, pings each.
pub async fn run(
    town: Arc<Town>,
    setting: &Setting<'_>,
    options: &Options,
    tokens: Vec<String>,
) -> Result<Measurement> {
    let progress = setting.progress;
    let mut measurement = Measurement::new(
        format!("idle, {} sockets", options.sockets),
        setting.subject,
    );
    measurement.parameter("devices per user", options.devices_per_user);
    measurement.parameter("hold seconds", options.hold);
    let wanted = tokens.into_iter().map(|token| (token, None)).collect();

    let before = machine::resident_kib(setting.memory_pids)?;
    let failures = Arc::new(Failures::default());
    let pongs = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    let mut writers: Vec<Writer> = Vec::with_capacity(options.sockets);
    let start = Instant::now();
    town.connect_all(wanted, progress, |index, mut socket| {
        writers.push(socket.writer());
        let (failures, pongs) = (failures.clone(), pongs.clone());
        readers.spawn(async move {
            loop {
                let turn = socket
                    .read(|frame| match frames::kind(frame) {
                        Kind::Pong => {
                            pongs.fetch_add(1, Relaxed);
                        }
                        Kind::Error => {
                            failures.note(format!("socket {index}: {}", frames::excerpt(frame)));
                        }
                        _ => {}
                    })
                    .await;
                match turn {
                    Ok(Turn::Open) => {}
                    Ok(Turn::Closed(reason)) => {
                        return failures.note(format!("socket {index} was closed: {reason}"));
                    }
                    Err(error) => return failures.note(format!("socket {index}: {error:#}")),
                }
            }
        });
    })
    .await?;
    let connecting = start.elapsed();

    let hold = Duration::from_secs(options.hold);
    let held = Instant::now();
    progress
        .run_for(
            "idle",
            hold,
            &failures,
            || false,
            || format!("{} of {} s", held.elapsed().as_secs(), options.hold),
        )
        .await?;
    let after = machine::resident_kib(setting.memory_pids)?;

    for chunk in writers.chunks(256) {
        for writer in chunk {
            writer.send(town.wire().ping()).await?;
        }
        tokio::task::yield_now().await;
    }
    let sockets = options.sockets as u64;
    let answered = progress
        .wait(
            "sockets that answer a ping",
            town.patience(),
            &failures,
            || (pongs.load(Relaxed), sockets),
        )
        .await;
    if let Err(error) = answered {
        failures.note(format!("{error:#}"));
    }

    measurement.figure("sockets", sockets as f64, Better::Neither);
    measurement.figure(
        "connects/s",
        sockets as f64 / connecting.as_secs_f64(),
        Better::Higher,
    );
    if !setting.memory_pids.is_empty() {
        let growth = after.saturating_sub(before) as f64;
        measurement.figure(
            "server RSS before, MiB",
            before as f64 / 1024.0,
            Better::Neither,
        );
        measurement.figure(
            "server RSS after, MiB",
            after as f64 / 1024.0,
            Better::Neither,
        );
        measurement.figure(
            "server KiB per socket",
            growth / sockets as f64,
            Better::Lower,
        );
    }
    measurement.checks = vec![
        Check::equal(
            "every socket answers a ping after the hold",
            pongs.load(Relaxed),
            sockets,
        ),
        failures.check(),
    ];
    readers.abort_all();
    for writer in &writers {
        writer.close().await;
    }
    Ok(measurement)
}
