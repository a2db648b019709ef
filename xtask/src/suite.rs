//! The test suite: checks, then the four rings, from the pure ones to a real cluster.
//!
//! Everything is built once, by one cargo command, and the test programs are run from here. Asking cargo for a few
//! packages at a time would build dependencies again, with the features that those packages happen to need.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cargo::{self, Artifact, Build};
use crate::libtest::{Reader, Tested, Verdict};
use crate::process::{self, Running};
use crate::report::Report;
use crate::servers::{self, Cluster, SERVER_VARIABLES, Servers};
use crate::{generate, image};

/// What `cargo xtask test` takes.
#[derive(Args)]
pub struct Options {
    /// Only what needs no server: a few minutes at most
    #[arg(long)]
    fast: bool,
    /// The whole of what otherwise runs in a short form: an hour more
    #[arg(long, conflicts_with = "fast")]
    long: bool,
    /// Run the cluster tests in the cluster that your kubeconfig names, instead of the testbed's node
    #[arg(long, conflicts_with = "fast")]
    use_current_cluster: bool,
    /// Only tests whose name contains this; leaves out the checks
    filter: Option<String>,
}

/// The tests failed, and the report has said so: there is nothing to add.
#[derive(Debug)]
pub struct Reported;

impl std::fmt::Display for Reported {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("the suite failed")
    }
}

impl std::error::Error for Reported {}

/// Runs the suite and prints the report, whose last line is `N passed, N failed, N skipped`.
pub fn run(options: &Options) -> Result<()> {
    let started = Instant::now();
    let mut report = Report::new(ROWS);
    let outcome = run_into(&mut report, options);
    if let Err(error) = &outcome {
        eprintln!("the suite ended early: {error:#}");
        report.add_check(
            "checks",
            &format!("the suite ended early: {error:#}"),
            false,
            Duration::ZERO,
        );
    }
    let totals = report.totals();
    // Tests that need a server can't run in the fast suite. In the full one, a test that didn't run proves nothing.
    let may_skip = options.fast;
    if totals.skipped > 0 && !may_skip {
        eprintln!("in the full suite a skipped test is a failure");
    }
    println!("\n{}\n{totals}", report.table(started.elapsed()));
    std::io::stdout()
        .flush()
        .context("can't print the report")?;
    if outcome.is_err() || totals.failed > 0 || (totals.skipped > 0 && !may_skip) {
        return Err(Reported.into());
    }
    Ok(())
}

fn run_into(report: &mut Report, options: &Options) -> Result<()> {
    let whole = options.filter.is_none();
    if whole {
        check(report, "formatting", || {
            process::run(process::cargo().args(["fmt", "--all", "--check"]))
        })?;
    }
    if !options.fast {
        let installed = check(report, "testbed", || {
            process::run(&mut servers::script("install", &[]))
        })?;
        if installed.is_none() {
            bail!("there are no servers to test with; `--fast` runs what needs none");
        }
    }
    let Some(build) = check(report, "build", || {
        cargo::build(&["--workspace", "--all-targets"])
    })?
    else {
        bail!("there is nothing to test");
    };
    if whole {
        check(report, "lints", || process::run(&mut cargo::clippy()))?;
        check(report, "derived files", || generate::check_with(&build))?;
        check_dependencies(report, options.fast)?;
    }
    if options.fast {
        return run_tests(report, &build, &Servers::default(), options);
    }
    let images = image::build(None, false, None)?;
    let cluster = if options.use_current_cluster {
        Cluster::Current
    } else {
        Cluster::Testbed
    };
    let servers = Servers::start(cluster, &images)?;
    run_tests(report, &build, &servers, options)
}

/// Runs a check and notes how it ended. What failed is a row in the report; only an interruption is an error.
fn check<T>(
    report: &mut Report,
    name: &str,
    action: impl FnOnce() -> Result<T>,
) -> Result<Option<T>> {
    let started = Instant::now();
    let result = process::step(name, action);
    if process::interrupted() {
        bail!("interrupted");
    }
    report.add_check("checks", name, result.is_ok(), started.elapsed());
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => {
            eprintln!("    {name}: {error:#}");
            Ok(None)
        }
    }
}

/// The version of cargo-deny that the full suite installs.
const CARGO_DENY: &str = "0.20.2";

/// Licences, sources and banned crates. Advisories need a network, and change without us. The full suite installs
/// cargo-deny beside the testbed's pieces; the fast one uses what is there.
fn check_dependencies(report: &mut Report, fast: bool) -> Result<()> {
    let tools = servers::cache_dir()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        if fast {
            report.add_test(
                "checks",
                "checks",
                &Tested {
                    name: "dependencies".into(),
                    verdict: Verdict::Skipped("the full suite installs cargo-deny".into()),
                },
            );
            return Ok(());
        }
        let installed = check(report, "cargo-deny", || {
            process::run(
                process::cargo()
                    .args(["install", "cargo-deny", "--locked", "--quiet"])
                    .args(["--version", CARGO_DENY, "--root"])
                    .arg(&tools),
            )
        })?;
        if installed.is_none() {
            return Ok(());
        }
    }
    check(report, "dependencies", || {
        process::run(Command::new(&program).current_dir(process::root()).args([
            "--workspace",
            "check",
            "bans",
            "licenses",
            "sources",
        ]))
    })?;
    Ok(())
}

fn run_tests(
    report: &mut Report,
    build: &Build,
    servers: &Servers,
    options: &Options,
) -> Result<()> {
    let runner = Runner {
        build,
        servers,
        options,
    };
    let mut programs: Vec<&Artifact> = build
        .artifacts
        .iter()
        .filter(|artifact| {
            artifact.is_test && !["bench", "example"].contains(&artifact.kind.as_str())
        })
        .collect();
    // The system's tests last: when a part is broken, its own test says so first.
    programs.sort_by_key(|program| {
        (
            program.package == SYSTEM_TESTS,
            program.package.clone(),
            program.target.clone(),
        )
    });
    for program in programs {
        runner.run_program(report, program)?;
    }
    let Some(filter) = &options.filter else {
        runner.run_documentation(report)?;
        for ring in RINGS {
            if !report.has_tests(ring) {
                report.add_check(
                    "checks",
                    &format!("{ring} has tests"),
                    false,
                    Duration::ZERO,
                );
            }
        }
        return Ok(());
    };
    if !RINGS.iter().any(|ring| report.has_tests(ring)) {
        bail!("no test's name contains {filter:?}");
    }
    Ok(())
}

/// The report's rows, in order.
const ROWS: &[&str] = &["checks", PURE, CONFORMANCE, SYSTEM, CLUSTER, DOCUMENTATION];
const RINGS: &[&str] = &[PURE, CONFORMANCE, SYSTEM, CLUSTER];
const PURE: &str = "ring 1: pure";
const CONFORMANCE: &str = "ring 2: conformance";
const SYSTEM: &str = "ring 3: system";
const CLUSTER: &str = "ring 4: cluster";
const DOCUMENTATION: &str = "documentation";

/// The package with the tests of the whole system.
const SYSTEM_TESTS: &str = "carillon-tests";

/// The package with the adapters, and the conformance suites of their ports.
const ADAPTERS: &str = "carillon-adapters";

/// The package with the operator; its program of tests needs a control plane.
const OPERATOR: &str = "carillon-operator";

/// The report's row for a test, by its package, the kind of its program, and its name.
fn ring_of(package: &str, kind: &str, test: &str) -> &'static str {
    match (package, kind) {
        (SYSTEM_TESTS, _) if test.split("::").any(|part| part.starts_with("cluster")) => CLUSTER,
        (SYSTEM_TESTS, _) => SYSTEM,
        // Its programs of tests run the suites on the embedded stores and on the real ones.
        (ADAPTERS, "test") => CONFORMANCE,
        (OPERATOR, "test") => CLUSTER,
        _ => PURE,
    }
}

struct Runner<'a> {
    build: &'a Build,
    servers: &'a Servers,
    options: &'a Options,
}

impl Runner<'_> {
    fn run_program(&self, report: &mut Report, program: &Artifact) -> Result<()> {
        let name = match program.kind.as_str() {
            "lib" => program.package.clone(),
            kind => format!("{} {kind} {}", program.package, program.target),
        };
        let mut command = Command::new(&program.executable);
        // As `cargo test` does it.
        command
            .current_dir(&program.package_dir)
            .env("CARGO_MANIFEST_DIR", &program.package_dir)
            .env("CARGO_PKG_NAME", &program.package);
        command.arg("--show-output").args(&self.options.filter);
        self.run_tests_of(report, &name, &mut command, |test| {
            ring_of(&program.package, &program.kind, test)
        })
    }

    fn run_documentation(&self, report: &mut Report) -> Result<()> {
        let mut command = process::cargo();
        command.args([
            "test",
            "--quiet",
            "--workspace",
            "--doc",
            "--no-fail-fast",
            "--",
            "--show-output",
            "--format=pretty",
        ]);
        self.run_tests_of(report, "documentation", &mut command, |_| DOCUMENTATION)
    }

    fn run_tests_of(
        &self,
        report: &mut Report,
        name: &str,
        command: &mut Command,
        ring: impl Fn(&str) -> &'static str,
    ) -> Result<()> {
        let started = Instant::now();
        self.set_environment(command);
        let logs = self.logs()?;
        let log = logs.join(format!("{}.log", name.replace(' ', "-")));
        let file = std::fs::File::create(&log)
            .with_context(|| format!("can't write {}", log.display()))?;
        let mut running = Running::start(command.stdout(Stdio::piped()).stderr(file.try_clone()?))?;
        let mut reader = Reader::default();
        if let Some(stdout) = running.child().stdout.take() {
            copy_lines(BufReader::new(stdout), file, &mut reader)?;
        }
        let succeeded = running.succeeded()?;
        let tested = reader.finish(name, succeeded);
        let elapsed = started.elapsed();
        // A program's time counts for the ring that most of its tests belong to.
        let mut rings = BTreeMap::new();
        for tested in &tested {
            *rings.entry(ring(&tested.name)).or_insert(0) += 1;
        }
        if let Some((row, _)) = rings.into_iter().max_by_key(|(_, tests)| *tests) {
            report.add_time(row, elapsed);
            eprintln!(
                "    {name}: {} tests in {:.1} s",
                tested.len(),
                elapsed.as_secs_f64()
            );
        }
        for tested in &tested {
            report.add_test(ring(&tested.name), name, tested);
        }
        if !succeeded {
            eprintln!(
                "    {name}: failed; all that it said is in {}",
                log.display()
            );
        }
        Ok(())
    }

    fn set_environment(&self, command: &mut Command) {
        for variable in SERVER_VARIABLES {
            command.env_remove(variable);
        }
        // Whoever looks for a cluster by himself must not find the developer's.
        command.env("KUBECONFIG", "/dev/null");
        // A failed assertion says what is wrong; frames of the runtime below it don't.
        command.env("RUST_BACKTRACE", "0");
        command.env(
            "CARILLON_TEST_RING",
            if self.options.fast { "fast" } else { "full" },
        );
        command.env_remove("CARILLON_TEST_LONG");
        if self.options.long {
            command.env("CARILLON_TEST_LONG", "1");
        }
        if let Ok(program) = self.build.binary("carillon") {
            command.env("CARILLON_BIN", program);
        }
        command.envs(
            self.servers
                .environment()
                .iter()
                .map(|(name, value)| (name, value)),
        );
    }

    /// `test-logs` in the target folder.
    fn logs(&self) -> Result<PathBuf> {
        let target = self.build.artifacts.first().and_then(|artifact| {
            artifact
                .executable
                .ancestors()
                .find(|folder| folder.join("CACHEDIR.TAG").exists())
        });
        let logs = target.unwrap_or(Path::new("target")).join("test-logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("can't make {}", logs.display()))?;
        Ok(logs)
    }
}

/// Copies every line to the log, and to standard error what a person wants to see. A test may print what isn't
/// UTF-8.
fn copy_lines(mut from: impl BufRead, mut log: std::fs::File, reader: &mut Reader) -> Result<()> {
    let mut line = Vec::new();
    while from
        .read_until(b'\n', &mut line)
        .context("a test program's output is unreadable")?
        > 0
    {
        log.write_all(&line).context("can't write a test's log")?;
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end_matches(['\n', '\r']);
        if reader.read(text) {
            eprintln!("    {text}");
        }
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_belongs_to_the_ring_that_its_package_and_name_say() {
        for (package, kind, test, ring) in [
            (
                "carillon-domain",
                "lib",
                "ids::a_room_id_sorts_by_time",
                PURE,
            ),
            (
                "carillon-adapters",
                "lib",
                "scylla::fences::they_stay_few",
                PURE,
            ),
            (
                "carillon-adapters",
                "test",
                "redis::redis_sessions",
                CONFORMANCE,
            ),
            ("carillon-operator", "lib", "keys::they_differ", PURE),
            ("carillon-operator", "test", "crash::create", CLUSTER),
            ("carillon-tests", "test", "embedded::conversation", SYSTEM),
            ("carillon-tests", "test", "cluster::helm_install", CLUSTER),
        ] {
            assert_eq!(
                ring_of(package, kind, test),
                ring,
                "{package} {kind} {test}"
            );
        }
    }

    #[test]
    fn output_that_is_not_text_is_still_counted() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut reader = Reader::default();
        let output: &[u8] = b"running 1 test\n\xff\xfe\ntest a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        copy_lines(output, std::fs::File::create(&log).unwrap(), &mut reader).unwrap();
        assert_eq!(reader.finish("p", true).len(), 1);
        assert_eq!(std::fs::read(&log).unwrap(), output);
    }
}
