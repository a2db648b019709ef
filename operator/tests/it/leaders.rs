//! Two replicas with one Lease never act at once, whatever is killed, paused or stopped.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;

use crate::plane::{Plane, eventually};
use crate::process::Replica;
use crate::proxy::Log;
use crate::stage::{Stage, first_order};

const CHILD: &str = "town-presence";

/// Takes a Service away.
async fn break_something(stage: &Stage) -> Result<()> {
    let services = stage.objects("", "v1", "Service");
    services.delete(CHILD, &DeleteParams::default()).await?;
    Ok(())
}

async fn mended(stage: &Stage, by: &Replica) -> Result<()> {
    let services = stage.objects("", "v1", "Service");
    eventually("the Service is back", async || {
        Ok(services.get_opt(CHILD).await?.is_some())
    })
    .await
    .with_context(|| by.said())?;
    stage.quiet(by).await
}

/// Goes through everything that was asked by anybody: whoever wrote the Lease last may write, and nobody else. Returns who
/// wrote, one entry for each turn.
fn turns(log: &Log) -> Result<Vec<String>> {
    let mut turns: Vec<String> = Vec::new();
    let mut leader = String::new();
    for record in log.lock().unwrap().iter() {
        let lease = record.resource == "leases" && ["create", "update"].contains(&record.verb);
        if lease && record.status < 300 {
            leader = record.who.clone();
        } else if record.is_write() {
            ensure!(
                record.who == leader,
                "{} wrote while {leader} led: {}",
                record.who,
                record.describe()
            );
            turns.push(leader.clone());
        }
    }
    turns.dedup();
    Ok(turns)
}

/// Waits until `replica` stands by: it has looked at the Lease.
async fn standing_by(replica: &Replica, mark: usize, who: &str) -> Result<()> {
    eventually("the second replica stands by", async || {
        let seen = replica.proxy.since(mark);
        Ok(seen
            .iter()
            .any(|record| record.who == who && record.describe().starts_with("get leases")))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_acts_at_a_time() -> Result<()> {
    let Some(plane) = Plane::from_environment("leaders::one_acts_at_a_time").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let log = Log::default();
    let a = stage.replica_with("a", Arc::clone(&log)).await?;
    let b = stage.replica_with("b", Arc::clone(&log)).await?;
    a.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&a).await?;
    b.start()?;
    standing_by(&b, 0, "b").await?;

    // Paused in the middle of a pass that is about to write, for longer than the Lease holds.
    let hold = a.proxy.hold("list deployments");
    break_something(&stage).await?;
    hold.reached.notified().await;
    a.let_end();
    a.signal("STOP")?;
    mended(&stage, &b).await?;
    let mark = a.proxy.mark();
    hold.release.notify_one();
    a.signal("CONT")?;
    eventually(
        "the first replica has seen that it is too late",
        async || a.has_ended(),
    )
    .await?;
    let late: Vec<String> = a
        .proxy
        .since(mark)
        .iter()
        .filter(|record| record.who == "a" && record.is_write())
        .map(|record| record.describe())
        .collect();
    ensure!(late.is_empty(), "written by a leader that was: {late:?}");
    ensure!(a.said().contains("Lease"), "{}", a.said());

    // Killed: the Lease runs out.
    let mark = a.proxy.mark();
    a.start()?;
    standing_by(&a, mark, "a").await?;
    b.kill()?;
    break_something(&stage).await?;
    mended(&stage, &a).await?;

    // Told to stop: the Lease is given up.
    let mark = b.proxy.mark();
    b.start()?;
    standing_by(&b, mark, "b").await?;
    a.let_end();
    a.signal("TERM")?;
    eventually("it stops", async || a.has_ended()).await?;
    break_something(&stage).await?;
    mended(&stage, &b).await?;
    let turns = turns(&log)?;
    ensure!(turns.len() >= 4, "{turns:?}");
    stage.strike().await
}
