//! The crates are what ARCHITECTURE.md says they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the project's root")
}

/// Names of crates: ours, and others.
type Dependencies = (BTreeSet<String>, BTreeSet<String>);

/// Our crates with their dependencies of ours, without dev-dependencies, and the outside ones.
fn dependencies() -> Result<BTreeMap<String, Dependencies>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut found = BTreeMap::new();
    for package in packages {
        let mut of_ours = BTreeSet::new();
        let mut outside = BTreeSet::new();
        for dependency in package["dependencies"].as_array().context("dependencies")? {
            let name = dependency["name"].as_str().context("name")?;
            if dependency["kind"] == "dev" {
                continue;
            }
            if ours.contains(name) {
                of_ours.insert(name.to_owned())
            } else {
                outside.insert(name.to_owned())
            };
        }
        found.insert(
            package["name"].as_str().context("name")?.to_owned(),
            (of_ours, outside),
        );
    }
    Ok(found)
}

/// The table under "Crates": `| crate | folder | depends on | ...`.
#[test]
fn the_table_of_architecture_is_true() -> Result<()> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    ensure!(
        text.lines().count() <= 200,
        "ARCHITECTURE.md has {} lines, at most 200",
        text.lines().count()
    );
    let mut table = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells.len() < 4 || !cells[1].starts_with('`') {
            continue;
        }
        let depends = cells[2]
            .split(',')
            .map(|name| name.trim().trim_matches('`').to_owned())
            .filter(|name| !name.is_empty() && name != "–");
        table.insert(
            cells[0].trim_matches('`').to_owned(),
            depends.collect::<BTreeSet<String>>(),
        );
    }
    for (name, (of_ours, _)) in dependencies()? {
        let said = table
            .remove(&name)
            .with_context(|| format!("{name} is not in ARCHITECTURE.md's table"))?;
        ensure!(
            said == of_ours,
            "{name} depends on {of_ours:?}, ARCHITECTURE.md says {said:?}"
        );
    }
    ensure!(
        table.is_empty(),
        "ARCHITECTURE.md names crates that aren't there: {table:?}"
    );
    Ok(())
}

/// Drivers and frameworks have one owner each.
#[test]
fn each_driver_has_one_owner() -> Result<()> {
    let owners = [
        ("kube", "carillon-operator"),
        ("tonic", "carillon-rpc"),
        ("axum", "carillon-gateway"),
        ("scylla", "carillon-adapters"),
        ("fred", "carillon-adapters"),
        ("lapin", "carillon-adapters"),
        ("fjall", "carillon-adapters"),
        ("object_store", "carillon-adapters"),
        ("jsonwebtoken", "carillon-auth"),
        ("argon2", "carillon-auth"),
        ("opentelemetry", "carillon-telemetry"),
    ];
    let found = dependencies()?;
    for (driver, owner) in owners {
        let users: Vec<&String> = found
            .iter()
            .filter(|(_, (_, outside))| outside.contains(driver))
            .map(|(name, _)| name)
            .collect();
        ensure!(
            users == [owner],
            "{driver} is used by {users:?}, only {owner} may"
        );
    }
    let (_, domain) = &found["carillon-domain"];
    ensure!(!domain.contains("tokio"), "the domain knows tokio");
    Ok(())
}
