//! How long operations on stores take, for every adapter.

use std::{future::Future, sync::LazyLock, time::Instant};

use carillon_telemetry::metrics::{self, HistogramVec};

static DURATION: LazyLock<HistogramVec> = LazyLock::new(|| {
    metrics::histogram(
        "carillon_store_operation_duration_seconds",
        "How long an operation on a store took, failed ones too.",
        &["store", "operation"],
    )
});

/// Does `work` and counts its time.
pub(crate) async fn timed<T>(
    store: &'static str,
    operation: &'static str,
    work: impl Future<Output = T>,
) -> T {
    let started = Instant::now();
    let result = work.await;
    DURATION
        .with_label_values(&[store, operation])
        .observe(started.elapsed().as_secs_f64());
    result
}
