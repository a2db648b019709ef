//! Looks, between two passes, at the stores that ready pods can do without: when one goes away or comes back, no pod turns unready and no
//! object changes, so that nothing else would tell.
//!
//! For each such store of a cluster one pod is asked, and nothing is asked of the API server. An answer that differs from what the last pass
//! saw makes the next pass begin; what is reported is decided there.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use carillon_crds::ChatCluster;
use futures::{Stream, StreamExt};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

use crate::readiness::{Dependency, PodReadiness, ReadinessClient};

/// The stores that no pod requires.
const STORES: [&str; 2] = ["rabbitmq", "object_store"];
/// Between two looks: with a pod's answer, which may take four seconds, well below the half minute within which a condition is to turn.
const INTERVAL: Duration = Duration::from_secs(12);
/// Pods asked at the same time.
const ASKED_AT_ONCE: usize = 32;
/// Clusters told of that no controller has taken yet; whoever is late is looked at in the next minute.
const WAITING: usize = 1024;

/// As controllers name a ChatCluster.
pub type Cluster = ObjectRef<DeserializeGuard<ChatCluster>>;

/// A pod to ask, and what it said.
#[derive(Clone, Debug)]
struct Witness {
    pod: String,
    address: String,
    admin_port: u16,
    said: Vec<Dependency>,
}

/// Remembers whom to ask. One for all clusters.
pub struct Lookout {
    witnesses: Mutex<HashMap<Cluster, Vec<Witness>>>,
    changed: broadcast::Sender<Cluster>,
}

impl Lookout {
    /// Knows of nothing yet.
    pub fn new() -> Self {
        Lookout {
            witnesses: Mutex::default(),
            changed: broadcast::Sender::new(WAITING),
        }
    }

    /// What a pass saw of `cluster`: the answers of pods, of which `address` knows where they are.
    pub fn note(
        &self,
        cluster: Cluster,
        seen: &[PodReadiness],
        admin_port: u16,
        address: impl Fn(&str) -> Option<String>,
    ) {
        let mut missing = BTreeSet::from(STORES);
        let mut witnesses = Vec::new();
        for pod in seen {
            let said = of_interest(&pod.dependencies);
            // One for each store is enough.
            let adds = said
                .iter()
                .any(|store| missing.contains(store.name.as_str()));
            if let Some(address) = address(&pod.pod).filter(|_| adds) {
                for store in &said {
                    missing.remove(store.name.as_str());
                }
                witnesses.push(Witness {
                    pod: pod.pod.clone(),
                    address,
                    admin_port,
                    said,
                });
            }
        }
        self.lock().insert(cluster, witnesses);
    }

    /// There is nobody to ask any more.
    pub fn forget(&self, cluster: &Cluster) {
        self.lock().remove(cluster);
    }

    /// Clusters of which something else is said than the last pass saw.
    pub fn changes(&self) -> impl Stream<Item = Cluster> + Send + 'static {
        let changes = BroadcastStream::new(self.changed.subscribe());
        changes.filter_map(|change| std::future::ready(change.ok()))
    }

    /// Looks until `stop`.
    pub async fn run(self: Arc<Self>, client: Arc<ReadinessClient>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            self.look(&client).await;
        }
    }

    async fn look(&self, client: &ReadinessClient) {
        let asked: Vec<(Cluster, Witness)> = self
            .lock()
            .iter()
            .flat_map(|(cluster, witnesses)| {
                witnesses
                    .iter()
                    .map(|witness| (cluster.clone(), witness.clone()))
            })
            .collect();
        let mut told = BTreeSet::new();
        let mut answers = futures::stream::iter(asked)
            .map(|(cluster, witness)| async move {
                let answer = client
                    .ask(&witness.pod, &witness.address, witness.admin_port)
                    .await;
                // A pod that doesn't answer is its Deployment's to tell of.
                let differs =
                    answer.is_some_and(|answer| of_interest(&answer.dependencies) != witness.said);
                (cluster, differs)
            })
            .buffer_unordered(ASKED_AT_ONCE);
        while let Some((cluster, differs)) = answers.next().await {
            if differs && told.insert(cluster.to_string()) {
                // Without controllers nobody needs to know.
                let _ = self.changed.send(cluster);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Cluster, Vec<Witness>>> {
        self.witnesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Lookout {
    fn default() -> Self {
        Lookout::new()
    }
}

fn of_interest(dependencies: &[Dependency]) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = dependencies
        .iter()
        .filter(|dependency| STORES.contains(&dependency.name.as_str()))
        .cloned()
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn dependency(name: &str, ready: bool) -> Dependency {
        Dependency {
            name: name.to_owned(),
            ready,
        }
    }

    fn pod(name: &str, dependencies: Vec<Dependency>) -> PodReadiness {
        PodReadiness {
            pod: name.to_owned(),
            dependencies,
            in_use: Default::default(),
        }
    }

    #[tokio::test]
    async fn a_store_that_goes_away_is_told_once_for_each_look() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let _ = socket.read(&mut request).await.unwrap();
                let body = r#"{"dependencies":[{"name":"redis","status":"up"},{"name":"rabbitmq","status":"down"}]}"#;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let lookout = Lookout::new();
        let mut changes = Box::pin(lookout.changes());
        let cluster = |name: &str| Cluster::new(name).within("chat");
        let note = |name: &str, ready: bool| {
            let seen = [
                pod("auth", vec![dependency("redis", true)]),
                pod(
                    "message-1",
                    vec![dependency("redis", true), dependency("rabbitmq", ready)],
                ),
                pod("message-2", vec![dependency("rabbitmq", !ready)]),
            ];
            lookout.note(cluster(name), &seen, port, |_| Some("127.0.0.1".to_owned()));
        };
        note("changed", true);
        note("known", false);
        let client = ReadinessClient::new();
        lookout.look(&client).await;
        assert_eq!(changes.next().await, Some(cluster("changed")));
        lookout.forget(&cluster("changed"));
        lookout.look(&client).await;
        assert!(futures::poll!(changes.next()).is_pending());
    }

    #[test]
    fn one_pod_for_each_store_is_asked() {
        let lookout = Lookout::new();
        let cluster = Cluster::new("town").within("chat");
        let seen = [
            pod("message-1", vec![dependency("rabbitmq", true)]),
            pod("message-2", vec![dependency("rabbitmq", true)]),
            pod("media-1", vec![dependency("object_store", true)]),
            pod("gone", vec![dependency("object_store", true)]),
        ];
        lookout.note(cluster.clone(), &seen, 1, |pod| {
            (pod != "gone").then(|| pod.to_owned())
        });
        let pods: Vec<String> = lookout.lock()[&cluster]
            .iter()
            .map(|witness| witness.pod.clone())
            .collect();
        assert_eq!(pods, ["message-1", "media-1"]);
    }
}
