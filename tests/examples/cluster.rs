//! Runs a command against a cluster of processes on the real stores that the environment names (`testbed/stores env`):
//! `--target` and each role's `--pid` are added to the command. For `cargo xtask bench --stores`; no test.

// What the tests need besides this.
#[allow(dead_code)]
#[path = "../it/world/mod.rs"]
mod world;

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use world::{
    platform::{QUICK, RealCluster, RealOptions},
    servers,
};

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let program = arguments.next().context("usage: cluster COMMAND...")?;
    let servers = servers::stores("cluster").context("no stores: see `testbed/stores`")?;
    let options = RealOptions {
        spec: QUICK.into(),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let mut command = Command::new(program);
    command.args(arguments);
    command.args(["--target", &cluster.gateways[0].base]);
    let roles = cluster.others.iter();
    for role in roles.chain(&cluster.messages).chain(&cluster.gateways) {
        command.args(["--pid", &role.process.pid().to_string()]);
    }
    let status = tokio::task::spawn_blocking(move || command.status()).await??;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
