//! The dashboards: well-formed, and each panel with something to show when people use the platform.

use std::{collections::BTreeSet, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{
    alerts::Town,
    prometheus::{PATIENCE, Prometheus, Target, chart},
};
use crate::world::{
    platform::{RealCluster, RealOptions},
    servers,
};

/// Units that the panels use, of those that Grafana knows.
const UNITS: &[&str] = &[
    "short",
    "s",
    "percentunit",
    "reqps",
    "ops",
    "wps",
    "eps",
    "mps",
    "Bps",
];

/// File names and contents.
fn dashboards() -> Result<Vec<(String, Value)>> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(chart().join("dashboards"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file)?;
            let name = file.file_stem().context("a name")?;
            Ok((
                name.to_string_lossy().into_owned(),
                serde_json::from_str(&text)?,
            ))
        })
        .collect()
}

fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"]
        .as_array()
        .into_iter()
        .flatten()
        .collect()
}

/// The queries of a panel, with the variables' places filled in as Grafana does.
fn queries(panel: &Value) -> Vec<String> {
    panel["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|target| target["expr"].as_str())
        .map(|query| {
            query
                .replace("$__rate_interval", "15s")
                .replace("[10m]", "[15s]")
                .replace("$namespace", ".*")
                .replace("$chatcluster", ".*")
        })
        .collect()
}

/// Whether two panels' places have a cell in common.
fn overlap(one: &Value, other: &Value) -> bool {
    let range = |place: &Value, at: &str, size: &str| {
        let start = place[at].as_u64().unwrap_or_default();
        (start, start + place[size].as_u64().unwrap_or_default())
    };
    [("x", "w"), ("y", "h")].iter().all(|(at, size)| {
        let (a, b) = (range(one, at, size), range(other, at, size));
        a.0 < b.1 && b.0 < a.1
    })
}

/// OP-04: ids are unique, no panel hides another, each says what it shows, in which unit, and from the chosen datasource.
#[test]
fn they_are_well_formed() -> Result<()> {
    let dashboards = dashboards()?;
    let names: Vec<&str> = dashboards.iter().map(|(name, _)| name.as_str()).collect();
    ensure!(
        names
            == [
                "gateway", "messages", "operator", "overview", "push", "stores"
            ],
        "{names:?}"
    );
    let mut uids = BTreeSet::new();
    for (name, dashboard) in &dashboards {
        ensure!(uids.insert(dashboard["uid"].to_string()), "{name}: uid");
        let variables = dashboard["templating"]["list"].as_array().context("list")?;
        let variables: BTreeSet<&str> = variables
            .iter()
            .filter_map(|variable| variable["name"].as_str())
            .collect();
        ensure!(
            variables.contains("datasource") && variables.contains("namespace"),
            "{name}: {variables:?}"
        );
        let panels = panels(dashboard);
        let ids: BTreeSet<String> = panels.iter().map(|panel| panel["id"].to_string()).collect();
        ensure!(ids.len() == panels.len(), "{name}: ids repeat");
        for (n, panel) in panels.iter().enumerate() {
            let title = format!("{name}: {}", panel["title"]);
            let place = &panel["gridPos"];
            let right = place["x"].as_u64().zip(place["w"].as_u64());
            ensure!(right.is_some_and(|(x, w)| w > 0 && x + w <= 24), "{title}");
            let hidden = panels[..n]
                .iter()
                .find(|other| overlap(&other["gridPos"], place));
            ensure!(hidden.is_none(), "{title} lies on {hidden:?}");
            if panel["type"] == "row" {
                continue;
            }
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            ensure!(
                unit.is_some_and(|unit| UNITS.contains(&unit)),
                "{title}: {unit:?}"
            );
            let text = panel["description"].as_str().unwrap_or_default();
            ensure!(text.ends_with('.'), "{title} has no description");
            ensure!(panel["datasource"]["uid"] == "${datasource}", "{title}");
            let targets = panel["targets"].as_array().context("targets")?;
            ensure!(!targets.is_empty(), "{title} asks nothing");
            for target in targets {
                ensure!(target["datasource"]["uid"] == "${datasource}", "{title}");
                let query = target["expr"].as_str().unwrap_or_default();
                let chosen = query.contains("$namespace") || query.contains("ALERTS");
                ensure!(chosen, "{title} shows every namespace: {query}");
                for (_, rest) in query
                    .match_indices('$')
                    .map(|(at, _)| query.split_at(at + 1))
                {
                    let known = variables.iter().any(|name| rest.starts_with(name));
                    ensure!(
                        known || rest.starts_with("__rate_interval"),
                        "{title}: ${rest}"
                    );
                }
            }
        }
    }
    Ok(())
}

/// Waits until every query of these dashboards gives figures.
pub async fn wait_data(prometheus: &Prometheus, wanted: &[&str]) -> Result<()> {
    let mut missing: Vec<(String, String)> = Vec::new();
    for (name, dashboard) in dashboards()? {
        if wanted.contains(&name.as_str()) {
            for panel in panels(&dashboard) {
                let title = format!("{name}: {}", panel["title"]);
                missing.extend(
                    queries(panel)
                        .into_iter()
                        .map(|query| (title.clone(), query)),
                );
            }
        }
    }
    ensure!(!missing.is_empty(), "{wanted:?} have no queries");
    let deadline = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        ensure!(Instant::now() < deadline, "no data: {missing:#?}");
        let mut left = Vec::new();
        for (title, query) in missing {
            if !prometheus.has_data(&query).await? {
                left.push((title, query));
            }
        }
        missing = left;
    }
    Ok(())
}

/// OP-04: with people about, every panel has something to show.
#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_a_town_at_work() -> Result<()> {
    let test = "monitoring::dashboards::every_panel_shows_a_town_at_work";
    let Some(programs) = servers::variable(test, "CARILLON_TEST_PROMETHEUS") else {
        return Ok(());
    };
    let Some(servers) = servers::stores(test) else {
        return Ok(());
    };
    let endpoint = crate::push::Endpoint::start().await?;
    let options = RealOptions {
        gateways: 2,
        messages: 2,
        spec: Town::spec(&endpoint),
        secrets: Some(endpoint.secrets().into()),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let prometheus = Prometheus::start(&programs, &Target::of_cluster(&cluster)).await?;
    let bases = cluster.gateways.iter().map(|role| role.base.clone());
    let town = Town::settle(bases.collect(), &endpoint).await?;
    let work = town.work();
    let shown = wait_data(
        &prometheus,
        &["overview", "messages", "gateway", "stores", "push"],
    )
    .await;
    work.abort();
    shown
}
