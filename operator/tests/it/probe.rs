//! `Available` hangs on a message that gets through, and says at which step it didn't.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube::api::DeleteParams;

use crate::plane::{Plane, eventually};
use crate::stage::{Stage, first_order};

/// In the order in which a message takes them.
const STEPS: [&str; 5] = ["room", "connect", "send", "receive", "read"];

async fn wait_failed_at(stage: &Stage, step: &str) -> Result<()> {
    eventually(&format!("the probe fails at {step}"), async || {
        let status = stage.cluster().await?.status.unwrap_or_default();
        Ok(status.conditions.iter().any(|condition| {
            condition.type_ == "Available"
                && condition.status == "False"
                && condition.reason == "ProbeFailed"
                && condition
                    .message
                    .contains(&format!("{step}: gateway town-gateway-"))
        }))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_available_when_a_message_came_back() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("probe::a_cluster_is_available_when_a_message_came_back").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    stage.edge.break_at(Some(STEPS[0]));
    operator.start()?;
    stage.order(&first_order()).await?;
    for step in STEPS {
        stage.edge.break_at(Some(step));
        wait_failed_at(&stage, step)
            .await
            .with_context(|| operator.said())?;
        // A failure of which nothing new can be said is not said again, however often it is tried.
        stage.quiet(&operator).await?;
        let mark = operator.proxy.mark();
        let tries = operator.said().matches("did not get through").count();
        eventually("it is tried again", async || {
            Ok(operator.said().matches("did not get through").count() > tries)
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let writes: Vec<String> = operator
            .proxy
            .since(mark)
            .iter()
            .filter(|record| record.is_write())
            .map(|record| record.describe())
            .collect();
        ensure!(writes.is_empty(), "{writes:?}");
        // A new process has forgotten how often it was tried, so that the next try is soon.
        operator.kill()?;
        operator.start()?;
    }
    stage.edge.break_at(None);
    stage
        .wait_condition("Available", "True", "AllReady")
        .await?;
    stage.settled(&operator).await?;

    // What got through before is believed for a while, and asked again when other pods serve.
    let before = stage.edge.messages();
    stage.edge.break_at(Some("send"));
    stage.add_gateway("town-gateway-second").await?;
    stage
        .objects("", "v1", "Service")
        .delete("town-auth", &DeleteParams::default())
        .await?;
    wait_failed_at(&stage, "send").await?;
    stage.edge.break_at(None);
    stage
        .wait_condition("Available", "True", "AllReady")
        .await?;
    ensure!(stage.edge.messages() > before, "no further message");
    stage.strike().await
}

/// Not one message more while nothing changes.
#[tokio::test(flavor = "multi_thread")]
async fn looking_again_sends_nothing() -> Result<()> {
    let Some(plane) = Plane::from_environment("probe::looking_again_sends_nothing").await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let sent = stage.edge.messages();
    ensure!(sent > 0, "available without a message");
    for role in ["auth", "message", "media"] {
        let mark = operator.proxy.mark();
        stage
            .objects("", "v1", "Service")
            .delete(&format!("town-{role}"), &DeleteParams::default())
            .await?;
        eventually("it looked at the pods again", async || {
            Ok(operator
                .proxy
                .since(mark)
                .iter()
                .any(|record| record.describe().starts_with("list pods")))
        })
        .await?;
        stage.quiet(&operator).await?;
    }
    ensure!(stage.edge.messages() == sent, "further messages were sent");
    stage.strike().await
}
