//! Ownership moves under load: replicas come and go, are restarted one after the other, killed, and paused for longer than their
//! lease. Nothing that was acknowledged is lost, doubled or moved; and how long the senders of a room had to wait is told.
//!
//! A short run is part of every suite; `CARILLON_MOVES=5` makes every move so often, and restarts all replicas. Nothing here asserts how long a move takes,
//! but that it ends: the report is for people, and is also written to `moves.txt` in the folder of the tests' plans.

use std::{
    fmt::Write as _,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;

use crate::{
    faults::{Acknowledged, Sender, check_room},
    plans,
    world::{
        client::Person,
        platform::{QUICK, RealCluster, RealOptions},
        servers,
    },
};

/// Rooms, each with a sender: their partitions are spread over all replicas.
const ROOMS: usize = 16;
/// Between two sends in a room: what a pause is measured by.
const PACE: Duration = Duration::from_millis(40);
/// Devices that are connected while gateways are restarted.
const DEVICES: usize = 40;
/// Messages that each room must take after a move before it counts as over.
const AFTER: usize = 10;
/// After that: gateways look for replicas twice a second.
const SETTLED: Duration = Duration::from_secs(1);
/// A pause that is longer than the lease of 3 s.
const LONGER_THAN_A_LEASE: Duration = Duration::from_millis(4500);

/// Senders in every room, who try again until they are told that a message is stored.
struct Traffic {
    bases: Vec<String>,
    person: Person,
    rooms: Vec<String>,
    senders: Vec<Sender>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<Result<()>>>,
}

impl Traffic {
    async fn start(bases: &[String]) -> Result<Self> {
        let person = Person::register(&bases[0], "sender").await?;
        let mut traffic = Self {
            bases: bases.to_vec(),
            person,
            rooms: Vec::new(),
            senders: Vec::new(),
            stop: Arc::default(),
            tasks: Vec::new(),
        };
        for n in 0..ROOMS {
            let body = json!({"name": format!("room{n}"), "description": "", "type": "public"});
            let made = (traffic.person)
                .ask(&bases[0], Method::POST, "/rooms", Some(&body))
                .await?;
            let room = made["id"].as_str().context("id")?.to_owned();
            let mut mine = bases.to_vec();
            mine.rotate_left(n % bases.len());
            let sender = Sender {
                bases: mine,
                token: traffic.person.access_token.clone(),
                room: room.clone(),
                name: format!("r{n}"),
                pace: PACE,
                stop: traffic.stop.clone(),
                acknowledged: Arc::default(),
            };
            traffic.tasks.push(tokio::spawn(sender.clone().run()));
            traffic.senders.push(sender);
            traffic.rooms.push(room);
        }
        Ok(traffic)
    }

    /// Waits until every room took so many more messages.
    async fn flow(&mut self, messages: usize) -> Result<()> {
        let targets: Vec<usize> = (self.senders.iter())
            .map(|sender| sender.count() + messages)
            .collect();
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            let behind = (self.senders.iter().zip(&targets))
                .filter(|(sender, target)| sender.count() < **target)
                .count();
            if behind == 0 {
                return Ok(());
            }
            for task in &mut self.tasks {
                if task.is_finished() {
                    task.await??;
                    anyhow::bail!("a sender stopped by itself");
                }
            }
            ensure!(
                Instant::now() < deadline,
                "{behind} rooms take nothing any more"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The longest time without an answer in each room, of those that were not over by `since`, ascending.
    fn pauses(&self, since: Instant) -> Vec<Duration> {
        let longest = |acknowledged: &[Acknowledged]| {
            let answers: Vec<Instant> = acknowledged.iter().map(|one| one.at).collect();
            let gaps = answers.windows(2).filter(|pair| pair[1] > since);
            gaps.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
        };
        let mut pauses: Vec<Duration> = (self.senders.iter())
            .map(|sender| longest(&sender.acknowledged.lock().expect("no panic")))
            .collect();
        pauses.sort();
        pauses
    }

    /// Stops the senders and checks every room.
    async fn finish(self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await??;
        }
        let mut count = 0;
        for (room, sender) in self.rooms.iter().zip(&self.senders) {
            let acknowledged = sender.acknowledged.lock().expect("no panic").clone();
            check_room(&self.bases[0], &self.person, room, &acknowledged).await?;
            count += acknowledged.len();
        }
        Ok(count)
    }
}

/// What each kind of move cost: of every time that it was made, the pauses of all rooms.
#[derive(Default)]
struct Report(Vec<(&'static str, Vec<Vec<Duration>>)>);

impl Report {
    fn add(&mut self, name: &'static str, pauses: Vec<Duration>) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, all)) => all.push(pauses),
            None => self.0.push((name, vec![pauses])),
        }
    }

    /// One line a move: how often, and of all rooms the median and the longest pause.
    fn text(&self) -> String {
        let mut text = String::from(
            "| move | times | rooms | p50 | p90 | longest |\n|---|---|---|---|---|---|\n",
        );
        for (name, times) in &self.0 {
            let mut all: Vec<Duration> = times.iter().flatten().copied().collect();
            all.sort();
            let at = |part: f64| {
                let place = ((all.len().saturating_sub(1)) as f64 * part) as usize;
                all.get(place).copied().unwrap_or_default().as_secs_f64()
            };
            let _ = writeln!(
                text,
                "| {name} | {} | {} | {:.2} s | {:.2} s | {:.2} s |",
                times.len(),
                all.len(),
                at(0.5),
                at(0.9),
                at(1.0)
            );
        }
        text
    }
}

/// The cluster, its traffic, and what was measured.
struct Scene {
    cluster: RealCluster,
    traffic: Traffic,
    report: Report,
}

impl Scene {
    /// Waits until a move that began at `since` is over for everybody, and notes the pauses.
    async fn over(&mut self, name: &'static str, since: Instant) -> Result<()> {
        self.traffic.flow(AFTER).await.context(name)?;
        tokio::time::sleep(SETTLED).await;
        let pauses = self.traffic.pauses(since);
        self.report.add(name, pauses);
        Ok(())
    }

    async fn scale(&mut self, name: &'static str, wanted: usize) -> Result<()> {
        let since = Instant::now();
        let directory = self.cluster.directory.path().to_owned();
        let roles = self.cluster.messages.iter_mut().enumerate();
        // All at once, as a Deployment does it.
        try_join_all(roles.map(|(n, role)| {
            let directory = directory.clone();
            async move {
                match (role.process.is_running(), n < wanted) {
                    (true, false) => role.process.stop().await,
                    (false, true) => role.restart(&directory).await,
                    _ => Ok(()),
                }
            }
        }))
        .await?;
        while self.cluster.messages.len() < wanted {
            self.cluster.add_message()?;
        }
        for role in self.cluster.messages.iter_mut().take(wanted) {
            role.ready().await?;
        }
        self.over(name, since).await
    }

    async fn kill(&mut self, n: usize) -> Result<()> {
        let since = Instant::now();
        let directory = self.cluster.directory.path().to_owned();
        self.cluster.messages[n].process.kill();
        self.over("kill -9 of an owner", since).await?;
        let since = Instant::now();
        self.cluster.messages[n].restart(&directory).await?;
        self.over("it comes back", since).await
    }

    async fn pause(&mut self, n: usize) -> Result<()> {
        let since = Instant::now();
        self.cluster.messages[n].process.signal("STOP");
        tokio::time::sleep(LONGER_THAN_A_LEASE).await;
        self.over("SIGSTOP of an owner", since).await?;
        let since = Instant::now();
        self.cluster.messages[n].process.signal("CONT");
        self.over("SIGCONT after its lease", since).await
    }

    /// At most so many of them, one after the other.
    async fn roll_messages(&mut self, most: usize) -> Result<()> {
        let directory = self.cluster.directory.path().to_owned();
        for n in 0..self.cluster.messages.len().min(most) {
            if !self.cluster.messages[n].process.is_running() {
                continue;
            }
            let since = Instant::now();
            self.cluster.messages[n].process.stop().await?;
            self.cluster.messages[n].restart(&directory).await?;
            self.over("restart of a message replica", since).await?;
        }
        Ok(())
    }

    async fn roll_gateways(&mut self, most: usize) -> Result<()> {
        let directory = self.cluster.directory.path().to_owned();
        for n in 0..self.cluster.gateways.len().min(most) {
            let base = self.cluster.gateways[n].base.clone();
            let devices = Devices::connect(&base, &self.traffic.person).await?;
            let since = Instant::now();
            self.cluster.gateways[n].process.stop().await?;
            devices.told_to_go(since).await?;
            self.cluster.gateways[n].restart(&directory).await?;
            self.over("restart of a gateway", since).await?;
        }
        Ok(())
    }
}

/// Devices that are connected to a gateway and only wait: with which code each was closed, and when.
struct Devices(Vec<JoinHandle<Result<Closed>>>);

type Closed = (Option<u16>, Instant);

impl Devices {
    async fn connect(base: &str, person: &Person) -> Result<Self> {
        let mut devices = Vec::new();
        for _ in 0..DEVICES {
            let mut device = Person::login(base, &person.name, &person.username).await?;
            device.connect(base, false).await?;
            devices.push(tokio::spawn(async move {
                while device.is_connected() {
                    device.frame(Duration::from_secs(120)).await?;
                }
                Ok((device.closed, Instant::now()))
            }));
        }
        Ok(Self(devices))
    }

    /// Each was told to resume elsewhere; says how that was spread.
    async fn told_to_go(self, since: Instant) -> Result<()> {
        let mut times = Vec::new();
        for device in self.0 {
            let (code, at) = device.await??;
            ensure!(code == Some(4000), "a device was told {code:?}");
            times.push(at.saturating_duration_since(since));
        }
        times.sort();
        let most_in_a_second = (times.iter())
            .map(|first| {
                let end = *first + Duration::from_secs(1);
                times
                    .iter()
                    .filter(|time| *time >= first && **time < end)
                    .count()
            })
            .max();
        println!(
            "drain: {} devices told to resume elsewhere from {:.1} s to {:.1} s after the SIGTERM, at most {} in a second",
            times.len(),
            times.first().copied().unwrap_or_default().as_secs_f64(),
            times.last().copied().unwrap_or_default().as_secs_f64(),
            most_in_a_second.unwrap_or(0)
        );
        Ok(())
    }
}

/// Promises 1 to 4 while ownership moves, OPS-02.
#[tokio::test(flavor = "multi_thread")]
async fn ownership_moves_under_load() -> Result<()> {
    let Some(servers) = servers::stores("moves::ownership_moves_under_load") else {
        return Ok(());
    };
    let times = match std::env::var("CARILLON_MOVES") {
        Ok(text) => text.parse()?,
        Err(_) => 1,
    };
    let options = RealOptions {
        gateways: 2,
        messages: 1,
        spec: QUICK.into(),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let bases: Vec<String> = (cluster.gateways.iter())
        .map(|gateway| gateway.base.clone())
        .collect();
    let traffic = Traffic::start(&bases).await?;
    let mut scene = Scene {
        cluster,
        traffic,
        report: Report::default(),
    };
    scene.traffic.flow(AFTER).await?;
    let since = Instant::now();
    scene.over("none, to compare with", since).await?;
    for time in 0..times {
        scene.scale("message 1 to 4", 4).await?;
        scene.scale("message 4 to 2", 2).await?;
        scene.kill(time % 2).await?;
        scene.pause((time + 1) % 2).await?;
        let most = if times == 1 { 1 } else { usize::MAX };
        scene.roll_messages(most).await?;
        scene.roll_gateways(most).await?;
        if time + 1 < times {
            scene.scale("message 2 to 1", 1).await?;
        }
    }
    let text = scene.report.text();
    let acknowledged = scene.traffic.finish().await?;
    println!("{text}{acknowledged} acknowledged sends, each there once at its place");
    fs::write(plans::folder()?.join("moves.txt"), text)?;
    Ok(())
}
