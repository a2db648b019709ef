//! PodMonitor, PrometheusRule and dashboards of a ChatCluster: with the published definitions, and where nobody installed them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::plane::{Plane, eventually, variable};
use crate::stage::{STORES, Stage};

const GROUP: &str = "monitoring.coreos.com";

fn order(monitoring: &str) -> String {
    format!("{STORES}\nmonitoring: {monitoring}\n")
}

fn monitors(stage: &Stage) -> [Api<DynamicObject>; 2] {
    ["PodMonitor", "PrometheusRule"].map(|kind| stage.objects(GROUP, "v1", kind))
}

async fn dashboards(stage: &Stage) -> Result<usize> {
    let children = stage.children().await?;
    Ok(children
        .keys()
        .filter(|name| name.starts_with("ConfigMap town-dashboard-"))
        .count())
}

/// The object once more, under another name and by somebody else: a field that its definition doesn't know is refused.
async fn is_valid(api: &Api<DynamicObject>) -> Result<()> {
    let object = api.get("town").await?;
    let mut copy = serde_json::to_value(&object)?;
    copy["metadata"] = json!({ "name": "copy", "labels": object.labels() });
    let strictly = PatchParams::apply("test").validation_strict().dry_run();
    api.patch("copy", &strictly, &Patch::Apply(&copy)).await?;
    copy["spec"]["unheard"] = json!("of");
    let refused = api.patch("copy", &strictly, &Patch::Apply(&copy)).await;
    ensure!(refused.is_err(), "an unknown field is taken");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_come_and_go_with_the_order() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("monitors::monitors_come_and_go_with_the_order").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(STORES).await?;
    stage.settled(&operator).await?;
    let [pods, rules] = monitors(&stage);
    ensure!(pods.get_opt("town").await?.is_none() && rules.get_opt("town").await?.is_none());
    ensure!(stage.condition("Monitored").await.is_err());

    stage
        .order(&order(
            "{podMonitor: {labels: {release: mine}}, prometheusRule: {}, dashboards: {labels: {grafana: 'yes'}}}",
        ))
        .await?;
    stage.settled(&operator).await?;
    stage
        .wait_condition("Monitored", "True", "AsOrdered")
        .await?;
    is_valid(&pods).await?;
    is_valid(&rules).await?;
    ensure!(pods.get("town").await?.labels()["release"] == "mine");
    ensure!(dashboards(&stage).await? == 5);

    // Whoever takes one away, or changes it, gets it back.
    let uid = pods.get("town").await?.uid();
    pods.delete("town", &DeleteParams::default()).await?;
    eventually("it is back", async || {
        let found = pods.get_opt("town").await?;
        Ok(found.is_some_and(|found| found.uid() != uid))
    })
    .await?;
    let groups = rules.get("town").await?.data["spec"]["groups"].clone();
    let none = Patch::Merge(json!({ "spec": { "groups": [] } }));
    rules.patch("town", &PatchParams::default(), &none).await?;
    eventually("the rules are back", async || {
        Ok(rules.get("town").await?.data["spec"]["groups"] == groups)
    })
    .await?;

    stage
        .order(&order("{podMonitor: {enabled: false}, prometheusRule: {}}"))
        .await?;
    eventually("it goes when it is switched off", async || {
        Ok(pods.get_opt("town").await?.is_none() && dashboards(&stage).await? == 0)
    })
    .await?;
    ensure!(rules.get_opt("town").await?.is_some());
    stage.order(STORES).await?;
    eventually("nothing of it is left", async || {
        Ok(rules.get_opt("town").await?.is_none() && stage.condition("Monitored").await.is_err())
    })
    .await?;
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_definitions_the_rest_comes_up() -> Result<()> {
    let Some(plane) =
        Plane::from_environment("monitors::without_definitions_the_rest_comes_up").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.proxy.forget_group(Some(GROUP));
    operator.start()?;
    stage
        .order(&order(
            "{podMonitor: {}, prometheusRule: {}, dashboards: {}}",
        ))
        .await?;
    stage.settled(&operator).await?;
    stage
        .wait_condition("Monitored", "False", "DefinitionMissing")
        .await?;
    ensure!(stage.condition("Available").await?.0 == "True");
    ensure!(stage.condition("Degraded").await?.0 == "False");
    ensure!(dashboards(&stage).await? == 5);
    let asked = || {
        let of_group = |record: &&crate::proxy::Record| record.group == GROUP;
        operator.proxy.since(0).iter().filter(of_group).count()
    };
    ensure!(asked() <= 2, "asked {} times within a minute", asked());

    // Somebody installs them.
    operator.proxy.forget_group(None);
    let installed = Instant::now();
    let [pods, rules] = monitors(&stage);
    // It looks once a minute, and at this cluster once a minute.
    while pods.get_opt("town").await?.is_none() || rules.get_opt("town").await?.is_none() {
        ensure!(
            installed.elapsed() < Duration::from_secs(400),
            "{}",
            operator.said()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!(
        "monitors came {:.0} s after their definitions",
        installed.elapsed().as_secs_f64()
    );
    stage
        .wait_condition("Monitored", "True", "AsOrdered")
        .await?;
    stage.strike().await
}

/// A role that is gone here and one that is gone elsewhere: this ChatCluster's rules tell of the first alone.
const TWO_TOWNS: &str = r#"
rule_files: [rules.json]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'carillon_ready{namespace="NAMESPACE", chatcluster="town", role="auth"}', values: '0x20'}
      - {series: 'carillon_ready{namespace="NAMESPACE", chatcluster="other", role="auth"}', values: '0x20'}
      - {series: 'up{namespace="elsewhere", chatcluster="town", role="auth"}', values: '0x20'}
    alert_rule_test:
      - eval_time: 10m
        alertname: CarillonPodUnready
        exp_alerts:
          - exp_labels: {namespace: NAMESPACE, chatcluster: town, role: auth, severity: ticket}
            exp_annotations:
              summary: 'A auth pod of NAMESPACE/town is not ready'
              description: 'The pod answers, and says that it can not do its work, or it has been stopping for five minutes.'
              runbook_url: docs/runbooks/CarillonPodUnready.md
      - {eval_time: 10m, alertname: CarillonTargetDown, exp_alerts: []}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn rules_are_good_ones_and_about_one_cluster() -> Result<()> {
    let test = "monitors::rules_are_good_ones_and_about_one_cluster";
    let Some(programs) = variable(test, "CARILLON_TEST_PROMETHEUS") else {
        return Ok(());
    };
    let Some(plane) = Plane::from_environment(test).await? else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&order("{prometheusRule: {}}")).await?;
    stage.settled(&operator).await?;
    let [_, rules] = monitors(&stage);
    let spec = rules.get("town").await?.data["spec"].clone();
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("rules.json"), spec.to_string())?;
    let towns = TWO_TOWNS.replace("NAMESPACE", &stage.namespace);
    std::fs::write(folder.path().join("test.yaml"), towns)?;
    for arguments in [
        ["check", "rules", "rules.json"],
        ["test", "rules", "test.yaml"],
    ] {
        let said = Command::new(PathBuf::from(&programs).join("promtool"))
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .context("promtool")?;
        ensure!(said.status.success(), "{arguments:?}: {said:?}");
    }
    stage.strike().await
}
