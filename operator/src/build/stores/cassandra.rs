//! An Apache Cassandra of one pod, where a ScyllaDB is ordered and ScyllaDB's own operator isn't installed. It speaks the same CQL, and its
//! image runs without root, which ScyllaDB's doesn't.
//!
//! It is for development: one copy of each row, on one volume.

use std::collections::BTreeMap;

use carillon_crds::{DATACENTER, ManagedStore};
use serde_json::json;

use super::{CONFIG_DIR, Server, secret_volume, share_of_memory};
use crate::managed::PASSWORD;
use crate::validate::Order;

const STORE: ManagedStore = ManagedStore::Scylla;
const DEFAULT_IMAGE: &str = "cassandra:5.0";
const DATA_DIR: &str = "/var/lib/cassandra";
const CREDENTIALS_DIR: &str = "/etc/carillon-credentials";
/// Share of the memory limit for the heap, in per cent; as much again is used beside it.
const HEAP_PERCENT: u64 = 50;
/// The heap where nothing limits the memory, MiB.
const DEFAULT_HEAP: u64 = 1024;

/// Gives the first user its password, and ends when it is in force: until then the pod isn't ready. A pod that starts again finds it
/// so. The password is in no argument and in no environment.
const SET_PASSWORD: &str = r#"umask 077
password=$(cat /etc/carillon-credentials/password)
login() { for part in PlainTextAuthProvider plain_text_auth; do printf '[%s]\nusername = cassandra\npassword = %s\n' $part "$1"; done >/tmp/login; }
cql() { HOME=/tmp cqlsh --credentials /tmp/login "$(hostname -i)" 9042; }
trap 'rm -f /tmp/login' EXIT
for attempt in $(seq 150); do
  login "$password"
  if echo 'SELECT key FROM system.local;' | cql >/tmp/said 2>&1; then exit 0; fi
  login cassandra
  echo "ALTER ROLE cassandra WITH PASSWORD = '$password';" | cql >/tmp/said 2>&1
  sleep 2
done
cat /tmp/said >&2
exit 1
"#;

/// Empty addresses are the pod's own, and the pod's name is in its own `/etc/hosts`.
pub(super) fn files(order: &Order) -> BTreeMap<String, String> {
    let pod = format!("{}-0", STORE.object_name(&order.name));
    let settings = json!({
        "cluster_name": order.name,
        "num_tokens": 16,
        "partitioner": "org.apache.cassandra.dht.Murmur3Partitioner",
        "endpoint_snitch": "GossipingPropertyFileSnitch",
        "seed_provider": [{
            "class_name": "org.apache.cassandra.locator.SimpleSeedProvider",
            "parameters": [{ "seeds": pod }],
        }],
        "native_transport_port": STORE.port(),
        "authenticator": { "class_name": "org.apache.cassandra.auth.PasswordAuthenticator" },
        "role_manager": { "class_name": "org.apache.cassandra.auth.CassandraRoleManager" },
        // The only copy: what it acknowledged must be on the disk.
        "commitlog_sync": "batch",
        "commitlog_segment_size": "16MiB",
        "disk_failure_policy": "die",
        "commit_failure_policy": "die",
        "data_file_directories": [format!("{DATA_DIR}/data")],
        "commitlog_directory": format!("{DATA_DIR}/commitlog"),
        "saved_caches_directory": format!("{DATA_DIR}/saved_caches"),
        "hints_directory": format!("{DATA_DIR}/hints"),
        "cdc_raw_directory": format!("{DATA_DIR}/cdc_raw"),
    });
    let settings =
        serde_saphyr::to_string(&settings).expect("plain values with string keys always serialize");
    BTreeMap::from([
        ("cassandra.yaml".to_owned(), settings),
        (
            "cassandra-rackdc.properties".to_owned(),
            format!("dc={DATACENTER}\nrack=r1\n"),
        ),
    ])
}

pub(super) fn server(order: &Order) -> Server {
    let scylla = order.spec.managed_scylla().unwrap_or_default();
    let heap = share_of_memory(order, STORE, HEAP_PERCENT).unwrap_or(DEFAULT_HEAP);
    let options = [
        format!("-Dcassandra.config=file://{CONFIG_DIR}/cassandra.yaml"),
        format!("-Dcassandra-rackdc.properties=file://{CONFIG_DIR}/cassandra-rackdc.properties"),
        "-Djava.io.tmpdir=/tmp".to_owned(),
        "-Djna.tmpdir=/tmp".to_owned(),
        "-XX:-UsePerfData".to_owned(),
    ];
    Server {
        container: json!({
            "image": scylla.image.as_deref().unwrap_or(DEFAULT_IMAGE),
            "command": ["cassandra", "-f"],
            "env": [
                { "name": "MAX_HEAP_SIZE", "value": format!("{heap}M") },
                { "name": "HEAP_NEWSIZE", "value": format!("{}M", heap / 4) },
                { "name": "CASSANDRA_LOG_DIR", "value": "/tmp" },
                { "name": "JVM_EXTRA_OPTS", "value": options.join(" ") },
            ],
            "lifecycle": {
                // Probes wait for its end.
                "postStart": { "exec": { "command": ["sh", "-c", SET_PASSWORD] } },
            },
            "startupProbe": {
                "tcpSocket": { "port": STORE.name() },
                "periodSeconds": 2,
                "timeoutSeconds": 3,
                "failureThreshold": 150,
            },
            "readinessProbe": {
                "tcpSocket": { "port": STORE.name() },
                "periodSeconds": 5,
                "timeoutSeconds": 3,
                "failureThreshold": 2,
            },
        }),
        volumes: vec![secret_volume(order, STORE, PASSWORD)],
        mounts: vec![
            json!({ "name": "data", "mountPath": DATA_DIR }),
            json!({ "name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": true }),
        ],
        grace_seconds: 120,
    }
}
