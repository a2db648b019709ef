//! What changes something, and logs.

use anyhow::{Result, bail, ensure};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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

/// Asks the operator to replace a key, by an annotation with a value that it hasn't had yet.
pub fn rotate(kubectl: &Kubectl, name: Option<&str>, key: Key) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let name = name_of(&cluster);
    let (what, course) = match key {
        Key::Jwt => (
            "jwt",
            "the new key signs in about five minutes; the one before it goes with the last token that it signed",
        ),
        Key::Certificates => ("certificates", "pods take the new ones within two minutes"),
        Key::Ca => (
            "ca",
            "first every pod believes both authorities, then all certificates change, then the old authority is forgotten: about five minutes",
        ),
    };
    if cluster["spec"]["paused"] == true {
        bail!("{name} is paused: nobody would replace the key; resume it first");
    }
    let now = OffsetDateTime::now_utc().format(&Rfc3339)?;
    kubectl.output(&[
        "annotate",
        "chatclusters.carillon.chat",
        name,
        &format!("carillon.chat/rotate-{what}={now}"),
        "--overwrite",
    ])?;
    println!(
        "{name}: rotation of {what} asked for; {course}. Each step is an Event: kubectl events --for chatcluster/{name}"
    );
    Ok(())
}
