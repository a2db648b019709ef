//! `carillon`: every server role in one binary. This file reads the command line; [`compose`] puts roles together.
//!
//! Exit status: 0 after a clean stop, 64 for a command line or configuration that can't be used (EX_USAGE), 69 when something
//! needed is not available (EX_UNAVAILABLE), 70 when a running role failed (EX_SOFTWARE).

mod cli;
mod compose;
mod config;
mod failure;
mod keys;

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, not errors.
            let code = if error.use_stderr() {
                failure::USAGE
            } else {
                0
            };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    // One TLS provider for every library, chosen before any of them starts.
    if rustls::crypto::ring::default_provider()
        .install_default()
        .is_err()
    {
        eprintln!("carillon: another TLS provider is installed already");
        return ExitCode::from(failure::SOFTWARE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("carillon: can't start: {error}");
            return ExitCode::from(failure::SOFTWARE);
        }
    };
    let ended = runtime.block_on(async {
        match cli.command {
            cli::Command::Up(options) => compose::up(options).await,
            cli::Command::Serve(options) => compose::serve(options).await,
            cli::Command::Migrate(options) => compose::migrate(options).await,
            cli::Command::Backup(options) => compose::backup(options).await,
            cli::Command::Restore(options) => compose::restore(options).await,
        }
    });
    // Blocking work of a library that never ends must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("carillon: {failure}");
            ExitCode::from(failure.status)
        }
    }
}
