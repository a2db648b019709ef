//! The real servers that the environment names.

use std::env;

/// Addresses of the real stores.
#[derive(Clone, Debug)]
pub struct Servers {
    pub scylla: String,
    pub redis: String,
    pub rabbitmq: String,
}

/// The real stores, or `None` after saying that `test` is skipped.
pub fn stores(test: &str) -> Option<Servers> {
    Some(Servers {
        scylla: variable(test, "CARILLON_TEST_SCYLLA")?,
        redis: variable(test, "CARILLON_TEST_REDIS")?,
        rabbitmq: variable(test, "CARILLON_TEST_RABBITMQ")?,
    })
}

/// A variable, or `None` after saying that `test` is skipped.
pub fn variable(test: &str, name: &str) -> Option<String> {
    match env::var(name) {
        Ok(value) if !value.is_empty() => Some(value),
        _ => {
            println!("CARILLON-SKIPPED {test}: {name} is not set");
            None
        }
    }
}
