//! Readiness: whether each dependency works, asked at most once a second however many ask (OPS-01).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::ports::Probe;
use futures::future::join_all;
use serde::Serialize;
use tokio::sync::Mutex;

const READY: &str = "ready";
const DRAINING: &str = "draining";
const UP: &str = "up";

const FRESH: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// One dependency's state.
#[derive(Clone, Debug, Serialize)]
pub struct DependencyStatus {
    /// Its name, for example `scylla`.
    pub name: &'static str,
    /// `up` or `down`.
    pub status: &'static str,
    /// How long it took, in milliseconds.
    pub latency_ms: f64,
    /// A sentence when it isn't ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The process's state as `/ready` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `ready`, `unready`, or `draining` while the process drains.
    pub status: &'static str,
    /// Each dependency.
    pub dependencies: Vec<DependencyStatus>,
}

impl Status {
    /// Whether the process wants work.
    pub fn is_ready(&self) -> bool {
        self.status == READY
    }
}

/// Asks the dependencies.
pub struct Readiness {
    probes: Vec<Arc<dyn Probe>>,
    stop: tokio_util::sync::CancellationToken,
    // Held while asking, on purpose: everybody who asks meanwhile gets the same answer.
    last: Mutex<Option<(Instant, Status)>>,
}

impl Readiness {
    /// For these dependencies; not ready any more once `stop` is cancelled.
    pub fn new(probes: Vec<Arc<dyn Probe>>, stop: tokio_util::sync::CancellationToken) -> Self {
        Self {
            probes,
            stop,
            last: Mutex::new(None),
        }
    }

    /// The state now, at most a second old.
    pub async fn status(&self) -> Status {
        let mut last = self.last.lock().await;
        let fresh = last.as_ref().filter(|(at, status)| {
            at.elapsed() < FRESH && (status.status == DRAINING) == self.stop.is_cancelled()
        });
        if let Some((_, status)) = fresh {
            return status.clone();
        }
        let dependencies = join_all(self.probes.iter().map(|probe| check(probe.as_ref()))).await;
        let all_up = dependencies
            .iter()
            .all(|dependency| dependency.status == UP);
        let status = match (self.stop.is_cancelled(), all_up) {
            (true, _) => DRAINING,
            (false, true) => READY,
            (false, false) => "unready",
        };
        let status = Status {
            status,
            dependencies,
        };
        *last = Some((Instant::now(), status.clone()));
        status
    }
}

async fn check(probe: &dyn Probe) -> DependencyStatus {
    let started = Instant::now();
    let detail = match tokio::time::timeout(PATIENCE, probe.check()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::debug!(dependency = probe.name(), %error, cause = error.cause_chain(), "a dependency is not ready");
            Some(error.detail.into_owned())
        }
        Err(_) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let latency_ms = (started.elapsed().as_secs_f64() * 1e5).round() / 100.0;
    DependencyStatus {
        name: probe.name(),
        status: if detail.is_none() { UP } else { "down" },
        latency_ms,
        detail,
    }
}

#[cfg(test)]
mod tests {
    use carillon_domain::{Error, ErrorCode, Result};

    use super::*;

    struct Fixed(Result<()>);

    #[async_trait::async_trait]
    impl Probe for Fixed {
        fn name(&self) -> &'static str {
            "fixed"
        }
        async fn check(&self) -> Result<()> {
            self.0.clone()
        }
    }

    /// OPS-01: one dependency that is away makes the process not ready, and is named.
    #[tokio::test]
    async fn a_dependency_that_is_away_is_named() {
        let away = Fixed(Err(Error::new(
            ErrorCode::Unavailable,
            "scylla is not available",
        )));
        let readiness = Readiness::new(
            vec![Arc::new(Fixed(Ok(()))), Arc::new(away)],
            Default::default(),
        );
        let status = readiness.status().await;
        assert!(!status.is_ready());
        assert_eq!(
            status.dependencies[1].detail.as_deref(),
            Some("scylla is not available")
        );
    }

    /// OPS-02: a stopping process is not ready, at once.
    #[tokio::test]
    async fn stopping_is_not_ready() {
        let stop = tokio_util::sync::CancellationToken::new();
        let readiness = Readiness::new(vec![Arc::new(Fixed(Ok(())))], stop.clone());
        assert!(readiness.status().await.is_ready());
        stop.cancel();
        assert!(!readiness.status().await.is_ready());
    }
}
