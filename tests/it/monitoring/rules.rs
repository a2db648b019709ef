//! The rules by themselves: valid, each alert with a test and a page.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Result, ensure};

use super::prometheus::{chart, rules};
use crate::world::servers;

/// The alerts by name.
fn alerts() -> Result<BTreeSet<String>> {
    let text = rules()?;
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .map(str::to_owned)
        .collect())
}

/// OP-04: Prometheus takes the rules; each alert fires when it should, and clears.
#[test]
fn the_rules_hold_what_they_promise() -> Result<()> {
    let Some(programs) = servers::variable(
        "monitoring::rules::the_rules_hold_what_they_promise",
        "CARILLON_TEST_PROMETHEUS",
    ) else {
        return Ok(());
    };
    let file = chart().join("rules/carillon.yaml");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/monitoring/rules.test.yaml");
    for (task, file) in [("check", &file), ("test", &tests)] {
        let output = Command::new(Path::new(&programs).join("promtool"))
            .args([task, "rules"])
            .arg(file)
            .output()?;
        ensure!(
            output.status.success(),
            "promtool {task} rules: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

/// Each alert has a page that says what to do, and a test in which it fires and clears; no page is left over.
#[test]
fn every_alert_has_a_page_and_a_test() -> Result<()> {
    let tests = include_str!("rules.test.yaml");
    let pages = chart().join("../../docs/runbooks");
    let alerts = alerts()?;
    ensure!(alerts.len() > 10, "{alerts:?}");
    for alert in &alerts {
        let page = std::fs::read_to_string(pages.join(format!("{alert}.md")))?;
        for needed in ["## What it means", "## How to look", "## What to do"] {
            ensure!(page.contains(needed), "{alert}.md has no {needed:?}");
        }
        let linked = format!("runbook_url: docs/runbooks/{alert}.md");
        ensure!(rules()?.contains(&linked), "{alert} has no {linked}");
        let of_alert: Vec<&str> = tests
            .split("  - name: ")
            .filter(|test| test.starts_with(alert) && test[alert.len()..].starts_with([',', '\n']))
            .collect();
        let fires = of_alert.iter().any(|test| test.contains("value: 1}"));
        let clears = of_alert.iter().any(|test| {
            test.rsplit("eval_time")
                .next()
                .is_some_and(|last| last.contains("exp_samples: []"))
        });
        ensure!(
            fires && clears,
            "{alert} has no test in which it fires and clears"
        );
    }
    for page in std::fs::read_dir(&pages)? {
        let name = page?.file_name().to_string_lossy().into_owned();
        ensure!(
            alerts.contains(name.trim_end_matches(".md")),
            "{name} is no alert's"
        );
    }
    Ok(())
}
