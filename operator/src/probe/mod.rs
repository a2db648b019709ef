//! Whether messages get through: a probe message now and then, and what is remembered of the last one.
//!
//! `Available` hangs on it. It is sent when a cluster begins to serve, when other pods serve it or a store came or went, and
//! otherwise every ten minutes; after a failure soon again. What is remembered is memory of this process and nothing else: an
//! operator that starts anew asks anew, and an unchanged cluster costs the API server one read of the signing key per probe
//! and no write.

mod trip;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use carillon_crds::Role;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use uuid::Uuid;

use crate::build::COMPONENT_LABEL;
use crate::context::Context;
use crate::dereference;
use crate::keys;
use crate::readiness::PodReadiness;
use crate::validate::Order;

pub use trip::{Gateway, ProbeFailure, round_trip};

/// Between two probes of a cluster on which nothing changed.
const INTERVAL: Duration = Duration::from_secs(600);
/// After the first failure; doubled after each further one, up to [`LONGEST_RETRY`].
const RETRY: Duration = Duration::from_secs(4);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// Failures in a row before a cluster that served isn't called available any more: one message may meet a pod that is just
/// going away.
const FAILURES: u32 = 3;
/// Life of a probe's token, seconds: a trip, and clocks that differ a little.
const TOKEN_SECONDS: i64 = 60;

/// What is known of a cluster's messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// Nothing: too few pods are ready to ask.
    #[default]
    NotAsked,
    /// The last one got through.
    Passed,
    /// The last one didn't, those before did: it is tried again before anything is said.
    Doubted,
    /// They don't get through.
    Failed(ProbeFailure),
}

impl Probe {
    /// Whether the cluster may be called available.
    pub fn is_passed(&self) -> bool {
        matches!(self, Probe::Passed | Probe::Doubted)
    }
}

/// What is remembered of one cluster.
#[derive(Clone, Debug)]
struct Memory {
    /// Of the pods and stores when it was asked.
    circumstances: u64,
    asked: Instant,
    /// Whether it was available before the failures.
    passed_before: bool,
    failures: u32,
    failure: Option<ProbeFailure>,
    /// Which pair of gateways is next.
    turn: usize,
}

impl Memory {
    fn is_due(&self, circumstances: u64, complete: bool) -> bool {
        let age = self.asked.elapsed();
        match self.failures {
            // While a roll-out goes on something changes every few seconds.
            0 => (complete && circumstances != self.circumstances) || age >= INTERVAL,
            failures => age >= (RETRY * 2u32.saturating_pow(failures - 1)).min(LONGEST_RETRY),
        }
    }

    fn verdict(&self) -> Probe {
        match &self.failure {
            None => Probe::Passed,
            Some(_) if self.passed_before && self.failures < FAILURES => Probe::Doubted,
            Some(failure) => Probe::Failed(failure.clone()),
        }
    }

    fn note(&mut self, circumstances: u64, result: Result<(), ProbeFailure>) {
        self.asked = Instant::now();
        self.circumstances = circumstances;
        match result {
            Ok(()) => {
                self.passed_before = true;
                self.failures = 0;
                self.failure = None;
                // After a failure the same pair again, so that the same is said of it.
                self.turn = self.turn.wrapping_add(1);
            }
            Err(failure) => {
                self.failures = self.failures.saturating_add(1);
                self.failure = Some(failure);
            }
        }
    }
}

/// Sends probe messages, and remembers the last one of each cluster.
#[derive(Default)]
pub struct Prober {
    /// By uid of the ChatCluster.
    clusters: Mutex<HashMap<String, Memory>>,
}

impl Prober {
    /// What is known of a cluster, after asking if it is time. `was_available` is what was last reported, maybe by another
    /// process.
    pub async fn look(&self, context: &Context, order: &Order, seen: Seen<'_>) -> Probe {
        let uid = &order.owner.uid;
        let circumstances = circumstances(seen.pods, seen.readiness);
        let mut memory = match self.remembered(uid) {
            Some(memory) if !memory.is_due(circumstances, seen.complete) => {
                return memory.verdict();
            }
            Some(memory) => memory,
            None => Memory {
                circumstances,
                asked: Instant::now(),
                passed_before: seen.was_available,
                failures: 0,
                failure: None,
                turn: 0,
            },
        };
        let result = send(context, order, seen.pods, memory.turn).await;
        if let Err(failure) = &result {
            tracing::warn!(namespace = order.namespace, cluster = order.name, %failure, "a probe message did not get through");
        }
        memory.note(circumstances, result);
        let verdict = memory.verdict();
        let mut clusters = self.lock();
        // One that serves is asked again before this: the others are gone, and nobody said so.
        clusters.retain(|_, memory| memory.asked.elapsed() < INTERVAL * 2);
        clusters.insert(uid.clone(), memory);
        verdict
    }

    /// How many clusters serve, as far as is known.
    pub fn clusters(&self) -> usize {
        self.lock().len()
    }

    /// What was last known of a cluster.
    pub fn known(&self, uid: &str) -> Probe {
        self.remembered(uid)
            .map_or(Probe::NotAsked, |memory| memory.verdict())
    }

    /// Nothing is known any more: it doesn't serve, or is gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn remembered(&self, uid: &str) -> Option<Memory> {
        self.lock().get(uid).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Memory>> {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pass has seen so far.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The cluster's pods.
    pub pods: &'a [Pod],
    /// What some of them say of the stores.
    pub readiness: &'a [PodReadiness],
    /// Whether no roll-out is under way.
    pub complete: bool,
    /// Whether the cluster was last reported available.
    pub was_available: bool,
}

/// Which pods are ready, and which stores they miss.
fn circumstances(pods: &[Pod], readiness: &[PodReadiness]) -> u64 {
    let mut uids: Vec<&str> = pods
        .iter()
        .filter(|pod| is_ready(pod))
        .filter_map(|pod| pod.metadata.uid.as_deref())
        .collect();
    uids.sort_unstable();
    let mut missed: Vec<&str> = readiness
        .iter()
        .flat_map(|pod| &pod.dependencies)
        .filter(|dependency| !dependency.ready)
        .map(|dependency| dependency.name.as_str())
        .collect();
    missed.sort_unstable();
    missed.dedup();
    let mut hasher = DefaultHasher::new();
    (uids, missed).hash(&mut hasher);
    hasher.finish()
}

async fn send(
    context: &Context,
    order: &Order,
    pods: &[Pod],
    turn: usize,
) -> Result<(), ProbeFailure> {
    let gateways = gateways(pods);
    let Some((from, to)) = pair(&gateways, turn) else {
        return Err(ProbeFailure {
            step: "connect",
            detail: "no gateway pod is ready and has an address".to_owned(),
        });
    };
    let no_token = |detail: &str| ProbeFailure {
        step: "token",
        detail: detail.to_owned(),
    };
    let pem = dereference::signing_key(&context.client, order)
        .await
        .map_err(|_| no_token("the Secret with the signing key can't be read"))?
        .ok_or_else(|| no_token("there is no Secret with the signing key"))?;
    let now = Timestamp::now().as_second();
    let token = keys::probe_token(&pem, &order.config.auth.issuer, now, TOKEN_SECONDS)
        .map_err(|_| no_token("the signing key can't be used"))?;
    round_trip(&token, from, to, &Uuid::new_v4().to_string()).await
}

/// Two neighbours; the same one twice when there is no other.
fn pair(gateways: &[Gateway], turn: usize) -> Option<(&Gateway, &Gateway)> {
    let from = gateways.get(turn.checked_rem(gateways.len())?)?;
    let to = gateways.get((turn + 1) % gateways.len())?;
    Some((from, to))
}

/// The gateway pods that serve, by name.
fn gateways(pods: &[Pod]) -> Vec<Gateway> {
    let mut gateways: Vec<Gateway> = pods
        .iter()
        .filter(|pod| {
            let component = pod.labels().get(COMPONENT_LABEL);
            component.is_some_and(|role| role == Role::Gateway.name()) && is_ready(pod)
        })
        .filter_map(|pod| {
            let address = pod.status.as_ref()?.pod_ip.as_deref()?;
            Gateway::at(&pod.name_any(), address, public_port(pod)?)
        })
        .collect();
    gateways.sort();
    gateways
}

/// The port that the pod itself says is the public one.
fn public_port(pod: &Pod) -> Option<u16> {
    let ports = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let mut public = ports.filter(|port| port.name.as_deref() == Some("http"));
    u16::try_from(public.next()?.container_port).ok()
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": { "name": name, "uid": name, "labels": { "app.kubernetes.io/component": "gateway" } },
            "spec": { "containers": [{ "name": "gateway", "ports": [
                { "name": "admin", "containerPort": 9090 }, { "name": "http", "containerPort": 8080 },
            ] }] },
            "status": { "podIP": "10.0.0.1", "conditions": [{ "type": "Ready", "status": ready }] },
        }))
        .unwrap()
    }

    fn failure() -> Result<(), ProbeFailure> {
        Err(ProbeFailure {
            step: "send",
            detail: "gateway g: HTTP 503 unavailable".to_owned(),
        })
    }

    fn memory(passed_before: bool) -> Memory {
        Memory {
            circumstances: 1,
            asked: Instant::now(),
            passed_before,
            failures: 0,
            failure: None,
            turn: 0,
        }
    }

    #[test]
    fn a_message_goes_from_one_ready_gateway_to_the_next() {
        let pods = [pod("b", "True"), pod("a", "True"), pod("c", "False")];
        let gateways = gateways(&pods);
        let names = |turn: usize| {
            let (from, to) = pair(&gateways, turn).unwrap();
            (from.pod.clone(), to.pod.clone())
        };
        assert_eq!(names(0), ("a".to_owned(), "b".to_owned()));
        assert_eq!(names(1), ("b".to_owned(), "a".to_owned()));
        assert_eq!(gateways[0].address, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(pair(&gateways[..1], 7).unwrap().1.pod, "a");
        assert!(pair(&[], 0).is_none());
    }

    #[test]
    fn what_never_got_through_fails_at_once_and_what_did_is_tried_again_first() {
        let mut new = memory(false);
        new.note(1, failure());
        assert!(matches!(new.verdict(), Probe::Failed(_)));
        let mut known = memory(true);
        for _ in 1..FAILURES {
            known.note(1, failure());
            assert_eq!(known.verdict(), Probe::Doubted);
        }
        known.note(1, failure());
        assert!(matches!(known.verdict(), Probe::Failed(_)));
        known.note(1, Ok(()));
        assert_eq!((known.verdict(), known.turn), (Probe::Passed, 1));
    }

    #[test]
    fn an_unchanged_cluster_is_asked_rarely_and_a_changed_one_when_its_roll_out_is_over() {
        let mut memory = memory(true);
        memory.note(1, Ok(()));
        assert!(!memory.is_due(1, true));
        assert!(!memory.is_due(2, false));
        assert!(memory.is_due(2, true));
        memory.asked -= INTERVAL;
        assert!(memory.is_due(1, true) && memory.is_due(1, false));
        memory.note(1, failure());
        assert!(!memory.is_due(2, true));
        memory.asked -= RETRY;
        assert!(memory.is_due(1, true));
        memory.note(1, failure());
        memory.asked -= RETRY;
        assert!(!memory.is_due(1, true));
        for _ in 0..100 {
            memory.note(1, failure());
        }
        memory.asked -= LONGEST_RETRY;
        assert!(memory.is_due(1, true));
    }

    #[test]
    fn another_pod_or_store_is_another_circumstance() {
        let now = |pods: &[Pod], missed: bool| {
            let readiness = PodReadiness {
                in_use: Default::default(),
                pod: "a".to_owned(),
                dependencies: vec![crate::readiness::Dependency {
                    name: "redis".to_owned(),
                    ready: !missed,
                }],
            };
            circumstances(pods, &[readiness])
        };
        let (a, b) = (pod("a", "True"), pod("b", "True"));
        let both = now(&[a.clone(), b.clone()], false);
        assert_eq!(both, now(&[b.clone(), a.clone()], false));
        assert_ne!(both, now(std::slice::from_ref(&a), false));
        assert_ne!(both, now(&[a.clone(), pod("b", "False")], false));
        assert_ne!(both, now(&[a, b], true));
    }
}
