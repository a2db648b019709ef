//! Files that are derived from the code and committed: written by `gen`, compared by `gen --check`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cargo::Build;
use crate::{dashboards, process};

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
        arguments: &["backup-crds"],
        file: "charts/carillon-operator/crds/chatbackups.yaml",
    },
    Derived {
        package: "carillon-operator",
        arguments: &["values-schema"],
        file: "charts/chatcluster/values.schema.json",
    },
    Derived {
        package: "carillon-operator",
        arguments: &["reference"],
        file: "docs/reference.md",
    },
];

/// Writes the files, or only compares them.
pub fn run(check: bool) -> Result<()> {
    for derived in DERIVED {
        let mut command = process::cargo();
        command
            .args(["run", "--quiet", "-p", derived.package, "--"])
            .args(derived.arguments);
        settle(derived.file, &process::output(&mut command)?, check)?;
    }
    settle_dashboards(check)
}

/// Compares the files with what the programs of this build print.
pub fn check_with(build: &Build) -> Result<()> {
    for derived in DERIVED {
        let mut command = std::process::Command::new(build.binary(derived.package)?);
        settle(
            derived.file,
            &process::output(command.args(derived.arguments))?,
            true,
        )?;
    }
    settle_dashboards(true)
}

fn settle_dashboards(check: bool) -> Result<()> {
    for (name, text) in dashboards::all() {
        let file = format!("charts/carillon-operator/dashboards/{name}.json");
        settle(&file, &text, check)?;
    }
    Ok(())
}

fn settle(file: &str, text: &str, check: bool) -> Result<()> {
    let started = Instant::now();
    if text.trim().is_empty() {
        bail!("nothing was printed for {file}");
    }
    let path = process::root().join(file);
    if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
        eprintln!("    {file}: up to date");
        return Ok(());
    }
    if check {
        bail!(
            "{file} differs from what the code says: run `cargo xtask gen` and hand in the result"
        );
    }
    write(&path, text)?;
    eprintln!(
        "    {file}: written in {:.1} s",
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
