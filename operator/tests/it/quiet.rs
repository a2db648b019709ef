//! While nothing changes, nothing is written.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::plane::{Plane, is_long};
use crate::proxy::summary;
use crate::stage::{Stage, first_order};

/// A little longer than the operator waits between two looks.
const SHORT: Duration = Duration::from_secs(75);
const LONG: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_minutes_make_no_write() -> Result<()> {
    let Some(plane) = Plane::from_environment("quiet::unchanged_minutes_make_no_write").await?
    else {
        return Ok(());
    };
    let stage = Stage::set(&plane).await?;
    let operator = stage.replica("carillon-operator-0").await?;
    operator.start()?;
    stage.order(&first_order()).await?;
    stage.settled(&operator).await?;
    let before = stage.cluster().await?;
    let mark = operator.proxy.mark();
    tokio::time::sleep(if is_long() { LONG } else { SHORT }).await;
    let records = operator.proxy.since(mark);
    let passes = records
        .iter()
        .filter(|record| record.describe().starts_with("get chatclusters"))
        .count();
    ensure!(passes > 0, "it didn't look: {:?}", summary(&records));
    let writes: Vec<String> = records
        .iter()
        .filter(|record| record.is_write())
        .map(|record| record.describe())
        .collect();
    ensure!(writes.is_empty(), "{writes:?}");
    let after = stage.cluster().await?;
    ensure!(
        before.metadata.resource_version == after.metadata.resource_version,
        "the ChatCluster was written to"
    );
    // The user's spec is the user's alone.
    let managed = serde_json::to_value(&after.metadata.managed_fields)?;
    for entry in managed.as_array().into_iter().flatten() {
        let owns_spec = entry["fieldsV1"].get("f:spec").is_some();
        ensure!(owns_spec == (entry["manager"] == "user"), "{}", entry);
    }
    println!("{passes} passes, {} requests, no write", records.len());
    stage.strike().await
}
