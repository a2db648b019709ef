//! A namespace of a test's own on the control plane without a node, and the operator as a process beside it: no pods run there, and nobody but the
//! test says how Jobs fare.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};

use super::{client, process, servers};

/// Held by whoever needs the ChatCluster definition: one test must not take it from another.
pub static DEFINITION: Mutex<()> = Mutex::const_new(());

const CRD: &str = "chatclusters.carillon.chat";

/// A program that was built beside `carillon`.
pub fn program(name: &str) -> PathBuf {
    let path = process::binary().with_file_name(name);
    assert!(path.exists(), "{} is not built", path.display());
    path
}

/// An API server with the ChatCluster definition, and a namespace that goes with this value.
pub struct ControlPlane {
    pub kubeconfig: PathBuf,
    pub namespace: String,
    kubectl: PathBuf,
    had_definition: bool,
    _definition: MutexGuard<'static, ()>,
}

impl ControlPlane {
    /// The one that the environment names, or `None` after saying that `test` is skipped.
    pub async fn from_environment(test: &str) -> Result<Option<Self>> {
        let names = ["CARILLON_TEST_CONTROL_PLANE", "CARILLON_TEST_KUBECTL"];
        let [Some(kubeconfig), Some(kubectl)] = names.map(|name| servers::variable(test, name))
        else {
            return Ok(None);
        };
        let lock = DEFINITION.lock().await;
        let unique = &uuid::Uuid::new_v4().simple().to_string()[..6];
        let mut plane = Self {
            kubeconfig: kubeconfig.into(),
            namespace: format!("carillon-it-{unique}"),
            kubectl: kubectl.into(),
            had_definition: true,
            _definition: lock,
        };
        plane.had_definition = plane.kubectl(&["get", "crd", CRD]).is_ok();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/carillon-operator/crds");
        let file = file.display().to_string();
        plane.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file])?;
        plane.kubectl(&["wait", "--for=condition=Established", "crd", CRD])?;
        plane.kubectl(&["create", "namespace", &plane.namespace])?;
        Ok(Some(plane))
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        Command::new(&self.kubectl)
            .args(["-n", &self.namespace])
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .output()
            .context("running kubectl")
    }

    /// `kubectl` in the namespace; its output. Fails with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(
            output.status.success(),
            "kubectl {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An object as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], arguments].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Applies objects.
    pub fn apply(&self, text: &str) -> Result<()> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("objects.yaml");
        std::fs::write(&file, text)?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])?;
        Ok(())
    }

    /// Orders a small platform on stores that aren't there.
    pub fn order(&self, name: &str) -> Result<()> {
        self.apply(&format!(
            "apiVersion: carillon.chat/v1alpha1
kind: ChatCluster
metadata: {{name: {name}}}
spec:
  media: {{replicas: 1, store: {{directory: {{ephemeral: true}}}}}}
  scylla: {{external: {{contactPoints: [\"scylla:9042\"], datacenter: dc1, replicationFactor: 1}}}}
  redis: {{external: {{url: \"redis://redis:6379\"}}}}
  rabbitmq: {{external: {{url: \"amqp://rabbitmq:5672\"}}}}
"
        ))
    }

    /// Waits until something holds.
    pub async fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(300);
        while !holds() {
            ensure!(Instant::now() < deadline, "{what}: not within 300 s");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let delete = |what: &[&str]| {
            let arguments = [&["delete", "--ignore-not-found", "--wait=false"], what].concat();
            if let Err(error) = self.kubectl(&arguments) {
                eprintln!("{what:?} may be left behind: {error:#}");
            }
        };
        delete(&["chatclusters", "--all"]);
        delete(&["namespace", &self.namespace]);
        if !self.had_definition {
            delete(&["crd", CRD]);
        }
    }
}

/// The operator as a process, until it is dropped.
pub struct Operator {
    child: Child,
    directory: TempDir,
    /// `host:port` of its metrics.
    pub address: String,
}

impl Operator {
    /// Starts it for one namespace and waits until it acts.
    pub async fn start(plane: &ControlPlane, port: u16) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let log = std::fs::File::create(directory.path().join("log"))?;
        let child = Command::new(program("carillon-operator"))
            .arg("run")
            .env("KUBECONFIG", &plane.kubeconfig)
            .env("WATCH_NAMESPACES", &plane.namespace)
            .env("POD_NAMESPACE", &plane.namespace)
            .env("POD_NAME", format!("operator-{port}"))
            .env("HTTP_PORT", port.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting carillon-operator")?;
        let mut operator = Self {
            child,
            directory,
            address: format!("127.0.0.1:{port}"),
        };
        let deadline = Instant::now() + Duration::from_secs(300);
        let url = format!("http://{}/metrics", operator.address);
        loop {
            if let Ok(answer) = client::http().get(&url).send().await
                && answer.text().await?.contains("carillon_operator_leader 1")
            {
                return Ok(operator);
            }
            let ended = operator.child.try_wait()?.is_some();
            ensure!(
                !ended && Instant::now() < deadline,
                "the operator does not lead:\n{}",
                operator.output()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What it printed.
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
