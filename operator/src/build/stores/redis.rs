//! A Redis of one pod. What it holds is short-lived, so one write a second reaches the disk for sure.

use std::collections::BTreeMap;

use carillon_crds::ManagedStore;
use serde_json::json;

use super::{CONFIG_DIR, Server, secret_volume, share_of_memory};
use crate::managed::REDIS_LOGIN;
use crate::validate::Order;

const STORE: ManagedStore = ManagedStore::Redis;
const DEFAULT_IMAGE: &str = "redis:7.2";
const DATA_DIR: &str = "/data";
const CREDENTIALS_DIR: &str = "/etc/carillon-credentials";
/// Share of the memory limit for data, in per cent; the rest is for connections, and for copies while the log is written anew.
const DATA_PERCENT: u64 = 75;

pub(super) fn files(order: &Order) -> BTreeMap<String, String> {
    let mut lines = vec![
        format!("include {CREDENTIALS_DIR}/{REDIS_LOGIN}"),
        format!("port {}", STORE.port()),
        "bind * -::*".to_owned(),
        format!("dir {DATA_DIR}"),
        "appendonly yes".to_owned(),
        "appendfsync everysec".to_owned(),
        "save \"\"".to_owned(),
        // A full Redis refuses writes, and the platform says so; it doesn't forget sessions.
        "maxmemory-policy noeviction".to_owned(),
    ];
    if let Some(mebibytes) = share_of_memory(order, STORE, DATA_PERCENT) {
        lines.push(format!("maxmemory {mebibytes}mb"));
    }
    BTreeMap::from([("redis.conf".to_owned(), lines.join("\n") + "\n")])
}

pub(super) fn server(order: &Order) -> Server {
    let redis = order.spec.managed_redis().unwrap_or_default();
    let ping = |period: u32, failures: u32| {
        json!({
            "exec": { "command": ["sh", "-c", "redis-cli ping | grep -qx PONG"] },
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    Server {
        container: json!({
            "image": redis.image.as_deref().unwrap_or(DEFAULT_IMAGE),
            "command": ["redis-server", format!("{CONFIG_DIR}/redis.conf")],
            "env": [{
                "name": "REDISCLI_AUTH",
                "valueFrom": { "secretKeyRef": { "name": STORE.secret_name(&order.name), "key": "password" } },
            }],
            // Until the first success of this one the other waits: a long log is read first.
            "startupProbe": ping(1, 300),
            "readinessProbe": ping(5, 2),
        }),
        volumes: vec![secret_volume(order, STORE, REDIS_LOGIN)],
        mounts: vec![
            json!({ "name": "data", "mountPath": DATA_DIR }),
            json!({ "name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": true }),
        ],
        grace_seconds: 30,
    }
}
