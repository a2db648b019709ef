//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Carillon, a chat platform: one binary for every server role.
#[derive(Parser)]
#[command(name = "carillon", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the whole platform in this process, on durable stores under a data directory.
    Up(Up),
    /// Run roles of a cluster (what pods do).
    Serve(Serve),
    /// Bring the database's schema up to this release (what the operator runs before a rollout).
    Migrate(Migrate),
}

#[derive(Args)]
pub struct Up {
    /// The ChatCluster.
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Where everything is kept [default: .carillon/<name of the ChatCluster>]
    #[arg(long, value_name = "DIR", env = "CARILLON_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of REST, WebSocket and the browser page [default: 127.0.0.1:<spec.gateway.port>]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address of gRPC.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub grpc_listen: SocketAddr,
    /// Address of /health, /ready and /metrics.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,
    /// What is logged, for example info or carillon=debug,warn.
    #[arg(
        long,
        value_name = "FILTER",
        env = "CARILLON_LOG",
        default_value = "warn"
    )]
    pub log: String,
}

/// A server role.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, ValueEnum)]
pub enum Role {
    /// REST and WebSocket.
    Gateway,
    /// Accounts and tokens.
    Auth,
    /// Rooms and messages.
    Message,
    /// Who is online.
    Presence,
    /// Uploads.
    Media,
    /// Push.
    Notification,
}

#[derive(Args)]
pub struct Serve {
    /// The roles.
    #[arg(required = true, value_enum)]
    pub roles: Vec<Role>,
    /// The configuration that the operator wrote.
    #[arg(long, value_name = "FILE", default_value = carillon_crds::config::CONFIG_FILE)]
    pub config: PathBuf,
    /// Address to listen on, for all of this process's ports.
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind: std::net::IpAddr,
    /// This replica's name [default: the pod's name and a random part]
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub name: Option<String>,
    /// The address at which peers reach this replica [default: --bind]
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub advertise: Option<std::net::IpAddr>,
    /// What is logged, for example info or carillon=debug,warn.
    #[arg(
        long,
        value_name = "FILTER",
        env = "CARILLON_LOG",
        default_value = "info"
    )]
    pub log: String,
}

#[derive(Args)]
pub struct Migrate {
    /// The configuration that the operator wrote.
    #[arg(long, value_name = "FILE", default_value = carillon_crds::config::CONFIG_FILE)]
    pub config: PathBuf,
    /// How long to wait for the database.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub patience: u64,
}
