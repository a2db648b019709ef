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
    /// Save everything into a directory or a bucket, while the platform runs; list backups, check one.
    Backup(Backup),
    /// Put a backup into an empty platform.
    Restore(Restore),
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

/// Which platform is meant: one of the two.
#[derive(Args)]
pub struct Platform {
    /// The ChatCluster of a platform on this machine.
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Where that keeps everything [default: .carillon/<name of the ChatCluster>]
    #[arg(long, value_name = "DIR", env = "CARILLON_DATA_DIR", requires = "file")]
    pub data_dir: Option<PathBuf>,
    /// The configuration that the operator wrote, for a platform in a cluster.
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    pub config: Option<PathBuf>,
}

/// How to reach a bucket.
#[derive(Args)]
pub struct S3 {
    /// Where the bucket is; without it, at AWS.
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    pub endpoint: Option<String>,
    /// The bucket's region.
    #[arg(
        long,
        value_name = "REGION",
        env = "AWS_REGION",
        default_value = "us-east-1"
    )]
    pub region: String,
    /// A directory with the files access_key_id and secret_access_key [default: the variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY]
    #[arg(long, value_name = "DIR")]
    pub credentials_dir: Option<PathBuf>,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Backup {
    #[command(subcommand)]
    pub command: Option<BackupCommand>,
    /// Where to: a directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE", required = true)]
    pub to: Option<String>,
    #[command(flatten)]
    pub platform: Platform,
    #[command(flatten)]
    pub s3: S3,
    /// Leave out the bytes of uploads: their store keeps them by itself.
    #[arg(long)]
    pub without_media: bool,
    /// Afterwards remove this ChatCluster's backups but for so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub keep_last: Option<u16>,
    /// Afterwards remove this ChatCluster's backups that are older.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub keep_days: Option<u64>,
    /// How long to wait for the database.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub patience: u64,
    /// Also write what became of it there, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

#[derive(Subcommand)]
pub enum BackupCommand {
    /// List the backups of a place, oldest first.
    List {
        /// Where: a directory, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        at: String,
        #[command(flatten)]
        s3: S3,
    },
    /// Read all of a backup and check it.
    Verify {
        /// Where: a directory, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        at: String,
        #[command(flatten)]
        s3: S3,
        /// Which one [default: the newest]
        backup: Option<String>,
    },
}

#[derive(Args)]
pub struct Restore {
    /// Where from: a directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE")]
    pub from: String,
    /// Which backup [default: the newest]
    #[arg(long, value_name = "NAME")]
    pub backup: Option<String>,
    #[command(flatten)]
    pub platform: Platform,
    #[command(flatten)]
    pub s3: S3,
    /// How long to wait for the database.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub patience: u64,
    /// Also write what became of it there, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}
