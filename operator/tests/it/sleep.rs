//! Pause: nothing is written but the status. Hibernation: no pods, and back to what was.

use anyhow::{Result, ensure};
use kube::ResourceExt;
use kube::api::DeleteParams;

use crate::plane::{Plane, eventually};
use crate::stage::{Stage, differences, first_order};

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_cluster_is_left_alone() -> Result<()> {
    let Some(plane) = Plane::from_environment("sleep::a_paused_cluster_is_left_alone").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    let paused = format!("{}paused: true\nauth: {{replicas: 3}}\n", first_order());

    // From the beginning: nothing is made.
    stage.order(&paused).await?;
    stage.settled(&operator).await?;
    ensure!(stage.children().await?.is_empty(), "made while paused");
    ensure!(stage.condition("Available").await?.0 == "False");
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;

    // Later: neither a change nor damage is acted on.
    stage.order(&paused).await?;
    stage
        .wait_condition("Progressing", "False", "Paused")
        .await?;
    stage.quiet(&operator).await?;
    ensure!(stage.condition("Available").await?.0 == "True");
    let mark = operator.proxy.mark();
    let services = stage.objects("", "v1", "Service");
    services
        .delete("town-auth", &DeleteParams::default())
        .await?;
    eventually("the operator has looked", async || {
        Ok(operator
            .proxy
            .since(mark)
            .iter()
            .any(|record| record.describe().starts_with("list pods")))
    })
    .await?;
    stage.quiet(&operator).await?;
    let others: Vec<String> = operator
        .proxy
        .since(mark)
        .iter()
        .filter(|record| record.is_write() && record.resource != "chatclusters/status")
        .map(|record| record.describe())
        .collect();
    ensure!(others.is_empty(), "{others:?}");
    ensure!(services.get_opt("town-auth").await?.is_none());

    // And then all of it.
    stage
        .order(&paused.replace("paused: true", "paused: false"))
        .await?;
    stage
        .wait_condition("Progressing", "False", "Complete")
        .await?;
    ensure!(services.get_opt("town-auth").await?.is_some());
    let auth = stage
        .objects("apps", "v1", "Deployment")
        .get("town-auth")
        .await?;
    ensure!(auth.data["spec"]["replicas"] == 3);
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_sleeps_and_wakes_up_as_it_was() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("sleep::a_cluster_sleeps_and_wakes_up_as_it_was").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let awake = stage.picture().await?;
    let keys = |children: &std::collections::BTreeMap<String, kube::api::DynamicObject>| {
        [
            "Secret town-jwt",
            "Secret town-ca",
            "Secret town-certificates",
        ]
        .map(|name| children[name].uid())
    };
    let before = keys(&stage.children().await?);

    stage
        .order(&format!("{}hibernated: true\n", first_order()))
        .await?;
    stage.settled(&operator).await?;
    ensure!(
        stage.condition("Available").await? == ("False".to_owned(), "Hibernated".to_owned()),
        "{:?}",
        stage.condition("Available").await?
    );
    ensure!(stage.condition("Degraded").await?.0 == "False");
    let asleep = stage.children().await?;
    for (name, child) in &asleep {
        if name.starts_with("Deployment") {
            ensure!(child.data["spec"]["replicas"] == 0, "{name}");
        }
    }
    let gone: Vec<&String> = awake
        .keys()
        .filter(|name| !asleep.contains_key(*name))
        .collect();
    ensure!(gone == ["HorizontalPodAutoscaler town-gateway"], "{gone:?}");
    ensure!(keys(&asleep) == before, "other keys");

    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    ensure!(stage.condition("Available").await?.0 == "True");
    ensure!(keys(&stage.children().await?) == before, "other keys");
    if let Some(differences) = differences(&awake, &stage.picture().await?) {
        anyhow::bail!("{differences}");
    }
    stage.strike().await
}
