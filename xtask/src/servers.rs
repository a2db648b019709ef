//! The real servers of a test run: started before it, stopped after it, whatever happens in between.
//!
//! How they are installed and run is the business of the scripts in `testbed/`.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::image::Image;
use crate::process;

/// The test node's address: pods and this machine both reach what listens there.
pub const NODE_ADDRESS: &str = "10.244.0.1";

/// The test run's stores have ports and a folder of their own, so that stores that a developer keeps up stay up.
const STORE_SETTINGS: &[(&str, &str)] = &[
    ("CARILLON_CASSANDRA_PORT", "9342"),
    ("CARILLON_CASSANDRA_STORAGE_PORT", "7300"),
    ("CARILLON_REDIS_PORT", "6590"),
    ("CARILLON_REDIS_CLUSTER_PORT", "7590"),
    ("CARILLON_RABBITMQ_PORT", "5890"),
    ("CARILLON_RABBITMQ_EPMD_PORT", "4590"),
];

/// And so has its control plane.
const CONTROL_PLANE_SETTINGS: &[(&str, &str)] = &[
    ("CARILLON_CONTROL_PLANE_PORT", "6544"),
    ("CARILLON_CONTROL_PLANE_ETCD_PORT", "23795"),
];

/// Everything that tests read to find servers. A run without servers must not see them by accident.
pub const SERVER_VARIABLES: &[&str] = &[
    "CARILLON_TEST_SCYLLA",
    "CARILLON_TEST_REDIS",
    "CARILLON_TEST_REDIS_CLUSTER",
    "CARILLON_TEST_RABBITMQ",
    "CARILLON_TEST_STORES_ADDR",
    "CARILLON_TEST_CONTROL_PLANE",
    "CARILLON_TEST_KUBECONFIG",
    "CARILLON_TEST_KUBECTL",
    "CARILLON_TEST_HELM",
    "CARILLON_TEST_KUBECONFORM",
    "CARILLON_TEST_DEFINITIONS",
    "CARILLON_TEST_PROMETHEUS",
    "CARILLON_TEST_SMTP",
    "CARILLON_TEST_TILTFILE",
    "CARILLON_TEST_IMAGE",
    "CARILLON_TEST_OPERATOR_IMAGE",
    "CARILLON_TEST_TESTBED",
    "CARILLON_STORES_RUN",
    "KUBECONFIG",
];

/// One of the testbed's scripts.
pub fn script(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(process::root().join("testbed").join(name));
    command.args(arguments);
    command
}

/// Which cluster the tests may use.
#[derive(Clone, Copy, PartialEq)]
pub enum Cluster {
    /// The testbed's own node.
    Testbed,
    /// The one that the user's kubeconfig names, because the user said so.
    Current,
}

/// Servers that are up; dropping this stops those that it started.
#[derive(Default)]
pub struct Servers {
    started: Vec<Command>,
    environment: Vec<(String, String)>,
}

impl Servers {
    /// Starts the node, loads the images into it, and starts a control plane without a node, and the stores. What is there already is used as it is,
    /// and left alone afterwards.
    pub fn start(cluster: Cluster, images: &[Image]) -> Result<Self> {
        let mut servers = Self::default();
        let address = match cluster {
            Cluster::Testbed => {
                servers.start_node(images)?;
                NODE_ADDRESS.to_owned()
            }
            Cluster::Current => {
                servers.use_current_cluster()?;
                stores_address()?
            }
        };
        servers.start_control_plane()?;
        servers.start_stores(&address)?;
        servers.set(
            "CARILLON_TEST_TESTBED",
            process::root().join("testbed").display().to_string(),
        );
        for image in images {
            servers.set(image.variable, image.tag.clone());
        }
        Ok(servers)
    }

    /// Starts the stores alone, on this address.
    pub fn stores(address: &str) -> Result<Self> {
        let mut servers = Self::default();
        servers.start_stores(address)?;
        Ok(servers)
    }

    /// What the tests need to know of them.
    pub fn environment(&self) -> &[(String, String)] {
        &self.environment
    }

    fn set(&mut self, name: &str, value: String) {
        self.environment.push((name.to_owned(), value));
    }

    fn start_node(&mut self, images: &[Image]) -> Result<()> {
        let is_up = script("k8s", &["status"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !is_up {
            // Noted first: what is half up must be stopped as well.
            self.started.push(script("k8s", &["down"]));
            process::step("start the Kubernetes node", || {
                process::run(&mut script("k8s", &["up"]))
            })?;
        }
        for image in images {
            process::run(script("k8s", &["load-image"]).arg(&image.archive))?;
        }
        self.environment
            .extend(exports(&process::output(&mut script("k8s", &["env"]))?));
        Ok(())
    }

    /// A control plane of the test run's own, beside one that a developer keeps up.
    fn start_control_plane(&mut self) -> Result<()> {
        let run = cache_dir()?.join("run/test-control-plane");
        let control_plane = |argument: &str| {
            let mut command = script("control-plane", &[argument]);
            command
                .env("CARILLON_CONTROL_PLANE_RUN", &run)
                .envs(CONTROL_PLANE_SETTINGS.iter().copied());
            command
        };
        self.started.push(control_plane("down"));
        process::run(&mut control_plane("down"))?;
        process::step("start a control plane", || {
            process::run(&mut control_plane("up"))
        })?;
        let exports = exports(&process::output(&mut control_plane("env"))?);
        // The cluster's own helm, when it was given one.
        let known: Vec<String> = self
            .environment
            .iter()
            .map(|(name, _)| name.clone())
            .collect();
        self.environment.extend(
            exports
                .into_iter()
                .filter(|(name, _)| !known.contains(name)),
        );
        Ok(())
    }

    fn start_stores(&mut self, address: &str) -> Result<()> {
        let run = cache_dir()?.join("run/test-stores");
        let stores = |arguments: &[&str]| {
            let mut command = script("stores", arguments);
            command
                .env("CARILLON_STORES_RUN", &run)
                .env("CARILLON_STORES_ADDR", address)
                .envs(STORE_SETTINGS.iter().copied());
            command
        };
        self.started.push(stores(&["down"]));
        // Leftovers of a run that was killed would bring their data along.
        process::run(&mut stores(&["down"]))?;
        process::step("start the stores", || {
            process::run(&mut stores(&[
                "up",
                "cassandra",
                "redis",
                "redis-cluster",
                "rabbitmq",
            ]))
        })?;
        self.environment
            .extend(exports(&process::output(&mut stores(&["env"]))?));
        Ok(())
    }

    fn use_current_cluster(&mut self) -> Result<()> {
        let kubeconfig = match std::env::var_os("KUBECONFIG") {
            Some(path) => PathBuf::from(path),
            None => std::env::home_dir()
                .context("neither KUBECONFIG nor HOME is set")?
                .join(".kube/config"),
        };
        if !kubeconfig.exists() {
            bail!(
                "--use-current-cluster: there is no {}; set KUBECONFIG",
                kubeconfig.display()
            );
        }
        eprintln!(
            "    the tests use the cluster of {}; its nodes must have our images already",
            kubeconfig.display()
        );
        self.set("KUBECONFIG", kubeconfig.display().to_string());
        self.set("CARILLON_TEST_KUBECONFIG", kubeconfig.display().to_string());
        for (variable, program) in [
            ("CARILLON_TEST_KUBECTL", "kubectl"),
            ("CARILLON_TEST_HELM", "helm"),
        ] {
            self.set(
                variable,
                std::env::var(variable).unwrap_or_else(|_| program.to_owned()),
            );
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for command in self.started.iter_mut().rev() {
            if let Err(error) = process::run_regardless(command) {
                eprintln!("can't stop a server: {error:#}; `cargo xtask testbed down` tries again");
            }
        }
    }
}

/// Where a user's own cluster finds the stores of this machine.
fn stores_address() -> Result<String> {
    let address = std::env::var("CARILLON_STORES_ADDR").unwrap_or_default();
    let usable = address
        .parse::<std::net::IpAddr>()
        .is_ok_and(|address| !address.is_loopback() && !address.is_unspecified());
    if !usable {
        bail!(
            "--use-current-cluster: set CARILLON_STORES_ADDR to an address of this machine that the cluster's pods reach, \
             and from which the pods' addresses are reached; it is {address:?}"
        );
    }
    Ok(address)
}

/// The testbed's cache folder, by the same rule as in its scripts.
pub fn cache_dir() -> Result<PathBuf> {
    if let Some(cache) = std::env::var_os("CARILLON_CACHE") {
        return Ok(cache.into());
    }
    let base = match std::env::var_os("XDG_CACHE_HOME") {
        Some(base) => PathBuf::from(base),
        None => std::env::home_dir()
            .context("neither CARILLON_CACHE nor HOME is set")?
            .join(".cache"),
    };
    Ok(base.join("carillon"))
}

/// The variables in `export NAME=value` lines, where the value may be in single quotes.
fn exports(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_with_and_without_quotes() {
        let text = "export A=redis://h:1\nnoise\nexport B='c://h:1?node=h:2&node=h:3'\n";
        let expected = [("A", "redis://h:1"), ("B", "c://h:1?node=h:2&node=h:3")];
        assert_eq!(
            exports(text),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
