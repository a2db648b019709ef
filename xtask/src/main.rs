//! The project's development commands: `cargo xtask <command>`, for people and for CI alike.
//!
//! It orders other programs about (cargo, the testbed's scripts) and reports; what it does not do is know anything
//! about the platform: no crate of the workspace is linked into it, so that it builds in seconds.

mod cargo;
mod dashboards;
mod generate;
mod image;
mod libtest;
mod process;
mod report;
mod servers;
mod suite;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Carillon's development commands",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the platform and run it here, in one process on embedded stores
    Up {
        /// Passed on to `carillon up`
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Run the test suite; without --fast that includes real stores and a real Kubernetes node
    Test(suite::Options),
    /// Build the container images as docker archives
    Image(image::Options),
    /// Write the files that are derived from the code
    Gen {
        /// Change nothing; fail if a file differs from what would be written
        #[arg(long)]
        check: bool,
    },
    /// Format, lint and generate: what to run before handing in a change
    Tidy,
    /// Run the load generator against a release build: everything, side by side with the bare server, if nothing else is asked
    Bench {
        /// Measure sends on the testbed's Cassandra, Redis and RabbitMQ, with a process for each role
        #[arg(long)]
        stores: bool,
        /// Install other chat servers and measure them side by side with Carillon
        #[arg(long, conflicts_with = "stores")]
        peers: bool,
        /// Passed on to `carillon-bench`, instead of `all --pin --server … --scratch …`; with --peers, after that
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Install, start and stop the real servers that tests run against
    Testbed {
        #[command(subcommand)]
        command: TestbedTask,
    },
}

#[derive(Subcommand, Clone, Copy)]
enum TestbedTask {
    /// Install what the servers need
    Install,
    /// Start the Kubernetes node and the stores, on the node's address
    Up,
    /// Stop them
    Down,
    /// Say what runs
    Status,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Err(error) = process::watch_for_signals() {
        eprintln!("cargo xtask: {error:#}");
        return ExitCode::FAILURE;
    }
    match run(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A report's closing line stays the last one.
            if !error.is::<suite::Reported>() {
                eprintln!("cargo xtask: {error:#}");
            }
            ExitCode::from(if process::interrupted() { 130 } else { 1 })
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Up { arguments } => up(&arguments),
        Task::Test(options) => suite::run(&options),
        Task::Image(options) => image::run(&options),
        Task::Gen { check } => generate::run(check),
        Task::Tidy => tidy(),
        Task::Bench {
            stores: true,
            arguments,
            ..
        } => bench_on_stores(&arguments),
        Task::Bench {
            peers: true,
            arguments,
            ..
        } => bench_with_peers(&arguments),
        Task::Bench { arguments, .. } => bench(&arguments),
        Task::Testbed { command } => testbed(command),
    }
}

fn up(arguments: &[OsString]) -> Result<()> {
    let build = cargo::build(&["-p", "carillon"])?;
    let program = build.binary("carillon")?;
    // Replaces this process, so that signals and the exit code are the platform's own.
    let error = Command::new(program)
        .current_dir(process::root())
        .args(["up", "-f", "examples/chatcluster.yaml"])
        .args(arguments)
        .exec();
    Err(error).with_context(|| format!("can't start {}", program.display()))
}

fn tidy() -> Result<()> {
    process::step("format", || {
        process::run(process::cargo().args(["fmt", "--all"]))
    })?;
    process::step("lint", || process::run(&mut cargo::clippy()))?;
    generate::run(false)
}

fn bench(arguments: &[OsString]) -> Result<()> {
    let build = build_for_bench()?;
    let mut command = Command::new(build.binary("carillon-bench")?);
    command.current_dir(process::root());
    if arguments.is_empty() {
        measure_build(&mut command, "all", &build)?;
    } else {
        command.args(arguments);
    }
    process::run(&mut command)
}

fn bench_with_peers(arguments: &[OsString]) -> Result<()> {
    process::run(&mut Command::new(
        process::root().join("bench/peers/install"),
    ))?;
    let build = build_for_bench()?;
    let mut command = Command::new(build.binary("carillon-bench")?);
    command.current_dir(process::root());
    measure_build(&mut command, "peers", &build)?;
    process::run(command.args(arguments))
}

fn build_for_bench() -> Result<cargo::Build> {
    process::step("build the platform and the load generator", || {
        cargo::build(&["--release", "-p", "carillon", "-p", "carillon-bench"])
    })
}

/// Appends what to measure: this build's server, pinned.
fn measure_build(command: &mut Command, scenarios: &str, build: &cargo::Build) -> Result<()> {
    let server = build.binary("carillon")?;
    // Beside the programs: fsync means nothing on a file system in memory, as a temporary directory may be.
    let scratch = server.parent().context("a program is in a folder")?;
    command.args([scenarios, "--pin", "--server"]).arg(server);
    command.arg("--scratch").arg(scratch);
    Ok(())
}

fn bench_on_stores(arguments: &[OsString]) -> Result<()> {
    process::run(&mut servers::script("install", &[]))?;
    let build = build_for_bench()?;
    let cluster = cargo::build(&["-p", "carillon-tests", "--example", "cluster"])?;
    let servers = servers::Servers::stores("127.0.0.1")?;
    let mut command = Command::new(cluster.example("cluster")?);
    command
        .current_dir(process::root())
        .env("CARILLON_BIN", build.binary("carillon")?)
        .envs(servers.environment().iter().cloned())
        .arg(build.binary("carillon-bench")?)
        .arg("sends")
        .args(arguments);
    process::run(&mut command)
}

fn testbed(task: TestbedTask) -> Result<()> {
    match task {
        TestbedTask::Install => process::run(&mut servers::script("install", &[])),
        TestbedTask::Up => {
            process::run(&mut servers::script("install", &[]))?;
            process::run(&mut servers::script("k8s", &["up"]))?;
            process::run(
                servers::script("stores", &["up"])
                    .env("CARILLON_STORES_ADDR", servers::NODE_ADDRESS),
            )?;
            eprintln!("for this shell: eval \"$(testbed/k8s env)\" \"$(testbed/stores env)\"");
            Ok(())
        }
        TestbedTask::Down => {
            let stores = process::run(&mut servers::script("stores", &["down"]));
            process::run(&mut servers::script("k8s", &["down"])).and(stores)
        }
        TestbedTask::Status => {
            let stores = process::run(&mut servers::script("stores", &["status"]));
            process::run(&mut servers::script("k8s", &["status"])).and(stores)
        }
    }
}
