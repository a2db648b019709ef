//! A RabbitMQ of one pod.

use std::collections::BTreeMap;

use carillon_crds::ManagedStore;
use serde_json::json;

use super::{Server, secret_volume};
use crate::managed::RABBITMQ_LOGIN;
use crate::validate::Order;

const STORE: ManagedStore = ManagedStore::Rabbitmq;
const DEFAULT_IMAGE: &str = "rabbitmq:4.1";
const DATA_DIR: &str = "/var/lib/rabbitmq";
/// Where RabbitMQ reads every file, in the order of their names.
const PARTS_DIR: &str = "/etc/rabbitmq/conf.d";

pub(super) fn files() -> BTreeMap<String, String> {
    let lines = [
        format!("listeners.tcp.default = {}", STORE.port()),
        "log.console = true".to_owned(),
        "log.file = false".to_owned(),
    ];
    BTreeMap::from([("10-carillon.conf".to_owned(), lines.join("\n") + "\n")])
}

pub(super) fn server(order: &Order) -> Server {
    let rabbitmq = order.spec.managed_rabbitmq().unwrap_or_default();
    let listens = |period: u32, failures: u32| {
        json!({
            "tcpSocket": { "port": STORE.name() },
            "periodSeconds": period,
            "timeoutSeconds": 3,
            "failureThreshold": failures,
        })
    };
    Server {
        container: json!({
            "image": rabbitmq.image.as_deref().unwrap_or(DEFAULT_IMAGE),
            "command": ["rabbitmq-server"],
            "env": [
                // Its data are filed under this name: it may not change with the pod's address.
                { "name": "RABBITMQ_NODENAME", "value": "rabbit@localhost" },
                // Where the cookie is that only nodes of one cluster and the tools in the pod share. A volume's group may read what is in
                // the volume, and Erlang refuses a cookie that others may read.
                { "name": "HOME", "value": "/tmp" },
            ],
            "startupProbe": listens(2, 150),
            "readinessProbe": listens(5, 2),
        }),
        volumes: vec![secret_volume(order, STORE, RABBITMQ_LOGIN)],
        mounts: vec![
            json!({ "name": "data", "mountPath": DATA_DIR }),
            json!({ "name": "config", "mountPath": format!("{PARTS_DIR}/10-carillon.conf"), "subPath": "10-carillon.conf", "readOnly": true }),
            json!({ "name": "credentials", "mountPath": format!("{PARTS_DIR}/11-{RABBITMQ_LOGIN}"), "subPath": RABBITMQ_LOGIN, "readOnly": true }),
        ],
        grace_seconds: 60,
    }
}
