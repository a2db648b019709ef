//! The chart ships the rules and dashboards, when it is asked to.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::prometheus::{chart, rules};
use crate::world::servers;

fn helm(program: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let output = Command::new(program)
        .args(arguments)
        .arg(chart())
        .env("KUBECONFIG", "/dev/null")
        .output()
        .context("running helm")?;
    let said = match output.status.success() {
        true => output.stdout,
        false => output.stderr,
    };
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// The objects of a chart's output.
fn objects(rendered: &str) -> Result<Vec<Value>> {
    rendered
        .split("\n---\n")
        .filter(|text| text.contains("kind: "))
        .map(|text| serde_saphyr::from_str(text).with_context(|| text.to_owned()))
        .collect()
}

const TEMPLATE: [&str; 4] = ["template", "x", "--kube-version", "1.34.0"];
const ALL: &str = "monitoring.podMonitor.enabled=true,monitoring.prometheusRule.enabled=true,monitoring.dashboards.enabled=true";

/// Nothing of it unless asked for; all of it, as it is in the project, when asked.
#[test]
fn monitoring_is_shipped_on_demand() -> Result<()> {
    let test = "monitoring::chart::monitoring_is_shipped_on_demand";
    let Some(program) = servers::variable(test, "CARILLON_TEST_HELM") else {
        return Ok(());
    };
    let Some(programs) = servers::variable(test, "CARILLON_TEST_PROMETHEUS") else {
        return Ok(());
    };
    for values in ["nameOverride=", ALL] {
        let (taken, said) = helm(&program, &["lint", "--strict", "--set", values])?;
        ensure!(taken, "helm lint: {said}");
    }
    let (taken, plain) = helm(&program, &TEMPLATE)?;
    ensure!(taken, "{plain}");
    for kind in ["PodMonitor", "PrometheusRule", "ConfigMap"] {
        ensure!(!plain.contains(kind), "{kind} without being asked for");
    }

    let more = "watchNamespaces={a,b},monitoring.podMonitor.labels.release=mine,monitoring.prometheusRule.runbookBaseUrl=https://wiki.example.com/r/";
    let (taken, rendered) = helm(
        &program,
        &[&TEMPLATE[..], &["--set", ALL, "--set", more]].concat(),
    )?;
    ensure!(taken, "{rendered}");
    let objects = objects(&rendered)?;
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let platforms = of_kind("PodMonitor").next().context("PodMonitor")?;
    ensure!(of_kind("PodMonitor").count() == 2);
    ensure!(
        platforms["metadata"]["labels"]["release"] == "mine"
            && platforms["spec"]["namespaceSelector"]["matchNames"]
                == serde_json::json!(["a", "b"]),
        "{platforms}"
    );
    let labels: Vec<&Value> = platforms["spec"]["podMetricsEndpoints"][0]["relabelings"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|relabeling| &relabeling["targetLabel"])
        .collect();
    ensure!(labels == ["chatcluster", "role"], "{labels:?}");

    // What Prometheus is given is what the tests look at, but for the address of the runbooks.
    let shipped = of_kind("PrometheusRule").next().context("PrometheusRule")?;
    let expected = rules()?.replace("docs/runbooks/", "https://wiki.example.com/r/");
    let expected: Value = serde_saphyr::from_str(&expected)?;
    ensure!(
        shipped["spec"]["groups"] == expected["groups"],
        "{}",
        shipped["spec"]
    );
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("rules.json");
    std::fs::write(&file, shipped["spec"].to_string())?;
    let checked = Command::new(Path::new(&programs).join("promtool"))
        .args(["check", "rules"])
        .arg(&file)
        .output()?;
    ensure!(checked.status.success(), "{checked:?}");

    let mut shipped = 0;
    for object in of_kind("ConfigMap") {
        ensure!(
            object["metadata"]["labels"]["grafana_dashboard"] == "1",
            "{object}"
        );
        for (name, text) in object["data"].as_object().context("data")? {
            let file = name.trim_start_matches("carillon-");
            let expected = std::fs::read_to_string(chart().join("dashboards").join(file))?;
            let expected: Value = serde_json::from_str(&expected)?;
            let given: Value = serde_json::from_str(text.as_str().unwrap_or_default())?;
            ensure!(given == expected, "{name}");
            shipped += 1;
        }
    }
    let files = std::fs::read_dir(chart().join("dashboards"))?.count();
    ensure!(shipped == files, "{shipped} of {files} dashboards");

    for wrong in [
        "monitoring.podMonitor.enable=true",
        "monitoring.podMonitor.interval=often",
        "monitoring.prometheusRule.runbookBaseUrl=wiki",
    ] {
        let (taken, said) = helm(&program, &[&TEMPLATE[..], &["--set", wrong]].concat())?;
        ensure!(!taken && said.contains("monitoring"), "{wrong}: {said}");
    }
    Ok(())
}
