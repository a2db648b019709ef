//! Cargo's builds, and where it put what it built.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, Running};

/// A program that cargo built.
#[derive(Debug, Clone, PartialEq)]
pub struct Artifact {
    /// The package's name.
    pub package: String,
    /// The folder of the package's manifest.
    pub package_dir: PathBuf,
    /// The target's name: a library's, a binary's, or a test's.
    pub target: String,
    /// `lib`, `bin`, `test`, …
    pub kind: String,
    /// Whether it runs the target's tests, instead of being the target.
    pub is_test: bool,
    /// The program itself.
    pub executable: PathBuf,
}

/// What one build produced.
#[derive(Debug)]
pub struct Build {
    /// Every program of it.
    pub artifacts: Vec<Artifact>,
}

impl Build {
    /// The path of a binary target.
    pub fn binary(&self, name: &str) -> Result<&Path> {
        self.program("bin", name)
    }

    /// The path of an example.
    pub fn example(&self, name: &str) -> Result<&Path> {
        self.program("example", name)
    }

    fn program(&self, kind: &str, name: &str) -> Result<&Path> {
        self.artifacts
            .iter()
            .find(|artifact| !artifact.is_test && artifact.kind == kind && artifact.target == name)
            .map(|artifact| artifact.executable.as_path())
            .with_context(|| format!("the build made no {kind} called {name}"))
    }
}

/// `cargo build` with these arguments. Diagnostics go to standard error as always.
pub fn build(arguments: &[&str]) -> Result<Build> {
    collect(process::cargo().arg("build").args(arguments))
}

/// `cargo clippy` over everything, where a warning is an error.
pub fn clippy() -> Command {
    let mut command = process::cargo();
    command.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]);
    command
}

/// Runs a cargo command that builds, and collects the programs that it reports. The command has no arguments for
/// rustc yet: use [`collect_with`] for those.
pub fn collect(command: &mut Command) -> Result<Build> {
    collect_with(command, &[])
}

/// Like [`collect`], with arguments for rustc after `--`.
pub fn collect_with(command: &mut Command, rustc_arguments: &[&str]) -> Result<Build> {
    command.arg("--message-format=json-render-diagnostics");
    if !rustc_arguments.is_empty() {
        command.arg("--").args(rustc_arguments);
    }
    let what = process::describe(command);
    let mut running = Running::start(command.stdout(Stdio::piped()))?;
    let mut artifacts = Vec::new();
    if let Some(stdout) = running.child().stdout.take() {
        for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)) {
            artifacts.extend(parse_artifact(
                &line.context("cargo's output is unreadable")?,
            ));
        }
    }
    if !running.succeeded()? {
        bail!("`{what}` failed; what it said is above");
    }
    Ok(Build { artifacts })
}

/// The program that a line of cargo's JSON messages tells of, if it tells of one.
fn parse_artifact(line: &str) -> Option<Artifact> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    let package_dir = Path::new(message["manifest_path"].as_str()?)
        .parent()?
        .to_path_buf();
    Some(Artifact {
        package: package_name(message["package_id"].as_str()?),
        package_dir,
        target: message["target"]["name"].as_str()?.to_owned(),
        kind: message["target"]["kind"][0].as_str()?.to_owned(),
        is_test: message["profile"]["test"].as_bool()?,
        executable: message["executable"].as_str()?.into(),
    })
}

/// The name in a package id: `path+file:///x/domain#carillon-domain@0.1.0`, or `path+file:///x/xtask#0.1.0` when the
/// folder's name says it.
fn package_name(id: &str) -> String {
    let (url, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _version)) => name.to_owned(),
        None => url.rsplit('/').next().unwrap_or(url).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_told_from_the_program_itself() {
        let line = |test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///x/services/carillon#0.1.0","manifest_path":"/x/services/carillon/Cargo.toml","target":{{"kind":["bin"],"name":"carillon"}},"profile":{{"test":{test}}},"executable":"/x/target/debug/carillon"}}"#
            )
        };
        let build = Build {
            artifacts: [true, false]
                .iter()
                .filter_map(|test| parse_artifact(&line(*test)))
                .collect(),
        };
        assert_eq!(build.artifacts.len(), 2);
        assert_eq!(build.artifacts[0].package, "carillon");
        assert_eq!(
            build.artifacts[0].package_dir,
            Path::new("/x/services/carillon")
        );
        assert_eq!(
            build.binary("carillon").unwrap(),
            Path::new("/x/target/debug/carillon")
        );
        assert!(
            Build {
                artifacts: build.artifacts[..1].to_vec()
            }
            .binary("carillon")
            .is_err()
        );
    }

    #[test]
    fn libraries_and_other_messages_are_no_programs() {
        assert_eq!(parse_artifact("not json"), None);
        assert_eq!(
            parse_artifact(r#"{"reason":"build-finished","success":true}"#),
            None
        );
        let library = r#"{"reason":"compiler-artifact","package_id":"path+file:///x/d#n@0.1.0","manifest_path":"/x/d/Cargo.toml","target":{"kind":["lib"],"name":"n"},"profile":{"test":false},"executable":null}"#;
        assert_eq!(parse_artifact(library), None);
    }

    #[test]
    fn a_package_is_named_by_its_fragment_or_its_folder() {
        assert_eq!(
            package_name("path+file:///x/crates/domain#carillon-domain@0.1.0"),
            "carillon-domain"
        );
        assert_eq!(package_name("path+file:///x/xtask#0.1.0"), "xtask");
    }
}
