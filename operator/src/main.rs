//! The binary: parse, build, run until told to stop.

use std::process::ExitCode;

use carillon_operator::check::{self, Check};
use carillon_operator::{controller, settings::Settings};
use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;

/// Brings up and keeps what ChatClusters order.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Subcommand)]
enum Command {
    /// Reconcile ChatClusters until stopped (the default).
    Run,
    /// Wait until an operator acts, or until a ChatCluster is available; what `helm test` runs.
    Check(Check),
    /// Print the CustomResourceDefinition of ChatCluster as YAML.
    Crds,
    /// Print the CustomResourceDefinition of ChatBackup as YAML.
    BackupCrds,
    /// Print the JSON Schema of the values of the chatcluster chart.
    ValuesSchema,
    /// Print the reference of every field of ChatCluster and ChatBackup as Markdown.
    Reference,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let derived = match &cli.command {
        Some(Command::Crds) => Some(carillon_crds::chat_cluster_crd_yaml()),
        Some(Command::BackupCrds) => Some(carillon_crds::chat_backup_crd_yaml()),
        Some(Command::ValuesSchema) => Some(carillon_crds::chart_values_schema_json()),
        Some(Command::Reference) => Some(carillon_crds::reference_markdown()),
        Some(Command::Run | Command::Check(_)) | None => None,
    };
    if let Some(text) = derived {
        print!("{text}");
        return ExitCode::SUCCESS;
    }
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "info,kube_client=warn".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    match run(cli.command, cli.settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stopped");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Option<Command>, settings: Settings) -> anyhow::Result<()> {
    // Installing fails only when a provider is installed already, which is just as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        if let Some(Command::Check(check)) = command {
            return check::run(&check, &settings).await;
        }
        let shutdown = CancellationToken::new();
        tokio::spawn(cancel_on_signal(shutdown.clone()));
        controller::run(settings, shutdown).await
    })
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let mut terminate =
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(terminate) => terminate,
            Err(error) => {
                tracing::error!(%error, "can't listen for SIGTERM");
                return;
            }
        };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("told to stop");
    shutdown.cancel();
}
