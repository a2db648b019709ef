//! How the operator itself is told to run: flags and environment.

use clap::Args;

/// Settings of `carillon-operator run`.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Image of the platform's roles. Without a tag each ChatCluster's version is the tag; with one, it is the tag of all. A
    /// ChatCluster's `spec.image` overrides its parts.
    #[arg(long, env = "CARILLON_IMAGE", default_value = "carillon")]
    pub image: String,
    /// Namespaces to look after, comma-separated; `*` for all (needs cluster-wide rights).
    #[arg(
        long,
        env = "WATCH_NAMESPACES",
        default_value = "default",
        value_delimiter = ','
    )]
    pub watch_namespaces: Vec<String>,
    /// Port of /health, /ready and /metrics; 0 takes any free one.
    #[arg(long, env = "HTTP_PORT", default_value_t = 8081)]
    pub http_port: u16,
    /// Namespace of the leader's Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// Name of the leader's Lease: operators with the same Lease never act at once.
    #[arg(long, env = "LEASE_NAME", default_value = "carillon-operator")]
    pub lease_name: String,
    /// Who this process is, in the Lease and in Events.
    #[arg(long, env = "POD_NAME", default_value_t = default_identity())]
    pub identity: String,
    /// ChatClusters reconciled at the same time, in each watched namespace.
    #[arg(long, env = "CONCURRENCY", default_value_t = 4)]
    pub concurrency: u16,
}

/// Unlike for two processes on one machine, so that they don't share a Lease.
fn default_identity() -> String {
    format!(
        "carillon-operator-{}-{:08x}",
        std::process::id(),
        rand::random::<u32>()
    )
}
