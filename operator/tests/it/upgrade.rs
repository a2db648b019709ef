//! From one release to another: schema, roles in order, probe; and back by itself when one of them fails.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use carillon_crds::{Role, UpgradeStatus, UpgradeStep};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::events::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use crate::plane::{Plane, eventually, is_long};
use crate::process::Replica;
use crate::stage::{Stage, differences, first_order};

/// Of how many writes one is the last, in the short form.
const STRIDE: usize = 11;

/// The first order with another version or image, and a deadline that a test can wait for.
fn order(more: &str) -> String {
    format!(
        "{}{more}upgrade: {{progressDeadline: 10s}}\n",
        first_order()
    )
}

fn with_tag(tag: &str) -> String {
    order(&format!("version: 0.1.1\nimage: {{tag: {tag}}}\n"))
}

async fn started(test: &str) -> Result<Option<(Stage, Replica)>> {
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(None);
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&order("")).await?;
    stage.settled(&operator).await?;
    Ok(Some((stage, operator)))
}

async fn upgrade(stage: &Stage) -> Result<Option<UpgradeStatus>> {
    let status = stage.cluster().await?.status.unwrap_or_default();
    Ok(status.upgrade)
}

/// Waits until the upgrade to an image of this tag is at a step.
async fn wait_step(
    stage: &Stage,
    operator: &Replica,
    tag: &str,
    step: UpgradeStep,
) -> Result<UpgradeStatus> {
    let mut last = None;
    let waited = eventually(&format!("the upgrade is at {step:?}"), async || {
        last = upgrade(stage).await?;
        Ok(last
            .as_ref()
            .is_some_and(|upgrade| upgrade.step == step && upgrade.to.image.ends_with(tag)))
    })
    .await;
    waited.with_context(|| format!("{last:?}\n{}", operator.said()))?;
    last.context("an upgrade")
}

/// The tag and generation of each role's Deployment.
async fn deployments(stage: &Stage) -> Result<BTreeMap<String, (String, i64)>> {
    let api: Api<Deployment> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let mut found = BTreeMap::new();
    for deployment in api.list(&ListParams::default()).await? {
        let name = deployment.name_any();
        let generation = deployment.metadata.generation.unwrap_or_default();
        let image = deployment
            .spec
            .template
            .spec
            .and_then(|pod| pod.containers.into_iter().next()?.image)
            .unwrap_or_default();
        let tag = image.rsplit(':').next().unwrap_or_default().to_owned();
        found.insert(name, (tag, generation));
    }
    Ok(found)
}

async fn tags(stage: &Stage) -> Result<Vec<String>> {
    let found = deployments(stage).await?;
    Ok(Role::ALL
        .iter()
        .filter_map(|role| found.get(&format!("town-{}", role.name())))
        .map(|(tag, _)| tag.clone())
        .collect())
}

async fn reasons(stage: &Stage) -> Result<Vec<String>> {
    let api: Api<Event> = Api::namespaced(stage.plane.admin.clone(), &stage.namespace);
    let events = api.list(&ListParams::default()).await?;
    Ok(events
        .into_iter()
        .filter_map(|event| event.reason)
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_follow_each_other_and_wait_for_the_one_before() -> Result<()> {
    let test = "upgrade::roles_follow_each_other_and_wait_for_the_one_before";
    let Some((stage, operator)) = started(test).await? else {
        return Ok(());
    };
    let first = stage.cluster().await?.status.context("a status")?;
    ensure!(first.upgrade.is_none(), "a first release is no upgrade");
    ensure!(first.release.context("a release")?.version == "0.1.0");
    stage.slow_down(Some("presence")).await?;
    stage.order(&with_tag("next")).await?;
    eventually("presence is being replaced", async || {
        let upgrade = upgrade(&stage).await?;
        Ok(upgrade.is_some_and(|upgrade| upgrade.component.as_deref() == Some("presence")))
    })
    .await
    .with_context(|| operator.said())?;
    stage.quiet(&operator).await?;
    let begun = upgrade(&stage).await?.context("an upgrade")?;
    ensure!(begun.from.version == "0.1.0" && begun.to.version == "0.1.1");
    ensure!(begun.step == UpgradeStep::RollingOut, "{begun:?}");
    let now = tags(&stage).await?;
    ensure!(
        now == ["next", "next", "next", "0.1.0", "0.1.0", "0.1.0"],
        "{now:?}"
    );
    // Damage to what waits is mended with what it was.
    stage
        .objects("apps", "v1", "Deployment")
        .delete("town-gateway", &Default::default())
        .await?;
    stage.slow_down(None).await?;
    let done = wait_step(&stage, &operator, "next", UpgradeStep::Done).await?;
    ensure!(done.started_at == begun.started_at, "it began twice");
    stage.settled(&operator).await?;
    ensure!(tags(&stage).await? == ["next"; 6]);
    let status = stage.cluster().await?.status.context("a status")?;
    ensure!(status.release == Some(done.to), "{:?}", status.release);
    let reasons = reasons(&stage).await?;
    for reason in ["UpgradeStarted", "Upgraded"] {
        ensure!(reasons.iter().any(|found| found == reason), "{reasons:?}");
    }
    stage.strike().await
}

/// Waits until an upgrade is taken back, and checks that what was before runs as it did.
async fn taken_back(
    stage: &Stage,
    operator: &Replica,
    before: &BTreeMap<String, String>,
    (tag, why): (&str, &str),
) -> Result<()> {
    let back = wait_step(stage, operator, tag, UpgradeStep::RolledBack).await?;
    let message = back.message.unwrap_or_default();
    ensure!(message.contains(why), "{why}: {message}");
    stage.settled(operator).await?;
    if let Some(differences) = differences(before, &stage.picture().await?) {
        anyhow::bail!("{why}: {differences}\n{}", operator.said());
    }
    let found = stage.condition("Degraded").await?;
    ensure!(
        found == ("True".to_owned(), "UpgradeFailed".to_owned()),
        "{found:?}"
    );
    ensure!(stage.condition("Available").await?.0 == "True");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_taken_back_and_not_tried_again() -> Result<()> {
    let test = "upgrade::what_fails_is_taken_back_and_not_tried_again";
    let Some((stage, operator)) = started(test).await? else {
        return Ok(());
    };
    let before = stage.picture().await?;
    let generations = deployments(&stage).await?;

    // A migration that gives up: no pod was touched.
    stage.order(&with_tag("broken-migrate")).await?;
    taken_back(
        &stage,
        &operator,
        &before,
        ("broken-migrate", "migration: "),
    )
    .await?;
    ensure!(
        deployments(&stage).await? == generations,
        "a Deployment was changed"
    );

    // Another release may be tried at once. One whose pods don't come up stops at its role.
    let mark = operator.proxy.mark();
    stage.order(&with_tag("broken-media")).await?;
    taken_back(&stage, &operator, &before, ("broken-media", "media: ")).await?;
    let records = operator.proxy.since(mark);
    let is_patched = |role: &str| {
        let patch = format!("patch deployments town-{role}");
        records
            .iter()
            .any(|record| record.describe().starts_with(&patch))
    };
    ensure!(is_patched("presence") && is_patched("media"));
    ensure!(!is_patched("notification") && !is_patched("gateway"));

    // Whatever else is ordered, it isn't tried again, until the old one was ordered.
    let replicas = "image: {tag: broken-media}\nversion: 0.1.1\nauth: {replicas: 3}\n";
    stage.order(&order(replicas)).await?;
    stage.settled(&operator).await?;
    ensure!(upgrade(&stage).await?.context("an upgrade")?.step == UpgradeStep::RolledBack);
    ensure!(deployments(&stage).await?["town-auth"].0 == "0.1.0");
    stage.order(&order("")).await?;
    stage.settled(&operator).await?;
    ensure!(upgrade(&stage).await?.is_none(), "it is history");
    ensure!(stage.condition("Degraded").await?.0 == "False");
    let reasons = reasons(&stage).await?;
    for reason in ["UpgradeStarted", "UpgradeFailed", "RolledBack"] {
        ensure!(reasons.iter().any(|found| found == reason), "{reasons:?}");
    }
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_through_which_no_message_gets_is_taken_back() -> Result<()> {
    let test = "upgrade::a_release_through_which_no_message_gets_is_taken_back";
    let Some((stage, operator)) = started(test).await? else {
        return Ok(());
    };
    let before = stage.picture().await?;
    stage.edge.break_at(Some("send"));
    stage.add_gateway("town-gateway-second").await?;
    stage.order(&with_tag("next")).await?;
    wait_step(&stage, &operator, "next", UpgradeStep::Probing).await?;
    ensure!(tags(&stage).await? == ["next"; 6]);
    wait_step(&stage, &operator, "next", UpgradeStep::RollingBack).await?;
    stage.edge.break_at(None);
    stage
        .wait_condition("Available", "True", "AllReady")
        .await?;
    taken_back(
        &stage,
        &operator,
        &before,
        ("next", "a probe message: send"),
    )
    .await?;
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_in_the_status() -> Result<()> {
    let test = "upgrade::what_cannot_be_run_is_refused_in_the_status";
    let Some((stage, operator)) = started(test).await? else {
        return Ok(());
    };
    let before = stage.picture().await?;
    for (version, words) in [
        ("0.2.0", "upgrade the operator first"),
        ("7.0.0", "upgrade the operator first"),
        ("0.0.9", "older than this operator can run"),
    ] {
        stage
            .order(&order(&format!("version: {version}\n")))
            .await?;
        stage
            .wait_condition("SpecValid", "False", "UnsupportedVersion")
            .await?;
        eventually("the version is refused", async || {
            let cluster = stage.cluster().await?;
            let status = cluster.status.unwrap_or_default();
            Ok(status.observed_generation == cluster.metadata.generation
                && status.conditions.iter().any(|condition| {
                    condition.type_ == "SpecValid" && condition.message.contains(words)
                }))
        })
        .await?;
        ensure!(stage.condition("Available").await?.0 == "True");
    }
    if let Some(differences) = differences(&before, &stage.picture().await?) {
        anyhow::bail!("{differences}\n{}", operator.said());
    }
    stage.strike().await
}

/// Killed after a write of an upgrade that fails, it still goes back.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_between_it_still_goes_back() -> Result<()> {
    let test = "upgrade::killed_in_between_it_still_goes_back";
    let Some((stage, operator)) = started(test).await? else {
        return Ok(());
    };
    let before = stage.picture().await?;
    operator.proxy.on_write(None);
    stage.order(&with_tag("broken-gateway")).await?;
    taken_back(&stage, &operator, &before, ("broken-gateway", "gateway: ")).await?;
    let writes = operator.proxy.writes();
    let stride = if is_long() { 1 } else { STRIDE };
    let mut killed = 0;
    for count in (1..=writes).step_by(stride) {
        stage.order(&order("")).await?;
        stage.settled(&operator).await?;
        operator.die_at_write(count);
        stage.order(&with_tag("broken-gateway")).await?;
        eventually("it is killed, or back", async || {
            let is_back = upgrade(&stage)
                .await?
                .is_some_and(|upgrade| upgrade.step == UpgradeStep::RolledBack);
            Ok(operator.has_ended()? || is_back)
        })
        .await?;
        stage.quiet(&operator).await?;
        if operator.has_ended()? {
            killed += 1;
            operator.proxy.on_write(None);
            operator.start()?;
        }
        taken_back(&stage, &operator, &before, ("broken-gateway", "gateway: "))
            .await
            .with_context(|| format!("killed after write {count} of {writes}"))?;
    }
    println!("an upgrade that fails is {writes} writes, killed {killed} times");
    ensure!(killed > 0);
    stage.strike().await
}
