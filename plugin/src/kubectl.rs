//! The user's `kubectl`, and which ChatCluster is meant.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Runs `kubectl` where the user said.
pub struct Kubectl {
    place: Vec<String>,
}

impl Kubectl {
    /// With the flags that were given; what wasn't is `kubectl`'s own choice.
    pub fn new(
        namespace: Option<String>,
        context: Option<String>,
        kubeconfig: Option<PathBuf>,
    ) -> Self {
        let kubeconfig = kubeconfig.map(|path| path.display().to_string());
        let flags = [
            ("--namespace", namespace),
            ("--context", context),
            ("--kubeconfig", kubeconfig),
        ];
        let place = flags
            .into_iter()
            .filter_map(|(flag, value)| value.map(|value| format!("{flag}={value}")))
            .collect();
        Self { place }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(&self.place).args(arguments);
        command
    }

    /// What it prints; an error is what it says.
    pub fn output(&self, arguments: &[&str]) -> Result<String> {
        let output = self
            .command(arguments)
            .stdin(Stdio::null())
            .output()
            .context("can't start kubectl; is it on the PATH?")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}", said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Makes an object; what `kubectl` prints of it.
    pub fn create(&self, object: &Value) -> Result<String> {
        let mut child = self
            .command(&["create", "--filename=-", "--output=name"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("can't start kubectl; is it on the PATH?")?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it can't be written, kubectl has ended, and says why.
            let _ = stdin.write_all(object.to_string().as_bytes());
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{}", said.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs it in the user's terminal.
    pub fn show(&self, arguments: &[&str]) -> Result<()> {
        let status = self
            .command(arguments)
            .status()
            .context("can't start kubectl; is it on the PATH?")?;
        if !status.success() {
            // It has said why.
            std::process::exit(status.code().unwrap_or(1));
        }
        Ok(())
    }

    /// The ChatCluster of this name, or the only one of the namespace.
    pub fn chat_cluster(&self, name: Option<&str>) -> Result<Value> {
        const KIND: &str = "chatclusters.carillon.chat";
        if let Some(name) = name {
            let text = self.output(&["get", KIND, name, "--output=json"])?;
            return serde_json::from_str(&text).context("kubectl printed no JSON");
        }
        let text = self.output(&["get", KIND, "--output=json"])?;
        let mut list: Value = serde_json::from_str(&text).context("kubectl printed no JSON")?;
        let items = list["items"].as_array_mut().context("no list")?;
        match items.len() {
            1 => Ok(items.remove(0)),
            0 => bail!("there is no ChatCluster in this namespace; --namespace names another"),
            _ => {
                let names: Vec<&str> = items.iter().map(name_of).collect();
                bail!("which ChatCluster? There are {}", names.join(", "))
            }
        }
    }
}

/// An object's name.
pub fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// The labels of what the operator made for a ChatCluster.
pub fn selector(name: &str) -> String {
    format!("app.kubernetes.io/managed-by=carillon-operator,app.kubernetes.io/instance={name}")
}
