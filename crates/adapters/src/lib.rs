//! The ports of [`carillon_domain::ports`] on real stores, and the conformance suites that each of them passes.
//!
//! This is the only crate that knows drivers: an embedded LSM store, ScyllaDB, Redis, RabbitMQ and object stores. It decides
//! nothing about rooms, people or messages: the services do.

pub mod backups;
pub mod conformance;
pub mod embedded;
pub mod limits;
mod login;
pub mod object;
mod observe;
pub mod rabbitmq;
pub mod redis;
pub mod scylla;
pub mod sealed;

pub use login::{Login, UserPassword};
