//! Prometheus metrics in the one registry of the process.
//!
//! Make each metric once, in a `LazyLock` static beside the code that counts. Names follow the Prometheus conventions:
//! `carillon_<what>_<unit>`, `_total` for counters.

pub use prometheus::{Histogram, HistogramVec, IntCounterVec, IntGaugeVec};
use prometheus::{HistogramOpts, Opts, TextEncoder, core::Collector};

/// Bounds of duration histograms, in seconds: 0.5 ms to 10 s.
pub const DURATION_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// A counter by labels.
///
/// # Panics
/// When the name is not valid, or registered already: a defect that the first use of the static shows.
pub fn int_counter(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    register(IntCounterVec::new(Opts::new(name, help), labels))
}

/// A gauge by labels. Panics like [`int_counter`].
pub fn int_gauge(name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
    register(IntGaugeVec::new(Opts::new(name, help), labels))
}

/// A histogram of seconds by labels, with [`DURATION_BUCKETS`]. Panics like [`int_counter`].
pub fn histogram(name: &str, help: &str, labels: &[&str]) -> HistogramVec {
    register(HistogramVec::new(
        HistogramOpts::new(name, help).buckets(DURATION_BUCKETS.to_vec()),
        labels,
    ))
}

fn register<M: Collector + Clone + 'static>(made: prometheus::Result<M>) -> M {
    let metric = match made {
        Ok(metric) => metric,
        Err(error) => panic!("bad metric definition: {error}"),
    };
    if let Err(error) = prometheus::default_registry().register(Box::new(metric.clone())) {
        panic!("bad metric definition: {error}");
    }
    metric
}

/// Every metric in the Prometheus text format, version 0.0.4.
pub fn render() -> String {
    TextEncoder::new()
        .encode_to_string(&prometheus::gather())
        .unwrap_or_default()
}

/// The content type of [`render`].
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

#[cfg(test)]
mod tests {
    /// OPS-03: what is counted shows in the exposition.
    #[test]
    fn a_counted_thing_is_rendered() {
        super::int_counter("carillon_test_things_total", "Things.", &["kind"])
            .with_label_values(&["a"])
            .inc_by(3);
        assert!(super::render().contains("carillon_test_things_total{kind=\"a\"} 3"));
    }
}
