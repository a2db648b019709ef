//! The operator is killed after a write, before it hears of it, and started again: the end is always the same.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use crate::plane::{Plane, eventually, is_long};
use crate::process::Replica;
use crate::stage::{Stage, differences, first_order, second_order};

/// Namespaces that are worked in at the same time.
const LANES: usize = 2;

/// Of how many writes one is the last, in the short form.
const STRIDE: usize = 9;

/// The writes after which one lane kills.
fn kills(lane: usize, writes: usize) -> impl Iterator<Item = usize> {
    let stride = if is_long() { 1 } else { STRIDE };
    (1..=writes).step_by(stride).skip(lane).step_by(LANES)
}

/// One lane's stage and operator, and how often the operator was to be killed and was.
struct Lane {
    stage: Stage,
    replica: Replica,
    planned: usize,
    killed: usize,
}

impl Lane {
    async fn new(plane: &Plane) -> Result<Self> {
        let stage = Stage::set(plane).await?;
        let replica = stage.replica("carillon-operator-0").await?;
        Ok(Lane {
            stage,
            replica,
            planned: 0,
            killed: 0,
        })
    }

    /// Orders `spec`; the operator dies at its `count`-th write from now, or not at all. Then it runs until everything is
    /// as ordered.
    async fn order(&mut self, spec: &str, count: Option<usize>) -> Result<usize> {
        match count {
            Some(count) => {
                self.planned += 1;
                self.replica.die_at_write(count);
            }
            None => self.replica.proxy.on_write(None),
        }
        self.stage.order(spec).await?;
        if self.replica.has_ended()? {
            self.replica.start()?;
            if count.is_some() {
                self.replica.let_end();
            }
        }
        if let Some(count) = count {
            eventually("it is killed, or everything is as ordered", async || {
                Ok(self.replica.has_ended()? || self.stage.is_settled().await?)
            })
            .await
            .with_context(|| self.replica.said())?;
            // What follows the last status are Events.
            self.stage.quiet(&self.replica).await?;
            let ended = self.replica.has_ended()?;
            let writes = self.replica.proxy.writes();
            ensure!(
                ended || writes < count,
                "write {count} of {writes} was made and nobody killed"
            );
            if ended {
                self.killed += 1;
                self.replica.proxy.on_write(None);
                let mark = self.replica.proxy.mark();
                self.replica.start()?;
                // The status may say already that nothing is left to do.
                eventually("it has looked again", async || {
                    let records = self.replica.proxy.since(mark);
                    Ok(records
                        .iter()
                        .any(|record| record.describe().starts_with("list deployments")))
                })
                .await
                .with_context(|| self.replica.said())?;
            }
        }
        self.stage.settled(&self.replica).await?;
        Ok(self.replica.proxy.writes())
    }

    async fn delete(&self) -> Result<()> {
        self.stage.delete().await?;
        self.stage.emptied().await
    }

    /// Which two Secrets there are: they must outlive everything.
    async fn secrets(&self) -> Result<Vec<Option<String>>> {
        let api: Api<Secret> =
            Api::namespaced(self.stage.plane.admin.clone(), &self.stage.namespace);
        let mut uids = Vec::new();
        for name in ["town-jwt", "town-ca", "town-certificates"] {
            uids.push(api.get(name).await?.metadata.uid);
        }
        Ok(uids)
    }

    async fn check(&self, what: &str, expected: &BTreeMap<String, String>) -> Result<()> {
        let found = self.stage.picture().await?;
        if let Some(differences) = differences(expected, &found) {
            anyhow::bail!("{what}: {differences}\n{}", self.replica.said());
        }
        Ok(())
    }

    async fn end(self) -> Result<usize> {
        let killed = self.killed;
        // One run may need a write or two less than another: fewer reports of what was on its way.
        ensure!(
            killed > 0 && killed * 4 >= self.planned * 3,
            "killed {killed} times of {}",
            self.planned
        );
        self.replica.kill()?;
        self.stage.strike().await?;
        Ok(killed)
    }
}

/// Runs `work` in all lanes and adds up what they return.
async fn in_lanes<F>(plane: &Plane, work: impl Fn(usize, Lane) -> F) -> Result<usize>
where
    F: Future<Output = Result<usize>>,
{
    let mut lanes = Vec::new();
    for lane in 0..LANES {
        lanes.push(work(lane, Lane::new(plane).await?));
    }
    let killed = futures::future::try_join_all(lanes).await?;
    Ok(killed.iter().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_write_of_a_create() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("crash::killed_after_every_write_of_a_create").await?
    else {
        return Ok(());
    };
    let killed = in_lanes(&plane, async |number, mut lane: Lane| {
        let writes = lane.order(&first_order(), None).await?;
        let expected = lane.stage.picture().await?;
        println!("a create is {writes} writes, {} children", expected.len());
        for count in kills(number, writes) {
            lane.delete().await?;
            lane.replica.kill()?;
            lane.order(&first_order(), Some(count)).await?;
            lane.check(
                &format!("killed after write {count} of a create"),
                &expected,
            )
            .await?;
        }
        lane.end().await
    })
    .await?;
    println!("killed {killed} times");
    Ok(())
}

/// There and back: the second order takes away what the first one has, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn killed_after_every_write_of_an_upgrade() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("crash::killed_after_every_write_of_an_upgrade").await?
    else {
        return Ok(());
    };
    let killed = in_lanes(&plane, async |number, mut lane: Lane| {
        lane.order(&first_order(), None).await?;
        let there = lane.order(&second_order(), None).await?;
        let second = lane.stage.picture().await?;
        let back = lane.order(&first_order(), None).await?;
        let first = lane.stage.picture().await?;
        println!("an upgrade is {there} writes, the way back {back}");
        let secrets = lane.secrets().await?;
        for count in kills(number, there.max(back)) {
            lane.order(&second_order(), Some(count)).await?;
            lane.check(
                &format!("killed after write {count} of an upgrade"),
                &second,
            )
            .await?;
            lane.order(&first_order(), Some(count)).await?;
            lane.check(
                &format!("killed after write {count} of the way back"),
                &first,
            )
            .await?;
            ensure!(lane.secrets().await? == secrets, "other keys");
        }
        lane.end().await
    })
    .await?;
    println!("killed {killed} times");
    Ok(())
}

/// A delete needs no write of the operator's: owner references do it. So what can go wrong is a delete at any point of a create,
/// with an operator that goes on writing for a moment, or dies.
#[tokio::test(flavor = "multi_thread")]
async fn deleted_after_every_write_of_a_create() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("crash::deleted_after_every_write_of_a_create").await?
    else {
        return Ok(());
    };
    let killed = in_lanes(&plane, async |number, mut lane: Lane| {
        let writes = lane.order(&first_order(), None).await?;
        let mark = lane.replica.proxy.mark();
        lane.delete().await?;
        lane.stage.quiet(&lane.replica).await?;
        let made: Vec<String> = lane
            .replica
            .proxy
            .since(mark)
            .iter()
            .filter(|record| record.is_write())
            .map(|record| record.describe())
            .collect();
        ensure!(made.is_empty(), "writes of a delete: {made:?}");
        for count in kills(number, writes) {
            for dies in [false, true] {
                let (reached, mut is_reached) = tokio::sync::mpsc::unbounded_channel();
                if dies {
                    lane.planned += 1;
                    lane.replica.die_at_write(count);
                } else {
                    lane.replica.proxy.on_write(Some(Box::new(move |written| {
                        if written == count {
                            let _ = reached.send(());
                        }
                    })));
                }
                if lane.replica.has_ended()? {
                    lane.replica.start()?;
                }
                lane.stage.order(&first_order()).await?;
                eventually(
                    "the write is made, or everything is as ordered",
                    async || {
                        Ok(is_reached.try_recv().is_ok()
                            || lane.replica.has_ended()?
                            || lane.stage.is_settled().await?)
                    },
                )
                .await?;
                lane.stage.delete().await?;
                if lane.replica.has_ended()? {
                    lane.killed += 1;
                    lane.replica.proxy.on_write(None);
                    lane.replica.start()?;
                }
                lane.stage.emptied().await.with_context(|| {
                    format!(
                        "deleted after write {count}, killed: {dies}\n{}",
                        lane.replica.said()
                    )
                })?;
                lane.stage.quiet(&lane.replica).await?;
                lane.stage.emptied().await?;
            }
        }
        lane.end().await
    })
    .await?;
    println!("killed {killed} times");
    Ok(())
}
