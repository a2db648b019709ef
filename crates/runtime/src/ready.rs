//! Readiness: whether each dependency works, asked at most once a second however many ask (OPS-01).

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use carillon_domain::ports::Probe;
use carillon_telemetry::metrics::{self, IntGaugeVec};
use futures::future::join_all;
use serde::Serialize;
use tokio::sync::Mutex;

static PROCESS_READY: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::int_gauge(
        "carillon_ready",
        "1 while the process wants work, 0 while it can't do it or is stopping.",
        &["version"],
    )
});
static DEPENDENCY_UP: LazyLock<IntGaugeVec> = LazyLock::new(|| {
    metrics::int_gauge(
        "carillon_dependency_up",
        "1 while a store or peer answers, 0 otherwise; required: the process isn't ready without it.",
        &["dependency", "required"],
    )
});

const READY: &str = "ready";
const DRAINING: &str = "draining";
const UP: &str = "up";
const CONNECTING: &str = "connecting";
const DOWN: &str = "down";

const FRESH: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(2);

/// Something that the process depends on.
#[derive(Clone)]
pub struct Dependency {
    probe: Arc<dyn Probe>,
    required: bool,
}

impl Dependency {
    /// Without it the process can't do its work, and isn't ready.
    pub fn required(probe: Arc<dyn Probe>) -> Self {
        Self {
            probe,
            required: true,
        }
    }

    /// The process does its work without it, if with less: it is shown, and makes nothing unready.
    pub fn optional(probe: Arc<dyn Probe>) -> Self {
        Self {
            probe,
            required: false,
        }
    }

    /// Whether the process isn't ready without it.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// What asks it.
    pub fn probe(&self) -> Arc<dyn Probe> {
        self.probe.clone()
    }
}

/// The cause in a probe's error until the first attempt to connect has ended: nothing is known to be wrong yet.
#[derive(Clone, Copy, Debug)]
pub struct Connecting;

impl std::fmt::Display for Connecting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the first attempt is under way")
    }
}

impl std::error::Error for Connecting {}

/// One dependency's state.
#[derive(Clone, Debug, Serialize)]
pub struct DependencyStatus {
    /// Its name, for example `scylla`.
    pub name: &'static str,
    /// Whether the process isn't ready without it.
    pub required: bool,
    /// `up`, `down`, or `connecting` until the first attempt has ended.
    pub status: &'static str,
    /// How long it took, in milliseconds.
    pub latency_ms: f64,
    /// A sentence when it isn't ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What the process has in use of the keys and certificates that may change while it runs: public names or fingerprints of them, never the
/// things themselves. Clones are handles of the same thing.
#[derive(Clone, Debug, Default)]
pub struct InUse(Arc<std::sync::Mutex<BTreeMap<&'static str, String>>>);

impl InUse {
    /// From now on.
    pub fn set(&self, name: &'static str, fingerprint: impl Into<String>) {
        self.lock().insert(name, fingerprint.into());
    }

    fn now(&self) -> BTreeMap<&'static str, String> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, String>> {
        // A map is whole whoever panicked.
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The process's state as `/ready` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// `ready`, `unready`, or `draining` while the process drains.
    pub status: &'static str,
    /// Each dependency.
    pub dependencies: Vec<DependencyStatus>,
    /// See [`InUse`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub in_use: BTreeMap<&'static str, String>,
}

impl Status {
    /// Whether the process wants work.
    pub fn is_ready(&self) -> bool {
        self.status == READY
    }

    fn count(&self) {
        PROCESS_READY
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(self.is_ready().into());
        for dependency in &self.dependencies {
            let required = if dependency.required { "true" } else { "false" };
            DEPENDENCY_UP
                .with_label_values(&[dependency.name, required])
                .set((dependency.status == UP).into());
        }
    }
}

/// Asks the dependencies.
pub struct Readiness {
    dependencies: Vec<Dependency>,
    stop: tokio_util::sync::CancellationToken,
    in_use: InUse,
    // Held while asking, on purpose: everybody who asks meanwhile gets the same answer.
    last: Mutex<Option<(Instant, Status)>>,
}

impl Readiness {
    /// For these dependencies; not ready any more once `stop` is cancelled.
    pub fn new(dependencies: Vec<Dependency>, stop: tokio_util::sync::CancellationToken) -> Self {
        Self {
            dependencies,
            stop,
            in_use: InUse::default(),
            last: Mutex::new(None),
        }
    }

    /// Shows what is in use as well.
    #[must_use]
    pub fn showing(mut self, in_use: InUse) -> Self {
        self.in_use = in_use;
        self
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
        let dependencies = join_all(self.dependencies.iter().map(check)).await;
        let can_work = dependencies
            .iter()
            .all(|dependency| dependency.status == UP || !dependency.required);
        let status = match (self.stop.is_cancelled(), can_work) {
            (true, _) => DRAINING,
            (false, true) => READY,
            (false, false) => "unready",
        };
        let status = Status {
            status,
            dependencies,
            in_use: self.in_use.now(),
        };
        status.count();
        *last = Some((Instant::now(), status.clone()));
        status
    }
}

async fn check(dependency: &Dependency) -> DependencyStatus {
    let probe = &dependency.probe;
    let started = Instant::now();
    let (status, detail) = match tokio::time::timeout(PATIENCE, probe.check()).await {
        Ok(Ok(())) => (UP, None),
        Ok(Err(error)) => {
            tracing::debug!(dependency = probe.name(), %error, cause = error.cause_chain(), "a dependency is not ready");
            let connecting =
                std::error::Error::source(&error).is_some_and(|cause| cause.is::<Connecting>());
            let status = if connecting { CONNECTING } else { DOWN };
            (status, Some(error.detail.into_owned()))
        }
        Err(_) => (
            DOWN,
            Some(format!("no answer within {} s", PATIENCE.as_secs())),
        ),
    };
    let latency_ms = (started.elapsed().as_secs_f64() * 1e5).round() / 100.0;
    DependencyStatus {
        name: probe.name(),
        required: dependency.required,
        status,
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
            vec![
                Dependency::required(Arc::new(Fixed(Ok(())))),
                Dependency::required(Arc::new(away)),
            ],
            Default::default(),
        );
        let status = readiness.status().await;
        assert!(!status.is_ready());
        assert_eq!(
            status.dependencies[1].detail.as_deref(),
            Some("scylla is not available")
        );
    }

    /// OPS-03: whoever scrapes sees what `/ready` shows.
    #[tokio::test]
    async fn dependencies_are_metrics() {
        struct Counted;

        #[async_trait::async_trait]
        impl Probe for Counted {
            fn name(&self) -> &'static str {
                "counted"
            }
            async fn check(&self) -> Result<()> {
                Err(Error::new(ErrorCode::Unavailable, "away"))
            }
        }

        let dependencies = vec![Dependency::required(Arc::new(Counted))];
        Readiness::new(dependencies, Default::default())
            .status()
            .await;
        let shown = metrics::render();
        assert!(
            shown.contains("carillon_dependency_up{dependency=\"counted\",required=\"true\"} 0"),
            "{shown}"
        );
        assert!(shown.contains("carillon_ready{version="), "{shown}");
    }

    /// OPS-01: what the process can do without is shown, and takes nothing away.
    #[tokio::test]
    async fn an_optional_dependency_that_is_away_is_shown() {
        let away = Fixed(Err(Error::new(ErrorCode::Unavailable, "no broker")));
        let readiness = Readiness::new(
            vec![
                Dependency::required(Arc::new(Fixed(Ok(())))),
                Dependency::optional(Arc::new(away)),
            ],
            Default::default(),
        );
        let status = readiness.status().await;
        assert!(status.is_ready());
        assert_eq!(
            serde_json::to_value(&status.dependencies[1]).unwrap()["status"],
            "down"
        );
        assert!(!status.dependencies[1].required);
    }

    /// OPS-01: before the first attempt has ended nobody is told that a store is down.
    #[tokio::test]
    async fn a_first_attempt_is_connecting_and_not_ready() {
        let connecting =
            Error::new(ErrorCode::Unavailable, "connecting").caused_by(super::Connecting);
        let readiness = Readiness::new(
            vec![Dependency::required(Arc::new(Fixed(Err(connecting))))],
            Default::default(),
        );
        let status = readiness.status().await;
        assert!(!status.is_ready());
        assert_eq!(status.dependencies[0].status, "connecting");
    }

    /// OPS-02: a stopping process is not ready, at once.
    #[tokio::test]
    async fn stopping_is_not_ready() {
        let stop = tokio_util::sync::CancellationToken::new();
        let readiness = Readiness::new(
            vec![Dependency::required(Arc::new(Fixed(Ok(()))))],
            stop.clone(),
        );
        assert!(readiness.status().await.is_ready());
        stop.cancel();
        assert!(!readiness.status().await.is_ready());
    }
}
