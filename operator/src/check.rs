//! `carillon-operator check`: what `helm test` runs. Looks with the rights it is given and changes nothing.
//!
//! Without a cluster: the definitions are served, ChatClusters can be read in every watched namespace, and an operator holds its
//! Lease. With one: the operator says of the present spec that it is available, which it says only after a message came back
//! through the gateways ([`crate::probe`]).

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use carillon_crds::{ChatBackup, ChatCluster, condition};
use clap::Args;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::settings::Settings;

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);
/// A Lease that is renewed every few seconds and whose last renewal is older than this is nobody's; clocks may differ a little.
const RENEWED_WITHIN: Duration = Duration::from_secs(60);

/// What is looked at, and for how long.
#[derive(Args, Clone, Debug)]
pub struct Check {
    /// A ChatCluster, in the namespace of this process, that must be available. Default: the operator itself is looked at.
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// How long to wait for it, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub wait: u64,
}

/// Waits until all is well. An error says what isn't.
pub async fn run(check: &Check, settings: &Settings) -> anyhow::Result<()> {
    let client = Client::try_default().await.context(
        "no access to Kubernetes: neither a kubeconfig nor a pod's ServiceAccount was found",
    )?;
    let deadline = Instant::now() + Duration::from_secs(check.wait);
    loop {
        let looked = match &check.cluster {
            Some(name) => is_available(&client, &settings.lease_namespace, name).await,
            None => is_operating(&client, settings).await,
        };
        match looked {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {} s", check.wait)));
            }
            Err(error) => tracing::info!("{error:#}"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn is_operating(client: &Client, settings: &Settings) -> anyhow::Result<()> {
    let one = ListParams::default().limit(1);
    for namespace in &settings.watch_namespaces {
        let clusters: Api<ChatCluster> = match namespace.as_str() {
            "*" => Api::all(client.clone()),
            namespace => Api::namespaced(client.clone(), namespace),
        };
        let backups: Api<ChatBackup> = match namespace.as_str() {
            "*" => Api::all(client.clone()),
            namespace => Api::namespaced(client.clone(), namespace),
        };
        let what = |kind: &str| format!("{kind}s can't be read in {namespace}");
        // Metadata: one that can't be read as a whole is its author's business.
        let clusters = clusters.list_metadata(&one).await;
        clusters.with_context(|| what("ChatCluster"))?;
        let backups = backups.list_metadata(&one).await;
        backups.with_context(|| what("ChatBackup"))?;
    }
    let leases: Api<Lease> = Api::namespaced(client.clone(), &settings.lease_namespace);
    let lease = leases.get(&settings.lease_name).await;
    let spec = lease
        .with_context(|| format!("the Lease {} can't be read", settings.lease_name))?
        .spec
        .unwrap_or_default();
    let holder = spec.holder_identity.unwrap_or_default();
    ensure!(!holder.is_empty(), "no operator holds its Lease");
    let renewed = spec.renew_time.context("the Lease was never renewed")?;
    let age = Duration::try_from(Timestamp::now().duration_since(renewed.0)).unwrap_or_default();
    ensure!(
        age < RENEWED_WITHIN,
        "{holder} renewed its Lease {} s ago",
        age.as_secs()
    );
    tracing::info!(holder, "an operator leads");
    Ok(())
}

async fn is_available(client: &Client, namespace: &str, name: &str) -> anyhow::Result<()> {
    let clusters: Api<ChatCluster> = Api::namespaced(client.clone(), namespace);
    let cluster = clusters.get(name).await;
    let cluster = cluster.with_context(|| format!("ChatCluster {name} can't be read"))?;
    let status = cluster.status.unwrap_or_default();
    ensure!(
        status.observed_generation == cluster.metadata.generation,
        "no operator has looked at the present spec"
    );
    let available = status
        .conditions
        .iter()
        .find(|found| found.type_ == condition::AVAILABLE)
        .context("no operator has said whether it is available")?;
    if available.status != "True" {
        bail!("{}: {}", available.reason, available.message);
    }
    tracing::info!(cluster = name, "{}", available.message);
    Ok(())
}
