//! One leader at a time, by a Lease.
//!
//! Whoever holds the Lease renews it; whoever wants it waits until it has not changed for its whole duration *by the
//! waiter's own clock*, so that clocks that disagree can't make two leaders. Every write carries the resource version
//! that was read: of two that reach out at once, one is refused. A leader that can't renew stops acting before others
//! may start, and one that was paused meanwhile finds its [`Term`] over before it writes.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::term::{Moment, Term};

/// How long a Lease holds without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// How long a leader acts and tries to renew before it stops. Shorter than [`DURATION`] by more than a clock's error and a
/// write on its way.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and how often a waiter looks.
const PERIOD: Duration = Duration::from_secs(3);

/// A Lease that this process wants or has.
pub struct Leadership {
    api: Api<Lease>,
    name: String,
    identity: String,
    term: Term,
}

/// A Lease as a waiter last saw it change.
struct Sighting {
    resource_version: Option<String>,
    at: Instant,
}

impl Leadership {
    /// The Lease `name` in `namespace`, wanted by `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str) -> Self {
        Leadership {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            identity: identity.to_owned(),
            term: Term::new(RENEW_DEADLINE),
        }
    }

    /// The time for which this process may act.
    pub fn term(&self) -> Term {
        self.term.clone()
    }

    /// Waits until this process is the leader; `false` when `shutdown` came first.
    pub async fn acquire(&self, shutdown: &CancellationToken) -> bool {
        let mut seen: Option<Sighting> = None;
        loop {
            let asked = Moment::now();
            match self.try_acquire(&mut seen).await {
                Ok(true) => {
                    self.term.renew(asked);
                    return true;
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, lease = self.name, "the Lease can't be read or taken")
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return false,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Renews until `shutdown`, then gives the Lease up; returns early, with `false`, when it is lost.
    pub async fn hold(&self, shutdown: &CancellationToken) -> bool {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.term.end();
                    self.release().await;
                    return true;
                }
                () = tokio::time::sleep(PERIOD) => {}
            }
            // Others count from when they see the renewal, which may be any moment after it was asked for.
            let asked = Moment::now();
            match tokio::time::timeout(self.term.left(), self.renew()).await {
                Ok(Ok(true)) => self.term.renew(asked),
                Ok(Ok(false)) => {
                    self.term.end();
                    tracing::error!(lease = self.name, "another process took the Lease");
                    return false;
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, lease = self.name, "the Lease can't be renewed")
                }
                Err(_) => {}
            }
            if self.term.left().is_zero() {
                tracing::error!(lease = self.name, "the Lease could not be renewed in time");
                return false;
            }
        }
    }

    async fn try_acquire(&self, seen: &mut Option<Sighting>) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return self.write(self.lease(None)).await;
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default();
        if holder.is_empty() || holder == self.identity {
            return self.write(self.lease(Some(&lease))).await;
        }
        let version = &lease.metadata.resource_version;
        match seen {
            Some(sighting) if sighting.resource_version == *version => {
                let duration = lease
                    .spec
                    .as_ref()
                    .and_then(|spec| spec.lease_duration_seconds)
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map_or(DURATION, Duration::from_secs);
                if sighting.at.elapsed() >= duration {
                    return self.write(self.lease(Some(&lease))).await;
                }
            }
            _ => {
                *seen = Some(Sighting {
                    resource_version: version.clone(),
                    at: Instant::now(),
                })
            }
        }
        Ok(false)
    }

    async fn renew(&self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            return self.write(self.lease(None)).await;
        };
        if lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref())
            != Some(&self.identity)
        {
            return Ok(false);
        }
        self.write(self.lease(Some(&lease))).await
    }

    /// So that the next leader need not wait. Best effort: without it the Lease runs out by itself.
    async fn release(&self) {
        let released = async {
            let Some(mut lease) = self.api.get_opt(&self.name).await? else {
                return Ok(());
            };
            if let Some(spec) = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_deref() == Some(&self.identity))
            {
                spec.holder_identity = Some(String::new());
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<(), kube::Error>(())
        };
        match tokio::time::timeout(PERIOD, released).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = self.name, "the Lease could not be given up")
            }
            Err(_) => tracing::warn!(lease = self.name, "the Lease could not be given up in time"),
        }
    }

    /// Writes `lease`; `false` when somebody else was faster.
    async fn write(&self, lease: Lease) -> Result<bool, kube::Error> {
        let written = if lease.metadata.resource_version.is_some() {
            self.api
                .replace(&self.name, &PostParams::default(), &lease)
                .await
        } else {
            self.api.create(&PostParams::default(), &lease).await
        };
        match written {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn lease(&self, previous: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let previous_spec = previous
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let is_ours = previous_spec.holder_identity.as_deref() == Some(&self.identity);
        Lease {
            metadata: previous.map_or_else(
                || ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                |lease| lease.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                acquire_time: if is_ours {
                    previous_spec.acquire_time
                } else {
                    Some(now.clone())
                },
                renew_time: Some(now),
                lease_transitions: Some(
                    previous_spec.lease_transitions.unwrap_or(0) + i32::from(!is_ours),
                ),
                ..previous_spec
            }),
        }
    }
}
