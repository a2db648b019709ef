//! A ChatCluster on real pods goes to another version under load, and back by itself from one that can't run. Part of ring 4's one
//! run (`cluster.rs`), which has what it needs.

use std::{
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    cluster::Kubernetes,
    faults::{Sender, check_room},
    world::client::Person,
};

/// Longest wait for an upgrade or its end; pods start one after the other.
const PATIENCE: Duration = Duration::from_secs(400);

/// What every order of this run has in common.
pub const MORE: &str = "  upgrade: {progressDeadline: 60s}\n";

fn wait_step(kubernetes: &Kubernetes, name: &str, to: &str, step: &str) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let cluster = kubernetes.get(&["chatcluster", name])?;
        let upgrade = &cluster["status"]["upgrade"];
        if upgrade["to"]["version"] == to && upgrade["step"] == step {
            return Ok(upgrade.clone());
        }
        ensure!(
            Instant::now() < deadline,
            "the upgrade to {to} is not at {step}: {}",
            cluster["status"]
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// The pods of the roles, by name.
fn pods(kubernetes: &Kubernetes, name: &str) -> Result<Vec<String>> {
    let selector =
        format!("app.kubernetes.io/instance={name},app.kubernetes.io/component!=migrate");
    let pods = kubernetes.get(&["pods", "-l", &selector])?;
    let mut names: Vec<String> = pods["items"]
        .as_array()
        .context("items")?
        .iter()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

/// Applies an order of `version`, with the image pulled never and maybe of another tag.
fn order(kubernetes: &Kubernetes, name: &str, version: &str, tag: &str) -> Result<()> {
    let more = format!("  image: {{pullPolicy: Never{tag}}}\n  version: {version}\n{MORE}");
    let (taken, said) = kubernetes.apply(&kubernetes.chat_cluster(name, &more))?;
    ensure!(taken, "{said}");
    Ok(())
}

/// The item 6: under load to the next version, then to one whose image isn't there, and nothing that was acknowledged is
/// lost; before that another operator, which restarts no pod.
pub async fn run(kubernetes: &Kubernetes, chart: &str, name: &str, service: &str) -> Result<()> {
    let before = pods(kubernetes, name)?;
    let restarted = "--set=logLevel=info";
    kubernetes.helm(&[
        "upgrade",
        "carillon",
        chart,
        "--reuse-values",
        restarted,
        "--wait",
    ])?;
    kubernetes.wait_condition(name, "Progressing", "False")?;
    ensure!(
        pods(kubernetes, name)? == before,
        "another operator restarted pods"
    );

    let person = Person::register(service, "upgrader").await?;
    let room = json!({"name": "upgrades", "description": "", "type": "public"});
    let room = person
        .ask(service, Method::POST, "/rooms", Some(&room))
        .await?;
    let sender = Sender {
        bases: vec![service.to_owned()],
        token: person.access_token.clone(),
        room: room["id"].as_str().context("id")?.to_owned(),
        name: "u".to_owned(),
        pace: Duration::from_millis(20),
        stop: Arc::new(AtomicBool::new(false)),
        acknowledged: Arc::default(),
    };
    let sending = tokio::spawn(sender.clone().run());

    let started = Instant::now();
    order(kubernetes, name, "0.1.1", "")?;
    let upgrade = wait_step(kubernetes, name, "0.1.1", "Done")?;
    ensure!(upgrade["from"]["version"] == "0.1.0", "{upgrade}");
    println!("to 0.1.1 after {} s", started.elapsed().as_secs());
    let upgraded = pods(kubernetes, name)?;
    ensure!(
        upgraded.iter().all(|pod| !before.contains(pod)),
        "pods of the version before are left"
    );
    kubernetes.wait_condition(name, "Available", "True")?;

    let started = Instant::now();
    order(kubernetes, name, "0.1.2", ", tag: broken")?;
    let back = wait_step(kubernetes, name, "0.1.2", "RolledBack")?;
    println!(
        "back from 0.1.2 after {} s: {}",
        started.elapsed().as_secs(),
        back["message"]
    );
    let degraded = kubernetes.wait_condition(name, "Degraded", "True")?;
    ensure!(degraded["reason"] == "UpgradeFailed", "{degraded}");
    ensure!(
        pods(kubernetes, name)? == upgraded,
        "pods that ran well were restarted"
    );
    kubernetes.wait_condition(name, "Available", "True")?;
    order(kubernetes, name, "0.1.1", "")?;
    kubernetes.wait_condition(name, "Degraded", "False")?;

    sender.stop.store(true, Ordering::Relaxed);
    sending.await??;
    let acknowledged = sender.acknowledged.lock().expect("no panic").clone();
    check_room(service, &person, &sender.room, &acknowledged).await?;
    let pause = acknowledged
        .windows(2)
        .map(|pair| pair[1].at - pair[0].at)
        .max()
        .context("nothing was sent")?;
    println!(
        "{} messages acknowledged, none lost; the longest pause {:.1} s",
        acknowledged.len(),
        pause.as_secs_f64()
    );
    Ok(())
}
