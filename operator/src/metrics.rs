//! What the operator counts, in Prometheus' text format.

use std::time::Duration;

use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// The operator's metrics, in a registry of their own.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    duration: Histogram,
    writes: IntCounterVec,
    /// 1 while this process is the leader.
    pub leader: IntGauge,
    /// Lost watches and other errors outside a reconcile.
    pub watch_errors: IntCounter,
}

impl Metrics {
    /// Registers every metric.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let reconciles = IntCounterVec::new(
            Opts::new(
                "carillon_operator_reconciles_total",
                "Reconciles of ChatClusters, by result (ok, error).",
            ),
            &["result"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "carillon_operator_reconcile_duration_seconds",
                "How long a reconcile took.",
            )
            .buckets(vec![
                0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
            ]),
        )?;
        let writes = IntCounterVec::new(
            Opts::new(
                "carillon_operator_writes_total",
                "Writes to the API server, by kind of object and verb.",
            ),
            &["kind", "verb"],
        )?;
        let leader = IntGauge::new(
            "carillon_operator_leader",
            "1 while this process is the leader.",
        )?;
        let watch_errors = IntCounter::new(
            "carillon_operator_watch_errors_total",
            "Lost watches and other errors outside a reconcile.",
        )?;
        registry.register(Box::new(reconciles.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        registry.register(Box::new(writes.clone()))?;
        registry.register(Box::new(leader.clone()))?;
        registry.register(Box::new(watch_errors.clone()))?;
        for result in ["ok", "error"] {
            reconciles.with_label_values(&[result]);
        }
        Ok(Metrics {
            registry,
            reconciles,
            duration,
            writes,
            leader,
            watch_errors,
        })
    }

    /// One reconcile ended.
    pub fn reconciled(&self, took: Duration, ok: bool) {
        self.duration.observe(took.as_secs_f64());
        self.reconciles
            .with_label_values(&[if ok { "ok" } else { "error" }])
            .inc();
    }

    /// One write was made.
    pub fn wrote(&self, kind: &str, verb: &str) {
        self.writes.with_label_values(&[kind, verb]).inc();
    }

    /// Everything in text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_rendered() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled(Duration::from_millis(20), true);
        metrics.wrote("Deployment", "apply");
        let text = metrics.render().unwrap();
        assert!(
            text.contains("carillon_operator_reconciles_total{result=\"ok\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("carillon_operator_reconciles_total{result=\"error\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("carillon_operator_reconcile_duration_seconds_count 1"),
            "{text}"
        );
        assert!(
            text.contains("carillon_operator_writes_total{kind=\"Deployment\",verb=\"apply\"} 1"),
            "{text}"
        );
    }
}
