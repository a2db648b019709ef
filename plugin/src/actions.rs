//! What changes something, and logs.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Result, bail, ensure};

use crate::{
    Key, Role,
    kubectl::{Kubectl, name_of, selector},
};

fn of_role(name: &str, role: Role) -> String {
    let all = selector(name);
    match role.label() {
        Some(role) => format!("{all},app.kubernetes.io/component={role}"),
        None => all,
    }
}

/// Prints logs of every container of every pod, until they end or, if asked to follow, until the user stops it.
pub fn logs(
    kubectl: &Kubectl,
    name: Option<&str>,
    role: Role,
    follow: bool,
    tail: u32,
) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let selector = format!("--selector={}", of_role(name_of(&cluster), role));
    let (tail, follow) = (format!("--tail={tail}"), format!("--follow={follow}"));
    kubectl.show(&[
        "logs",
        &selector,
        "--all-containers",
        "--prefix",
        "--max-log-requests=200",
        &tail,
        &follow,
    ])
}

/// Marks the Deployments as `kubectl rollout restart` does; the operator leaves that mark alone.
pub fn restart(kubectl: &Kubectl, name: Option<&str>, role: Role) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let selector = format!("--selector={}", of_role(name_of(&cluster), role));
    let found = kubectl.output(&["get", "deployments", "--output=name", &selector])?;
    ensure!(
        !found.trim().is_empty(),
        "the operator has made no Deployment for this yet; `kubectl carillon status` says why"
    );
    kubectl.show(&["rollout", "restart", "deployment", &selector])
}

/// Sets `spec.paused`, or takes it away.
pub fn pause(kubectl: &Kubectl, name: Option<&str>, paused: bool) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let name = name_of(&cluster);
    let patch = match paused {
        true => r#"{"spec":{"paused":true}}"#,
        false => r#"{"spec":{"paused":null}}"#,
    };
    kubectl.output(&[
        "patch",
        "chatclusters.carillon.chat",
        name,
        "--type=merge",
        "--patch",
        patch,
    ])?;
    // The API server leaves out fields that the definition doesn't know.
    let is_paused = kubectl.chat_cluster(Some(name))?["spec"]["paused"] == true;
    ensure!(
        is_paused == paused,
        "the ChatCluster definition in this cluster has no spec.paused; apply the crds folder of a newer chart"
    );
    println!("{name} {}", if paused { "paused" } else { "resumed" });
    Ok(())
}

/// Deletes the Secret of a key; the operator makes it anew and rolls all pods.
pub fn rotate(kubectl: &Kubectl, name: Option<&str>, key: Key, yes: bool) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let name = name_of(&cluster);
    let (secret, effect) = match key {
        Key::Jwt => (
            format!("{name}-jwt"),
            "all pods roll, and everybody logs in again",
        ),
        Key::Internal => (
            format!("{name}-internal"),
            "all pods roll; until that is done, calls between old and new pods are refused",
        ),
    };
    if cluster["spec"]["paused"] == true {
        bail!("{name} is paused: nobody would make the key anew; resume it first");
    }
    if !yes {
        ensure!(
            std::io::stdin().is_terminal(),
            "rotating needs --yes when nobody can be asked: {effect}"
        );
        eprint!("Make {secret} anew? Within a minute {effect}. Type yes: ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        ensure!(answer.trim() == "yes", "left as it is");
    }
    kubectl.output(&["delete", "secret", &secret])?;
    println!("{secret} deleted; the operator makes it anew: {effect}");
    Ok(())
}
