//! Every port on the real servers that the environment names: `CARILLON_TEST_SCYLLA` (`host:port`, ScyllaDB or Cassandra),
//! `CARILLON_TEST_REDIS` and `CARILLON_TEST_REDIS_CLUSTER` (URLs), `CARILLON_TEST_RABBITMQ` (a URL). Without a variable its tests
//! say `CARILLON-SKIPPED` and do nothing.
//!
//! Each test has a keyspace, a prefix of keys or queues of its own, and takes it away at the end.

#[path = "real/archive.rs"]
mod archive;
mod carry;
#[path = "real/proxy.rs"]
mod proxy;
#[path = "real/rabbitmq.rs"]
mod rabbitmq;
#[path = "real/redis.rs"]
mod redis;
#[path = "real/scylla.rs"]
mod scylla;

use std::time::Duration;

/// How long anything may take on a slow machine. Waiting ends as soon as it happened.
const PATIENCE: Duration = Duration::from_secs(60);

/// The value of a variable; without it, says that the test is skipped.
fn server(test: &str, variable: &str) -> Option<String> {
    let value = std::env::var(variable)
        .ok()
        .filter(|value| !value.is_empty());
    if value.is_none() {
        println!("CARILLON-SKIPPED {test}: {variable} is not set");
    }
    value
}

/// A name that no other test has.
fn unique(prefix: &str) -> String {
    format!("{prefix}{}", uuid::Uuid::now_v7().simple())
}

/// Runs a test's body so that its end can be awaited even when it panics.
async fn guarded(
    body: impl Future<Output = ()> + Send + 'static,
    cleanup: impl Future<Output = ()>,
) {
    let result = tokio::spawn(body).await;
    cleanup.await;
    if let Err(error) = result {
        std::panic::resume_unwind(error.into_panic());
    }
}
