//! The support bundle: what the cluster says of a ChatCluster and its children, in one file.
//!
//! Secrets are listed by name, as a table that the API server prints: their data never gets here. Everything else goes through
//! `redact` all the same.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, write::GzEncoder};
use time::{OffsetDateTime, macros::format_description};

use crate::{
    kubectl::{Kubectl, name_of, selector},
    redact::redact,
};

/// Kinds of children that hold no secret.
const KINDS: &[&str] = &[
    "deployments",
    "replicasets",
    "pods",
    "services",
    "configmaps",
    "serviceaccounts",
    "jobs",
    "poddisruptionbudgets",
    "horizontalpodautoscalers",
    "networkpolicies",
    "ingresses",
];

/// Writes the bundle and prints where. What can't be read is noted in it under `errors.txt`.
pub fn write(
    kubectl: &Kubectl,
    name: Option<&str>,
    file: Option<PathBuf>,
    tail: u32,
) -> Result<()> {
    let cluster = kubectl.chat_cluster(name)?;
    let name = name_of(&cluster);
    let path = match file {
        Some(file) => file,
        None => default_file(name)?,
    };
    let mut bundle = Bundle::create(&path)?;
    let selector = format!("--selector={}", selector(name));
    bundle.add(
        "chatcluster.yaml",
        kubectl.output(&["get", "chatclusters.carillon.chat", name, "--output=yaml"]),
    )?;
    bundle.add(
        "description.txt",
        kubectl.output(&["describe", "chatclusters.carillon.chat", name]),
    )?;
    for kind in KINDS {
        bundle.add(
            &format!("objects/{kind}.yaml"),
            kubectl.output(&["get", kind, &selector, "--output=yaml"]),
        )?;
    }
    bundle.add(
        "secrets.txt",
        kubectl.output(&["get", "secrets", &selector]),
    )?;
    bundle.add(
        "events.txt",
        kubectl.output(&["get", "events", "--sort-by=.lastTimestamp", "--output=wide"]),
    )?;
    bundle.add("version.txt", kubectl.output(&["version"]))?;
    let pods = kubectl.output(&["get", "pods", &selector, "--output=name"]);
    for pod in pods.unwrap_or_default().lines() {
        for (ending, previous) in [("log", "false"), ("previous.log", "true")] {
            let logs = kubectl.output(&[
                "logs",
                pod,
                "--all-containers",
                "--prefix",
                "--timestamps",
                &format!("--tail={tail}"),
                &format!("--previous={previous}"),
            ]);
            // Most containers have no past.
            if previous == "false" || logs.is_ok() {
                let pod = pod.trim_start_matches("pod/");
                bundle.add(&format!("logs/{pod}.{ending}"), logs)?;
            }
        }
    }
    bundle.finish()?;
    println!("{}", path.display());
    Ok(())
}

fn default_file(name: &str) -> Result<PathBuf> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let now = OffsetDateTime::now_utc().format(format)?;
    Ok(format!("carillon-{name}-{now}.tar.gz").into())
}

struct Bundle {
    tar: tar::Builder<GzEncoder<File>>,
    errors: String,
}

impl Bundle {
    /// A new file that only its owner reads: an existing one is somebody else's, or another bundle.
    fn create(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(Self {
            tar: tar::Builder::new(GzEncoder::new(file, Compression::default())),
            errors: String::new(),
        })
    }

    fn add(&mut self, name: &str, text: Result<String>) -> Result<()> {
        match text {
            Ok(text) => self.put(name, &redact(&text)),
            Err(error) => {
                self.errors
                    .push_str(&redact(&format!("{name}: {error:#}\n")));
                Ok(())
            }
        }
    }

    fn put(&mut self, name: &str, text: &str) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        self.tar
            .append_data(&mut header, name, text.as_bytes())
            .with_context(|| format!("can't add {name} to the bundle"))
    }

    fn finish(mut self) -> Result<()> {
        let errors = std::mem::take(&mut self.errors);
        if !errors.is_empty() {
            self.put("errors.txt", &errors)?;
        }
        let mut file = self.tar.into_inner()?.finish()?;
        file.flush()?;
        Ok(())
    }
}
