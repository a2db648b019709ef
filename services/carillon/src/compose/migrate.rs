//! `carillon migrate`: the step that the operator runs before a rollout (OPS-06).

use std::time::{Duration, Instant};

use carillon_adapters::scylla;
use carillon_crds::config::StoresConfig;
use carillon_domain::ErrorCode;

use super::stores;
use crate::{cli::Migrate, config, failure::Failure};

/// Applies what is missing, and says what it was. Waits for a database that isn't up yet.
pub async fn migrate(options: Migrate) -> Result<(), Failure> {
    let config = config::load(&options.config)?;
    let StoresConfig::External(external) = &config.stores else {
        println!("embedded stores are migrated when they are opened; nothing to do");
        return Ok(());
    };
    let scylla_options = stores::scylla_options(&external.scylla)?;
    let deadline = Instant::now() + Duration::from_secs(options.patience);
    loop {
        match scylla::migrate_with(&scylla_options).await {
            Ok(applied) if applied.is_empty() => {
                println!("the schema of {} is up to date", external.scylla.keyspace);
                return Ok(());
            }
            Ok(applied) => {
                for migration in applied {
                    println!("applied {}: {}", migration.version, migration.name);
                }
                return Ok(());
            }
            Err(error) if error.code == ErrorCode::Unavailable && Instant::now() < deadline => {
                eprintln!("carillon: {}; trying again", error.detail);
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
