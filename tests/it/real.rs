//! Ring 3 on the real stores: every role a process of its own, two gateways, two message replicas.

use anyhow::Result;

use crate::world::{
    platform::{QUICK, RealCluster, RealOptions},
    script::Stage,
    servers,
};

async fn play(test: &str, script: &str) -> Result<()> {
    let Some(servers) = servers::stores(test) else {
        return Ok(());
    };
    let options = RealOptions {
        gateways: 2,
        messages: 2,
        spec: QUICK.into(),
        ..Default::default()
    };
    let cluster = RealCluster::start(&servers, &options).await?;
    let bases = cluster
        .gateways
        .iter()
        .map(|gateway| gateway.base.clone())
        .collect();
    Stage::new(bases).run(script).await
}

/// MSG-01, MSG-02, RT-01 to RT-04, RT-08: the two people sit on different gateways.
#[tokio::test(flavor = "multi_thread")]
async fn conversation_over_two_gateways() -> Result<()> {
    play(
        "real::conversation_over_two_gateways",
        include_str!("scripts/conversation.chat"),
    )
    .await
}

/// MSG-18, MSG-19, MSG-20.
#[tokio::test(flavor = "multi_thread")]
async fn away_and_back_over_two_gateways() -> Result<()> {
    play(
        "real::away_and_back_over_two_gateways",
        include_str!("scripts/away.chat"),
    )
    .await
}

/// MSG-01, MSG-08.
#[tokio::test(flavor = "multi_thread")]
async fn changes_and_permissions_over_two_gateways() -> Result<()> {
    play(
        "real::changes_and_permissions_over_two_gateways",
        include_str!("scripts/changes.chat"),
    )
    .await
}

/// MSG-03, MSG-08, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn moderation_over_two_gateways() -> Result<()> {
    play(
        "real::moderation_over_two_gateways",
        include_str!("scripts/moderation.chat"),
    )
    .await
}

/// MSG-05, MSG-06, MSG-09, MSG-11, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn receipts_and_counts_over_two_gateways() -> Result<()> {
    play(
        "real::receipts_and_counts_over_two_gateways",
        include_str!("scripts/receipts.chat"),
    )
    .await
}

/// USER-05, USER-06, USER-07: as on the embedded store, with the settings in ScyllaDB and two gateways.
#[tokio::test(flavor = "multi_thread")]
async fn privacy_over_two_gateways() -> Result<()> {
    play(
        "real::privacy_over_two_gateways",
        include_str!("scripts/privacy.chat"),
    )
    .await
}

/// MSG-21, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn disappearing_messages_over_two_gateways() -> Result<()> {
    play(
        "real::disappearing_messages_over_two_gateways",
        include_str!("scripts/disappearing.chat"),
    )
    .await
}

/// RT-05, RT-08.
#[tokio::test(flavor = "multi_thread")]
async fn several_devices_over_two_gateways() -> Result<()> {
    play(
        "real::several_devices_over_two_gateways",
        include_str!("scripts/devices.chat"),
    )
    .await
}
