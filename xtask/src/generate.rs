//! Files that are derived from the code and committed: written by `gen`, compared by `gen --check`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::Build;
use crate::process;

/// A committed file that one of our programs prints.
struct Derived {
    package: &'static str,
    arguments: &'static [&'static str],
    /// Below the workspace's root.
    file: &'static str,
}

const DERIVED: &[Derived] = &[
    Derived {
        package: "carillon-operator",
        arguments: &["crds"],
        file: "charts/carillon-operator/crds/chatclusters.yaml",
    },
    Derived {
        package: "carillon-operator",
        arguments: &["values-schema"],
        file: "charts/chatcluster/values.schema.json",
    },
];

/// Writes the files, or only compares them.
pub fn run(check: bool) -> Result<()> {
    for derived in DERIVED {
        let mut command = process::cargo();
        command
            .args(["run", "--quiet", "-p", derived.package, "--"])
            .args(derived.arguments);
        settle(derived, &process::output(&mut command)?, check)?;
    }
    Ok(())
}

/// Compares the files with what the programs of this build print.
pub fn check_with(build: &Build) -> Result<()> {
    for derived in DERIVED {
        let mut command = std::process::Command::new(build.binary(derived.package)?);
        settle(
            derived,
            &process::output(command.args(derived.arguments))?,
            true,
        )?;
    }
    Ok(())
}

fn settle(derived: &Derived, text: &str, check: bool) -> Result<()> {
    let started = Instant::now();
    if text.trim().is_empty() {
        bail!(
            "`{} {}` printed nothing",
            derived.package,
            derived.arguments.join(" ")
        );
    }
    let path = process::root().join(derived.file);
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        eprintln!("    {}: up to date", derived.file);
        return Ok(());
    }
    if check {
        bail!(
            "{} differs from what the code says: run `cargo xtask gen` and hand in the result",
            derived.file
        );
    }
    write(&path, text)?;
    eprintln!(
        "    {}: written in {:.1} s",
        derived.file,
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("can't make {}", folder.display()))?;
    }
    std::fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}
