//! Logs, traces and metrics: the only crate that knows OpenTelemetry and Prometheus.
//!
//! Other crates write `tracing` spans and events and keep counters made by [`metrics`]; this crate says where they go. It
//! doesn't decide what is logged, and it serves nothing: the admin server of `carillon-runtime` shows [`metrics::render`].

mod logs;
pub mod metrics;
pub mod propagation;
mod start;

pub use logs::LogFormat;
pub use start::{Options, StartError, Telemetry, start};
