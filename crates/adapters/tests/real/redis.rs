//! Redis, one server and a cluster.

use std::time::Duration;

use bytes::Bytes;
use carillon_adapters::{
    conformance,
    redis::{RedisOptions, Stores, connect},
};
use carillon_domain::{ErrorCode, RoomId, ports::BusItem, signal::Topic};
use fred::prelude::*;
use futures::{StreamExt, TryStreamExt};

use super::{PATIENCE, guarded, proxy::Proxy, server, unique};

const VARIABLES: [&str; 2] = ["CARILLON_TEST_REDIS", "CARILLON_TEST_REDIS_CLUSTER"];

/// Runs a suite on one server, and on a cluster.
async fn on_redis<F>(test: &str, suite: impl Fn(Stores) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for variable in VARIABLES {
        let Some(url) = server(test, variable) else {
            continue;
        };
        let prefix = unique("test:");
        let options = RedisOptions {
            url: url.clone(),
            prefix: prefix.clone(),
        };
        let stores = connect(&options).await.unwrap();
        guarded(suite(stores), remove_keys(&url, &prefix)).await;
    }
}

async fn remove_keys(url: &str, prefix: &str) {
    let client = Builder::from_config(Config::from_url(url).unwrap())
        .build()
        .unwrap();
    client.init().await.unwrap();
    let pattern = format!("{prefix}*");
    let keys: Vec<Key> = if client.is_clustered() {
        client
            .scan_cluster_buffered(pattern, Some(1000), None)
            .try_collect()
            .await
            .unwrap()
    } else {
        client
            .scan_buffered(pattern, Some(1000), None)
            .try_collect()
            .await
            .unwrap()
    };
    for key in keys {
        client.del::<(), _>(key).await.unwrap();
    }
    client.quit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_sessions() {
    on_redis("redis_sessions", |stores| {
        conformance::sessions::all(stores.sessions)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_ephemeral() {
    on_redis("redis_ephemeral", |stores| {
        conformance::ephemeral::all(stores.ephemeral)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_presence() {
    on_redis("redis_presence", |stores| {
        conformance::presence::all(stores.presence)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_registry() {
    on_redis("redis_registry", |stores| {
        conformance::registry::all(stores.registry)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_bus() {
    on_redis("redis_bus", |stores| conformance::bus::all(stores.bus)).await;
}

/// OPS-01: the probe works, and says `redis`.
#[tokio::test(flavor = "multi_thread")]
async fn redis_probe() {
    on_redis("redis_probe", |stores| async move {
        assert_eq!(stores.probe.name(), "redis");
        stores.probe.check().await.unwrap();
    })
    .await;
}

/// Two processes share the bus, the presence of people and the sessions.
#[tokio::test(flavor = "multi_thread")]
async fn redis_is_shared_by_processes() {
    let Some(url) = server("redis_is_shared_by_processes", VARIABLES[0]) else {
        return;
    };
    let prefix = unique("test:");
    let options = RedisOptions {
        url: url.clone(),
        prefix: prefix.clone(),
    };
    let (one, two) = (
        connect(&options).await.unwrap(),
        connect(&options).await.unwrap(),
    );
    let body = async move {
        let topic = Topic::of_room(RoomId::new());
        let (subscriptions, mut items) = one.bus.receiver().await.unwrap();
        subscriptions.subscribe(topic).await.unwrap();
        two.bus
            .publish(topic, Bytes::from_static(b"x"))
            .await
            .unwrap();
        let payload = Bytes::from_static(b"x");
        assert_eq!(
            items.next().await,
            Some(BusItem::Message { topic, payload })
        );
        assert!(one.ephemeral.claim("job", PATIENCE).await.unwrap());
        assert!(!two.ephemeral.claim("job", PATIENCE).await.unwrap());
    };
    guarded(body, remove_keys(&url, &prefix)).await;
}

/// Promise 8, MSG-18: after a cut the receiver hears again by itself, and is told that it may have missed something.
#[tokio::test(flavor = "multi_thread")]
async fn redis_bus_survives_a_cut() {
    let Some(url) = server("redis_bus_survives_a_cut", VARIABLES[0]) else {
        return;
    };
    let (proxy, behind_proxy) = Proxy::before(&url).await;
    let prefix = unique("test:");
    let direct = RedisOptions {
        url,
        prefix: prefix.clone(),
    };
    let through = RedisOptions {
        url: behind_proxy,
        prefix,
    };
    let (publisher, receiver) = (
        connect(&direct).await.unwrap(),
        connect(&through).await.unwrap(),
    );
    let topics: Vec<Topic> = (0..20).map(|_| Topic::of_room(RoomId::new())).collect();
    let (subscriptions, mut items) = receiver.bus.receiver().await.unwrap();
    for topic in &topics {
        subscriptions.subscribe(*topic).await.unwrap();
    }
    for round in 0u8..3 {
        proxy.cut();
        let lost = async { while items.next().await != Some(BusItem::Lost) {} };
        tokio::time::timeout(PATIENCE, lost)
            .await
            .expect("a loss is told");
        // From the loss on, every topic is heard again.
        for topic in &topics {
            let payload = Bytes::copy_from_slice(&[round]);
            publisher
                .bus
                .publish(*topic, payload.clone())
                .await
                .unwrap();
            let expected = BusItem::Message {
                topic: *topic,
                payload,
            };
            let heard = async {
                loop {
                    match items.next().await {
                        // One cut may be noticed in several ways.
                        Some(BusItem::Lost) => {}
                        item => return item,
                    }
                }
            };
            let heard = tokio::time::timeout(PATIENCE, heard).await;
            assert_eq!(heard.expect("the topic is heard again"), Some(expected));
        }
    }
    // Commands work again, too.
    let claimed = async { while receiver.ephemeral.claim("after", PATIENCE).await.is_err() {} };
    tokio::time::timeout(PATIENCE, claimed)
        .await
        .expect("commands work again");
}

/// Promise 8: a Redis that stalls makes requests fail soon, and work again when it goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_redis_is_unavailable() {
    let Some(url) = server("a_stalled_redis_is_unavailable", VARIABLES[0]) else {
        return;
    };
    let (proxy, url) = Proxy::before(&url).await;
    let stores = connect(&RedisOptions {
        url,
        prefix: unique("test:"),
    })
    .await
    .unwrap();
    stores.probe.check().await.unwrap();
    proxy.freeze();
    let began = std::time::Instant::now();
    let error = stores.ephemeral.increment("x", PATIENCE).await.unwrap_err();
    assert_eq!(
        error.code,
        ErrorCode::Unavailable,
        "{}",
        error.cause_chain()
    );
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "soon, not after {:?}",
        began.elapsed()
    );
    assert_eq!(
        stores.probe.check().await.unwrap_err().code,
        ErrorCode::Unavailable
    );
    proxy.thaw();
    let healed = async { while stores.probe.check().await.is_err() {} };
    tokio::time::timeout(PATIENCE, healed)
        .await
        .expect("it heals by itself");
}

/// Promise 8: a server that isn't there is named, without the password.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_redis_is_named() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let options = RedisOptions::new(format!("redis://user:secret@{nobody}"));
    let Err(error) = connect(&options).await else {
        panic!("nobody listens there")
    };
    assert_eq!(error.code, ErrorCode::Unavailable);
    assert!(
        error.detail.contains(&nobody.to_string()),
        "{}",
        error.detail
    );
    assert!(!format!("{error} {error:?} {options:?}").contains("secret"));
    let Err(error) = connect(&RedisOptions::new("no url")).await else {
        panic!("that is no URL")
    };
    assert_eq!(error.code, ErrorCode::InvalidRequest);
}
