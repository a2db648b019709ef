//! Random plans: a crowd of people chats while processes, stores and networks fail; then everything that they were told is
//! checked against the rooms.
//!
//! A short run with a few seeds is part of every suite. The environment asks for more:
//!
//! | variable | |
//! |---|---|
//! | `CARILLON_PLAN_SEEDS` | `FIRST..LAST`: these seeds instead of the suite's |
//! | `CARILLON_PLAN_FAULTS` | faults of each plan, instead of the suite's |
//! | `CARILLON_PLAN` | a saved plan to run instead of random ones |
//!
//! With several CQL nodes in `CARILLON_TEST_SCYLLA`, and seeds that were asked for, the plans also break single nodes and RabbitMQ,
//! through `testbed/stores`: nobody else may use those stores meanwhile.
//!
//! A plan that fails is saved under the target folder, and the error says where.

mod checker;
mod crowd;
mod plan;
mod redis;
mod town;
mod victim;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;

use self::{
    crowd::{Crowd, History},
    plan::Plan,
    town::Town,
};
use crate::world::servers;

/// What a plan showed.
struct Outcome {
    history: History,
    faults: usize,
}

/// Runs a plan against a platform, and checks everything.
async fn run(town: &Town, plan: &Plan) -> Result<Outcome> {
    let mut crowd = Crowd::start(plan, &town.bases).await?;
    let started = Instant::now();
    let mut under_way: JoinSet<Result<()>> = JoinSet::new();
    for step in &plan.steps {
        tokio::time::sleep_until((started + step.at).into()).await;
        crowd.first_failure()?;
        while let Some(done) = under_way.try_join_next() {
            done??;
        }
        town.inject(&crowd, &step.fault, &mut under_way)
            .with_context(|| step.fault.to_string())?;
    }
    while let Some(done) = under_way.join_next().await {
        done??;
    }
    // What was held up gets through before the end.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rooms = crowd.rooms.clone();
    let (mut devices, history) = crowd.finish().await?;
    for device in &mut devices {
        device.wake().await?;
    }

    let base = &town.bases[0];
    let mut logs = Vec::new();
    for room in &rooms {
        logs.push(read_log_patiently(&devices[0].me, base, room).await?);
    }
    let heads: BTreeMap<String, u64> = rooms
        .iter()
        .zip(&logs)
        .map(|(room, log)| (room.clone(), log.len() as u64))
        .collect();
    for device in &mut devices {
        device.settle(&heads).await?;
    }
    checker::check(base, &rooms, &logs, &devices, &history).await?;
    Ok(Outcome {
        history,
        faults: plan.steps.len(),
    })
}

/// Right after the last fault a store may still be coming back.
async fn read_log_patiently(
    person: &crate::world::client::Person,
    base: &str,
    room: &str,
) -> Result<BTreeMap<u64, serde_json::Value>> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match checker::read_log(person, base, room).await {
            Ok(log) => return Ok(log),
            Err(error) if Instant::now() > deadline || error.to_string().contains("place") => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Seeds and faults of each plan: the suite's, or what the environment asks for.
fn asked(seeds: std::ops::Range<u64>, faults: usize) -> Result<(std::ops::Range<u64>, usize)> {
    let seeds = match std::env::var("CARILLON_PLAN_SEEDS") {
        Ok(text) => {
            let (first, last) = text.split_once("..").context("CARILLON_PLAN_SEEDS=0..9")?;
            first.parse()?..last.parse()?
        }
        Err(_) => seeds,
    };
    let faults = match std::env::var("CARILLON_PLAN_FAULTS") {
        Ok(text) => text.parse()?,
        Err(_) => faults,
    };
    Ok((seeds, faults))
}

/// Runs plans one after the other on one platform; the rooms are new each time.
async fn run_all(
    name: &str,
    town: &Town,
    seeds: std::ops::Range<u64>,
    faults: usize,
) -> Result<()> {
    let (seeds, faults) = asked(seeds, faults)?;
    let mut plans: Vec<Plan> = seeds
        .map(|seed| Plan::random(seed, faults, &town.breakable()))
        .collect();
    if let Ok(path) = std::env::var("CARILLON_PLAN") {
        plans = vec![fs::read_to_string(&path).context(path)?.parse()?];
    }
    let (mut sends, mut injected, mut waits) = (0, 0, Vec::new());
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for plan in plans {
        for step in &plan.steps {
            let fault = step.fault.to_string();
            let kind = fault.split(' ').next().unwrap_or_default();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        let outcome = match run(town, &plan).await {
            Ok(outcome) => outcome,
            Err(error) => {
                let path = save(name, &plan)?;
                return Err(error.context(format!(
                    "seed {} on {name}; run it again with CARILLON_PLAN={}",
                    plan.seed,
                    path.display()
                )));
            }
        };
        let history = &outcome.history;
        let mut plan_waits: Vec<Duration> = history
            .sent
            .iter()
            .map(|sent| sent.answered - sent.started)
            .collect();
        plan_waits.sort();
        println!(
            "{name} seed {}: {} faults, {} sends acknowledged ({} after retries, longest wait {:.1} s), {} other contents refused, {} pages, {} marks, {} reconnects, {} resyncs",
            plan.seed,
            outcome.faults,
            history.sent.len(),
            history.sent.iter().filter(|sent| sent.retries > 0).count(),
            plan_waits.last().copied().unwrap_or_default().as_secs_f64(),
            history.conflicts,
            history.looked.len(),
            history.marked.len(),
            history.reconnects,
            history.resyncs,
        );
        anyhow::ensure!(!history.sent.is_empty(), "nobody could send anything");
        sends += history.sent.len();
        injected += outcome.faults;
        waits.extend(plan_waits);
    }
    waits.sort();
    let wait = |part: f64| {
        let at = ((waits.len().saturating_sub(1)) as f64 * part) as usize;
        waits.get(at).copied().unwrap_or_default().as_secs_f64()
    };
    println!(
        "{name}: {injected} faults {kinds:?}, {sends} acknowledged sends; wait for an answer p50 {:.3} s, p99 {:.3} s, longest {:.1} s",
        wait(0.5),
        wait(0.99),
        wait(1.0)
    );
    Ok(())
}

/// Where plans and reports are saved: beside the test's own program.
pub fn folder() -> Result<PathBuf> {
    let directory = std::env::current_exe()?
        .ancestors()
        .nth(3)
        .context("target/<profile>/deps/it")?
        .join("plans");
    fs::create_dir_all(&directory)?;
    Ok(directory)
}

fn save(name: &str, plan: &Plan) -> Result<PathBuf> {
    let path = folder()?.join(format!("{name}-{}.plan", plan.seed));
    fs::write(&path, plan.to_string())?;
    Ok(path)
}

/// Promises 1 to 6 on embedded stores. MSG-18, MSG-19, MSG-20, RT-05.
#[tokio::test(flavor = "multi_thread")]
async fn random_plans_on_embedded_stores() -> Result<()> {
    let town = Town::embedded("plans::random_plans_on_embedded_stores").await?;
    run_all("embedded", &town, 1..4, 30).await
}

/// Promises 1 to 6 on the real stores, with two gateways and three message replicas. MSG-18, MSG-19, MSG-20, RT-05, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn random_plans_on_real_stores() -> Result<()> {
    let Some(servers) = servers::stores("plans::random_plans_on_real_stores") else {
        return Ok(());
    };
    let town = Town::real("plans::random_plans_on_real_stores", &servers).await?;
    run_all("real", &town, 1..3, 30).await
}
