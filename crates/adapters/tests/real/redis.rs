//! Redis, one server and a cluster.

use std::time::Duration;

use bytes::Bytes;
use carillon_adapters::{
    conformance,
    redis::{RedisOptions, Stores, connect},
};
use carillon_domain::{
    ErrorCode, RoomId, UserId,
    limit::{Algorithm, Policy, Subject},
    ports::BusItem,
    signal::Topic,
};
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
            login: None,
            url: url.clone(),
            prefix: prefix.clone(),
        };
        let stores = connect(&options).await.unwrap();
        guarded(suite(stores), remove_keys(&url, &prefix)).await;
    }
}

async fn client(url: &str) -> Client {
    let client = Builder::from_config(Config::from_url(url).unwrap())
        .build()
        .unwrap();
    client.init().await.unwrap();
    client
}

async fn keys(client: &Client, prefix: &str) -> Vec<Key> {
    let pattern = format!("{prefix}*");
    if client.is_clustered() {
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
    }
}

async fn remove_keys(url: &str, prefix: &str) {
    let client = client(url).await;
    for key in keys(&client, prefix).await {
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
async fn redis_limiter() {
    on_redis("redis_limiter", |stores| {
        conformance::limiter::all(stores.limiter)
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
        login: None,
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

fn limit_of(algorithm: Algorithm, limit: u32) -> Policy {
    Policy::new("test", algorithm, limit, Duration::from_secs(24 * 3600)).unwrap()
}

/// EDGE-03, RT-09: gateways share a limit exactly, whatever they take at once.
#[tokio::test(flavor = "multi_thread")]
async fn redis_limits_are_exact_over_processes() {
    for variable in VARIABLES {
        let Some(url) = server("redis_limits_are_exact_over_processes", variable) else {
            continue;
        };
        let prefix = unique("test:");
        let options = RedisOptions {
            login: None,
            url: url.clone(),
            prefix: prefix.clone(),
        };
        let processes = [
            connect(&options).await.unwrap().limiter,
            connect(&options).await.unwrap().limiter,
        ];
        let body = async move {
            for algorithm in Algorithm::ALL {
                let (policy, user) = (limit_of(algorithm, 100), Subject::User(UserId::new()));
                let takers = processes.iter().cycle().take(80).map(|limiter| {
                    let limiter = limiter.clone();
                    // Single ones, and a few at a time as a gateway takes them for sockets.
                    tokio::spawn(async move {
                        let one = limiter.take(&policy, user, 1, 0).await.unwrap().granted;
                        one + limiter.take(&policy, user, 3, 0).await.unwrap().granted
                    })
                });
                let mut granted = 0;
                for taker in takers.collect::<Vec<_>>() {
                    granted += taker.await.unwrap();
                }
                assert_eq!(granted, 100, "{algorithm:?}");
            }
        };
        guarded(body, remove_keys(&url, &prefix)).await;
    }
}

/// EDGE-03: what is kept of a limit says nothing of whose it is, and ends by itself.
#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_nothing_of_limits_for_ever() {
    let Some(url) = server("redis_keeps_nothing_of_limits_for_ever", VARIABLES[0]) else {
        return;
    };
    let prefix = unique("test:");
    let stores = connect(&RedisOptions {
        login: None,
        url: url.clone(),
        prefix: prefix.clone(),
    })
    .await
    .unwrap();
    let (inner_url, inner_prefix) = (url.clone(), prefix.clone());
    let body = async move {
        let user = UserId::new();
        let address: std::net::IpAddr = "203.0.113.77".parse().unwrap();
        for algorithm in Algorithm::ALL {
            for subject in [Subject::User(user), Subject::at(address)] {
                let policy = limit_of(algorithm, 5);
                stores.limiter.take(&policy, subject, 1, 0).await.unwrap();
                stores.limiter.take(&policy, subject, 9, 2).await.unwrap();
            }
        }
        let client = client(&inner_url).await;
        let kept = keys(&client, &inner_prefix).await;
        assert_eq!(kept.len(), 6, "one for each algorithm and subject");
        for key in kept {
            let name = key.as_str_lossy().into_owned();
            let value: String = client.get(&key).await.unwrap();
            let user = user.to_string();
            for clear in [user.as_str(), &user.replace('-', ""), "203.0.113"] {
                assert!(!name.contains(clear) && !value.contains(clear), "{name}");
            }
            let left: i64 = client.pttl(&key).await.unwrap();
            assert!((1..=2 * 24 * 3600 * 1000).contains(&left), "{name}: {left}");
        }
        client.quit().await.unwrap();
    };
    guarded(body, remove_keys(&url, &prefix)).await;
}

/// EDGE-03, promise 8: after a restart of Redis, which forgets connections, scripts and counts, limits are counted from nothing.
#[tokio::test(flavor = "multi_thread")]
async fn redis_limits_begin_anew_after_a_restart() {
    let Some(url) = server("redis_limits_begin_anew_after_a_restart", VARIABLES[0]) else {
        return;
    };
    let (proxy, behind_proxy) = Proxy::before(&url).await;
    let prefix = unique("test:");
    let stores = connect(&RedisOptions {
        login: None,
        url: behind_proxy,
        prefix: prefix.clone(),
    })
    .await
    .unwrap();
    let user = Subject::User(UserId::new());
    for algorithm in Algorithm::ALL {
        let policy = limit_of(algorithm, 2);
        assert_eq!(
            stores
                .limiter
                .take(&policy, user, 5, 0)
                .await
                .unwrap()
                .granted,
            2
        );
        // Others use this server, too: what belongs to this test is forgotten, and the scripts, which come back.
        remove_keys(&url, &prefix).await;
        let direct = client(&url).await;
        direct.script_flush(false).await.unwrap();
        direct.quit().await.unwrap();
        proxy.cut();
        let healed = async {
            loop {
                if let Ok(grant) = stores.limiter.take(&policy, user, 1, 0).await {
                    return grant;
                }
            }
        };
        let grant = tokio::time::timeout(PATIENCE, healed)
            .await
            .expect("it heals by itself");
        // A take whose answer was lost in the cut may have counted.
        assert_eq!(grant.granted, 1, "{algorithm:?}: {grant:?}");
        let rest = stores.limiter.take(&policy, user, 5, 0).await.unwrap();
        assert!(rest.granted <= 1 && rest.remaining == 0, "{rest:?}");
    }
    remove_keys(&url, &prefix).await;
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
        login: None,
        url,
        prefix: prefix.clone(),
    };
    let through = RedisOptions {
        login: None,
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
        login: None,
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
