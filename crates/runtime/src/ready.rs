//! Readiness: whether each dependency works, asked at most once a second however many ask (OPS-01).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use carillon_domain::ports::Probe;
use futures::future::join_all;
use serde::Serialize;
use tokio::sync::Mutex;

const FRESH: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// One dependency's state.
#[derive(Clone, Debug, Serialize)]
pub struct DependencyStatus {
    /// Its name, for example `scylla`.
    pub name: &'static str,
    /// Whether it answered.
    pub ready: bool,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
    /// A sentence when it isn't ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The process's state as `/ready` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Whether every dependency is ready and the process isn't stopping.
    pub ready: bool,
    /// Set while the process drains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub stopping: bool,
    /// Each dependency.
    pub dependencies: Vec<DependencyStatus>,
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
            at.elapsed() < FRESH && status.stopping == self.stop.is_cancelled()
        });
        if let Some((_, status)) = fresh {
            return status.clone();
        }
        let dependencies = join_all(self.probes.iter().map(|probe| check(probe.as_ref()))).await;
        let stopping = self.stop.is_cancelled();
        let status = Status {
            ready: !stopping && dependencies.iter().all(|d| d.ready),
            stopping,
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
    let latency_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    DependencyStatus {
        name: probe.name(),
        ready: detail.is_none(),
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
        assert!(!status.ready);
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
        assert!(readiness.status().await.ready);
        stop.cancel();
        assert!(!readiness.status().await.ready);
    }
}
