//! Dashboards and alerts: a real Prometheus looks at a platform that people use, and at one that breaks.

mod alerts;
mod chart;
mod dashboards;
mod operator;
mod prometheus;
mod rules;
