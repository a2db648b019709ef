//! The operator's real program as a process, which can be killed, paused and resumed.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::plane::{Plane, RELEASE};
use crate::proxy::{Log, Proxy};

/// One replica: an identity, its way to the API server, and the process when there is one. One that ends by itself is started
/// again, as a kubelet does it: on a machine that stalls for long a leader rightly gives up.
pub struct Replica {
    pub proxy: Proxy,
    namespace: String,
    identity: String,
    folder: TempDir,
    child: Arc<Mutex<Option<Child>>>,
    kept: Arc<AtomicBool>,
}

impl Replica {
    /// A replica that doesn't run yet, in `namespace`, under the chart's rights.
    pub async fn new(plane: &Plane, namespace: &str, identity: &str, log: Log) -> Result<Self> {
        let proxy = Proxy::start(identity, plane.anonymous()?, log).await?;
        let folder = TempDir::new()?;
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": proxy.url } }],
            "users": [{ "name": "test", "user": { "token": plane.token(namespace, RELEASE).await? } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
        });
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_string())?;
        Ok(Replica {
            proxy,
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            folder,
            child: Arc::new(Mutex::new(None)),
            kept: Arc::new(AtomicBool::new(false)),
        })
    }

    /// Starts the process. A restart keeps the identity, as a container's in its pod.
    pub fn start(&self) -> Result<()> {
        let mut child = self.child.lock().unwrap();
        ensure!(child.is_none(), "{} runs already", self.identity);
        let mut command = self.command()?;
        *child = Some(command.spawn().context("the operator's program")?);
        self.kept.store(true, Ordering::SeqCst);
        let (kept, child) = (Arc::downgrade(&self.kept), Arc::clone(&self.child));
        std::thread::spawn(move || {
            while let Some(kept) = kept.upgrade() {
                let mut child = child.lock().unwrap();
                if !kept.load(Ordering::SeqCst) {
                    return;
                }
                if let Some(running) = child.as_mut()
                    && running.try_wait().is_ok_and(|ended| ended.is_some())
                    && let Ok(again) = command.spawn()
                {
                    *running = again;
                }
                drop((child, kept));
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        Ok(())
    }

    /// From now on the process may end for good.
    pub fn let_end(&self) {
        // Under the lock: whoever starts it again has looked already, or looks after this.
        let _child = self.child.lock().unwrap();
        self.kept.store(false, Ordering::SeqCst);
    }

    fn command(&self) -> Result<Command> {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))?;
        // Another build of it, for figures.
        let program = std::env::var_os("CARILLON_TEST_OPERATOR")
            .unwrap_or_else(|| env!("CARGO_BIN_EXE_carillon-operator").into());
        let mut command = Command::new(program);
        command
            .arg("run")
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .env("WATCH_NAMESPACES", &self.namespace)
            .env("POD_NAMESPACE", &self.namespace)
            .env("POD_NAME", &self.identity)
            .env("LEASE_NAME", RELEASE)
            .env("HTTP_PORT", "0")
            .env("CARILLON_IMAGE", "registry.example.com/carillon:0.1.0")
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(command)
    }

    /// From now on: kills the process when its `count`-th write has been made, before it hears of it.
    pub fn die_at_write(&self, count: usize) {
        self.let_end();
        let child = Arc::clone(&self.child);
        self.proxy.on_write(Some(Box::new(move |written| {
            if written == count
                && let Some(child) = child.lock().unwrap().as_mut()
            {
                let _ = child.kill();
            }
        })));
    }

    /// Whether the process, which may end, has ended or was killed; it is forgotten then.
    pub fn has_ended(&self) -> Result<bool> {
        let mut child = self.child.lock().unwrap();
        let Some(running) = child.as_mut() else {
            return Ok(true);
        };
        let ended = running.try_wait()?.is_some();
        if ended {
            *child = None;
        }
        Ok(ended)
    }

    /// Kills the process, if there is one.
    pub fn kill(&self) -> Result<()> {
        self.let_end();
        if let Some(mut child) = self.child.lock().unwrap().take() {
            let _ = child.kill();
            child.wait()?;
        }
        Ok(())
    }

    /// Sends a signal by name: `STOP`, `CONT`, `TERM`.
    pub fn signal(&self, name: &str) -> Result<()> {
        let child = self.child.lock().unwrap();
        let id = child.as_ref().context("no process")?.id();
        let sent = Command::new("kill")
            .args(["-s", name, &id.to_string()])
            .status()?;
        ensure!(sent.success(), "kill -s {name} {id}");
        Ok(())
    }

    /// Memory of the process, bytes: what it holds, and all of it with the program's own pages (RSS).
    pub fn memory(&self) -> Result<(u64, u64)> {
        let id = {
            let child = self.child.lock().unwrap();
            child.as_ref().context("no process")?.id()
        };
        let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
        let bytes = |field: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kibibytes = line.context("a line")?.trim().trim_end_matches(" kB");
            Ok(kibibytes.parse::<u64>()? * 1024)
        };
        Ok((bytes("RssAnon:")?, bytes("VmRSS:")?))
    }

    /// What the process said, all its lives.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} may be left behind: {error:#}", self.identity);
        }
        if std::thread::panicking() {
            eprintln!("--- {} said:\n{}", self.identity, self.said());
        }
    }
}
