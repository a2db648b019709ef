//! `kubectl carillon`, called by a real `kubectl`, with the operator at work on a real API server. Pods needn't run for this.

use std::{
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::world::{
    control_plane::{ControlPlane, Operator, program},
    process::free_port,
    servers,
};

const ROLES: [&str; 6] = [
    "gateway",
    "auth",
    "message",
    "presence",
    "media",
    "notification",
];

/// A user's shell: `kubectl` and the plugin on the PATH.
struct Shell<'a> {
    plane: &'a ControlPlane,
    programs: TempDir,
}

impl<'a> Shell<'a> {
    fn new(plane: &'a ControlPlane, kubectl: &str) -> Result<Self> {
        let programs = tempfile::tempdir()?;
        symlink(kubectl, programs.path().join("kubectl"))?;
        symlink(
            program("kubectl-carillon"),
            programs.path().join("kubectl-carillon"),
        )?;
        Ok(Self { plane, programs })
    }

    /// `kubectl carillon` with these arguments, in the plane's namespace.
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let path = std::env::var("PATH").unwrap_or_default();
        Command::new(self.programs.path().join("kubectl"))
            .arg("carillon")
            .args(arguments)
            .args(["-n", &self.plane.namespace])
            .env("KUBECONFIG", &self.plane.kubeconfig)
            .env("PATH", format!("{}:{path}", self.programs.path().display()))
            .current_dir(self.programs.path())
            .stdin(Stdio::null())
            .output()
            .context("running kubectl carillon")
    }

    /// What it prints when it succeeds.
    fn said(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What it says when it fails.
    fn refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(!output.status.success(), "{arguments:?} did not fail");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// When a role's pods were last told to start anew.
    fn restarted(&self, role: &str) -> Result<Value> {
        let deployment = self.plane.get(&["deployment", &format!("town-{role}")])?;
        let annotations = &deployment["spec"]["template"]["metadata"]["annotations"];
        Ok(annotations["kubectl.kubernetes.io/restartedAt"].clone())
    }

    fn secret(&self, name: &str) -> Result<Value> {
        self.plane.get(&["secret", name])
    }
}

/// CLI-01: what the plugin promises, from a picture to a bundle without secrets.
#[tokio::test(flavor = "multi_thread")]
async fn cluster_kubectl_carillon() -> Result<()> {
    let test = "plugin::cluster_kubectl_carillon";
    let Some(kubectl) = servers::variable(test, "CARILLON_TEST_KUBECTL") else {
        return Ok(());
    };
    let Some(plane) = ControlPlane::from_environment(test).await? else {
        return Ok(());
    };
    let shell = Shell::new(&plane, &kubectl)?;
    let none = shell.refused(&["status"])?;
    ensure!(none.contains("no ChatCluster"), "{none}");

    let _operator = Operator::start(&plane, free_port()).await?;
    plane.order("town")?;
    // Roles are made after the schema step, and nobody may be there to take it.
    plane
        .wait("the migration Job", || {
            plane
                .get(&["jobs"])
                .is_ok_and(|jobs| jobs["items"] != serde_json::json!([]))
        })
        .await?;
    migrated(&plane)?;
    plane
        .wait("a Deployment for each role", || {
            ROLES
                .iter()
                .all(|role| plane.get(&["deployment", &format!("town-{role}")]).is_ok())
        })
        .await?;
    picture(&shell).await?;
    restarts(&shell).await?;
    pauses(&shell)?;
    rotates(&shell).await?;
    logs(&shell)?;
    bundle(&shell)?;

    plane.order("village")?;
    let which = shell.refused(&["status"])?;
    ensure!(
        which.contains("town") && which.contains("village"),
        "{which}"
    );
    Ok(())
}

/// Says that the migration is done, as the Job's controller would: on a plane without nodes nobody else does.
fn migrated(plane: &ControlPlane) -> Result<()> {
    let jobs = plane.get(&["jobs"])?;
    let job = jobs["items"][0]["metadata"]["name"]
        .as_str()
        .context("a Job")?;
    let status = r#"{"status":{"startTime":"2026-01-01T00:00:00Z","completionTime":"2026-01-01T00:00:01Z","succeeded":1,"conditions":[
        {"type":"SuccessCriteriaMet","status":"True","lastTransitionTime":"2026-01-01T00:00:01Z"},
        {"type":"Complete","status":"True","lastTransitionTime":"2026-01-01T00:00:01Z"}]}}"#;
    plane.kubectl(&[
        "patch",
        "job",
        job,
        "--subresource=status",
        "--type=merge",
        "--patch",
        status,
    ])?;
    Ok(())
}

async fn picture(shell: &Shell<'_>) -> Result<()> {
    let all_shown = || {
        shell
            .said(&["status"])
            .is_ok_and(|text| ROLES.iter().all(|role| text.contains(role)))
    };
    shell
        .plane
        .wait("every role in the picture", all_shown)
        .await?;
    let text = shell.said(&["status", "town"])?;
    ensure!(
        text.contains("Available") && text.contains("town") && !text.contains('\x1b'),
        "{text}"
    );
    let json: Value = serde_json::from_str(&shell.said(&["status", "town", "-o", "json"])?)?;
    let components = json["components"].as_array().context("components")?;
    ensure!(
        json["name"] == "town" && components.len() == ROLES.len() && json["paused"] == false,
        "{json:#}"
    );
    let missing = shell.refused(&["status", "city"])?;
    ensure!(missing.contains("city"), "{missing}");
    Ok(())
}

/// The operator leaves the mark of a restart alone, also when it changes the same Deployment.
async fn restarts(shell: &Shell<'_>) -> Result<()> {
    shell.said(&["restart", "gateway", "town"])?;
    let marked = shell.restarted("gateway")?;
    ensure!(marked.is_string(), "gateway was not restarted");
    ensure!(shell.restarted("auth")?.is_null(), "auth was restarted too");
    let change = r#"{"spec":{"gateway":{"replicas":3}}}"#;
    let plane = shell.plane;
    plane.kubectl(&["patch", "chatcluster", "town", "--type=merge", "-p", change])?;
    plane
        .wait("three gateways", || {
            plane
                .get(&["deployment", "town-gateway"])
                .is_ok_and(|deployment| deployment["spec"]["replicas"] == 3)
        })
        .await?;
    ensure!(
        shell.restarted("gateway")? == marked,
        "the operator took the mark away"
    );
    shell.said(&["restart", "all"])?;
    for role in ROLES {
        ensure!(
            shell.restarted(role)?.is_string(),
            "{role} was not restarted"
        );
    }
    let unknown = shell.refused(&["restart", "gatewya"])?;
    ensure!(unknown.contains("gateway"), "{unknown}");
    Ok(())
}

/// A definition without the field is noticed, not taken for success.
fn pauses(shell: &Shell<'_>) -> Result<()> {
    let plane = shell.plane;
    let explained = plane.kubectl(&["explain", "chatcluster.spec.paused"]);
    if explained.is_err() {
        let refused = shell.refused(&["pause"])?;
        ensure!(refused.contains("spec.paused"), "{refused}");
        return Ok(());
    }
    shell.said(&["pause"])?;
    ensure!(plane.get(&["chatcluster", "town"])?["spec"]["paused"] == true);
    ensure!(shell.said(&["status"])?.contains("paused"));
    let refused = shell.refused(&["rotate", "ca"])?;
    ensure!(refused.contains("resume"), "{refused}");
    shell.said(&["resume"])?;
    ensure!(plane.get(&["chatcluster", "town"])?["spec"]["paused"] != true);
    Ok(())
}

async fn rotates(shell: &Shell<'_>) -> Result<()> {
    // Without pods nobody has to follow, so that each goes through at once; but for the key of tokens, which others may have in a cache.
    for (key, secret) in [
        ("certificates", "town-certificates"),
        ("ca", "town-ca"),
        ("jwt", "town-jwt"),
    ] {
        let before = shell.secret(secret)?;
        shell.said(&["rotate", key])?;
        shell
            .plane
            .wait("a new key", || {
                shell.secret(secret).is_ok_and(|now| {
                    now["metadata"]["uid"] == before["metadata"]["uid"]
                        && now["data"] != before["data"]
                })
            })
            .await?;
    }
    let jwt = shell.secret("town-jwt")?;
    ensure!(
        jwt["data"]["next.pem"].is_string(),
        "the new key waits to be known"
    );
    Ok(())
}

/// Pods are chosen by role. On nodes that aren't there is nothing to read: that the API server says so of the right ones is the proof.
fn logs(shell: &Shell<'_>) -> Result<()> {
    for role in ["gateway", "message"] {
        shell.plane.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {role}-lonely
  labels: {{app.kubernetes.io/managed-by: carillon-operator, app.kubernetes.io/instance: lonely, app.kubernetes.io/component: {role}}}
spec:
  nodeName: node-of-{role}
  containers: [{{name: {role}, image: none}}]
"
        ))?;
    }
    shell.plane.order("lonely")?;
    let of_gateway = shell.refused(&["logs", "lonely", "--role", "gateway"])?;
    ensure!(
        of_gateway.contains("node-of-gateway") && !of_gateway.contains("node-of-message"),
        "{of_gateway}"
    );
    let of_message = shell.refused(&["logs", "lonely", "-r", "message", "--tail=1"])?;
    ensure!(of_message.contains("node-of-message"), "{of_message}");
    shell
        .plane
        .kubectl(&["delete", "chatcluster", "lonely", "--wait=true"])?;
    Ok(())
}

/// Everything that helps is in it, and nothing that opens a door.
fn bundle(shell: &Shell<'_>) -> Result<()> {
    let plane = shell.plane;
    // Where nobody should write a secret, and somebody does.
    plane.apply(
        "apiVersion: v1
kind: ConfigMap
metadata:
  name: careless
  labels: {app.kubernetes.io/managed-by: carillon-operator, app.kubernetes.io/instance: town}
data:
  url: amqp://guest:canary-password@rabbitmq:5672
  header: 'Authorization: Bearer canary-0123456789abcdef'
",
    )?;
    shell.said(&["support-bundle", "town", "--file", "bundle.tar.gz"])?;
    let file = shell.programs.path().join("bundle.tar.gz");
    let mode = std::fs::metadata(&file)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "others may read it: {mode:o}");
    let again = shell.refused(&["support-bundle", "town", "--file", "bundle.tar.gz"])?;
    ensure!(again.contains("bundle.tar.gz"), "{again}");
    let unpacked = tempfile::tempdir()?;
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(&file)
        .arg("-C")
        .arg(unpacked.path())
        .status()?;
    ensure!(status.success(), "tar can't read the bundle");
    let mut everything = String::new();
    read_all(unpacked.path(), &mut everything)?;
    for needed in [
        "kind: ChatCluster",
        "town-gateway",
        "careless",
        "town-jwt",
        "[credentials]@rabbitmq:5672",
        "serverVersion",
    ] {
        let found = everything.contains(needed)
            || needed == "serverVersion" && everything.contains("Server Version");
        ensure!(found, "the bundle has no {needed}");
    }
    let mut secrets = vec![
        "canary-password".to_owned(),
        "canary-0123456789abcdef".to_owned(),
    ];
    for name in ["town-jwt", "town-ca", "town-certificates"] {
        let secret = shell.secret(name)?;
        for (_, value) in secret["data"].as_object().context("data")? {
            let encoded = value.as_str().context("base64")?;
            let decoded = base64::engine::general_purpose::STANDARD.decode(encoded)?;
            secrets.push(encoded.to_owned());
            // A line of it would be enough.
            let decoded = String::from_utf8_lossy(&decoded).into_owned();
            secrets.extend(
                decoded
                    .lines()
                    .filter(|line| line.len() > 20 && !line.starts_with("-----"))
                    .map(str::to_owned),
            );
        }
    }
    ensure!(secrets.len() > 4, "the Secrets hold nothing to look for");
    for secret in secrets {
        ensure!(!everything.contains(&secret), "a secret is in the bundle");
    }
    Ok(())
}

fn read_all(folder: &Path, into: &mut String) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            read_all(&path, into)?;
        } else {
            into.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
