//! Stores that the operator orders: `spec.scylla.managed`, `spec.redis.managed` and `spec.rabbitmq.managed`.
//!
//! What is ordered of whom is the operator's business (a resource of the store's own operator, or a StatefulSet of one pod); here
//! are the fields, what is wrong with them, and where the roles find the store, which is the same in either case.

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chatcluster::{
    ChatClusterSpec, ExternalRabbitmq, ExternalRedis, ExternalScylla, RabbitmqSpec, RedisSpec,
    ScyllaSpec,
};
use crate::problem::FieldProblem;
use crate::quantity::parse_quantity;

/// The data centre of every managed ScyllaDB.
pub const DATACENTER: &str = "dc1";

/// A volume per pod when the spec gives no size.
pub const DEFAULT_STORAGE: &str = "10Gi";

/// Copies of each row that a managed ScyllaDB keeps at most when the spec doesn't say.
const DEFAULT_COPIES: u32 = 3;

/// A store that can be managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManagedStore {
    /// ScyllaDB.
    Scylla,
    /// Redis.
    Redis,
    /// RabbitMQ.
    Rabbitmq,
}

impl ManagedStore {
    /// All of them.
    pub const ALL: [ManagedStore; 3] = [
        ManagedStore::Scylla,
        ManagedStore::Redis,
        ManagedStore::Rabbitmq,
    ];

    /// Its name in the spec, in conditions, and in the names of its objects.
    pub fn name(self) -> &'static str {
        match self {
            ManagedStore::Scylla => "scylla",
            ManagedStore::Redis => "redis",
            ManagedStore::Rabbitmq => "rabbitmq",
        }
    }

    /// The port at which it is spoken to.
    pub fn port(self) -> u16 {
        match self {
            ManagedStore::Scylla => 9042,
            ManagedStore::Redis => 6379,
            ManagedStore::Rabbitmq => 5672,
        }
    }

    /// Name of its StatefulSet, or of the resource that its own operator reads.
    pub fn object_name(self, cluster_name: &str) -> String {
        format!("{cluster_name}-{}", self.name())
    }

    /// Name of the Service: what the store's own operator calls it.
    pub fn service_name(self, cluster_name: &str) -> String {
        let name = self.object_name(cluster_name);
        match self {
            ManagedStore::Scylla => format!("{name}-client"),
            ManagedStore::Redis | ManagedStore::Rabbitmq => name,
        }
    }

    /// Name of the Secret with `username` and `password`: for RabbitMQ what its own operator calls it.
    pub fn secret_name(self, cluster_name: &str) -> String {
        let name = self.object_name(cluster_name);
        match self {
            ManagedStore::Rabbitmq => format!("{name}-default-user"),
            ManagedStore::Scylla | ManagedStore::Redis => name,
        }
    }

    /// `host:port` for the roles.
    pub fn address(self, cluster_name: &str, namespace: &str) -> String {
        let service = self.service_name(cluster_name);
        format!("{service}.{namespace}.svc:{}", self.port())
    }
}

/// What becomes of a store's data when the ChatCluster is deleted: `Retain` or `Delete`. Default: Retain.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// It stays, with the password that opens it; a new ChatCluster of the same name takes both.
    #[default]
    Retain,
    /// It goes too.
    Delete,
}

/// The volumes of a managed store.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("self == oldSelf").message("storage of a managed store can't be changed; restore a backup into a new ChatCluster"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedStorage {
    /// Size of each volume, e.g. `20Gi`. Default: 10Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(Mi|Gi|Ti|M|G|T)$"))]
    pub size: Option<String>,
    /// StorageClass of the volumes. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

impl ManagedStorage {
    /// The size, or its default.
    pub fn size(&self) -> &str {
        self.size.as_deref().unwrap_or(DEFAULT_STORAGE)
    }
}

/// A ScyllaDB that the operator orders: a `ScyllaCluster` where ScyllaDB's own operator is installed, else one pod of Apache Cassandra,
/// for development.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedScylla {
    /// Nodes. Default: 1, for development. More need ScyllaDB's own operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub members: Option<u32>,
    /// Copies of each row, used when the keyspace is created. Default: `members`, at most 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replication_factor: Option<u32>,
    /// Keyspace; created when absent. Names in Redis and RabbitMQ start with it too. Can't be changed. Default: `carillon_<namespace>__<name>`, with `_` for `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z][a-z0-9_]{0,47}$"), length(max = 48))]
    pub keyspace: Option<String>,
    /// Version of ScyllaDB, where its own operator is installed. Default: 6.2.3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub version: Option<String>,
    /// Image of Apache Cassandra 5.0, where it isn't. Default: `cassandra:5.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    /// Volume of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<ManagedStorage>,
    /// CPU and memory of a node. Default: requests 500m / 2Gi, memory limit 2Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What becomes of the data when the ChatCluster is deleted: `Retain` or `Delete`. Default: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

impl ManagedScylla {
    /// Nodes.
    pub fn members(&self) -> u32 {
        self.members.unwrap_or(1)
    }

    /// Copies of each row.
    pub fn copies(&self) -> u32 {
        self.replication_factor
            .unwrap_or(self.members().min(DEFAULT_COPIES))
    }
}

/// A Redis that the operator runs: one pod with a log of its changes on a volume.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedRedis {
    /// Image of Redis 7 or later. Default: `redis:7.2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    /// Its volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<ManagedStorage>,
    /// CPU and memory. Default: requests 50m / 64Mi, memory limit 256Mi. Three quarters of the memory limit are for data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What becomes of the data when the ChatCluster is deleted: `Retain` or `Delete`. Default: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

/// A RabbitMQ that the operator orders: a `RabbitmqCluster` where RabbitMQ's own operator is installed, else one pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!has(oldSelf.replicas) || (has(self.replicas) && self.replicas >= oldSelf.replicas)").message("spec.rabbitmq.managed.replicas: can't be made less, for queues would lose their nodes").field_path(".replicas"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedRabbitmq {
    /// Nodes. Default: 1. More need RabbitMQ's own operator. Can't be made less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replicas: Option<u32>,
    /// Image of RabbitMQ 3.13 or later. Default: `rabbitmq:4.1`, or what RabbitMQ's own operator takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub image: Option<String>,
    /// Volume of each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<ManagedStorage>,
    /// CPU and memory of a node. Default: requests 100m / 256Mi, memory limit 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// What becomes of the data when the ChatCluster is deleted: `Retain` or `Delete`. Default: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
}

impl ManagedRabbitmq {
    /// Nodes.
    pub fn replicas(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }
}

impl ChatClusterSpec {
    /// The ScyllaDB that somebody else runs, if it is one.
    pub fn external_scylla(&self) -> Option<&ExternalScylla> {
        self.scylla.as_ref()?.external.as_ref()
    }

    /// The Redis that somebody else runs, if it is one.
    pub fn external_redis(&self) -> Option<&ExternalRedis> {
        self.redis.as_ref()?.external.as_ref()
    }

    /// The RabbitMQ that somebody else runs, if it is one.
    pub fn external_rabbitmq(&self) -> Option<&ExternalRabbitmq> {
        self.rabbitmq.as_ref()?.external.as_ref()
    }

    /// The ScyllaDB that is ordered; what is absent is managed.
    pub fn managed_scylla(&self) -> Option<ManagedScylla> {
        match &self.scylla {
            None => Some(ManagedScylla::default()),
            Some(scylla) => scylla.managed.clone(),
        }
    }

    /// The Redis that is ordered; what is absent is managed.
    pub fn managed_redis(&self) -> Option<ManagedRedis> {
        match &self.redis {
            None => Some(ManagedRedis::default()),
            Some(redis) => redis.managed.clone(),
        }
    }

    /// The RabbitMQ that is ordered; what is absent is managed.
    pub fn managed_rabbitmq(&self) -> Option<ManagedRabbitmq> {
        match &self.rabbitmq {
            None => Some(ManagedRabbitmq::default()),
            Some(rabbitmq) => rabbitmq.managed.clone(),
        }
    }

    /// Whether `store` is managed.
    pub fn manages(&self, store: ManagedStore) -> bool {
        match store {
            ManagedStore::Scylla => self.managed_scylla().is_some(),
            ManagedStore::Redis => self.managed_redis().is_some(),
            ManagedStore::Rabbitmq => self.managed_rabbitmq().is_some(),
        }
    }

    /// The volumes of `store`, if it is managed.
    pub fn managed_storage(&self, store: ManagedStore) -> Option<ManagedStorage> {
        let storage = match store {
            ManagedStore::Scylla => self.managed_scylla()?.storage,
            ManagedStore::Redis => self.managed_redis()?.storage,
            ManagedStore::Rabbitmq => self.managed_rabbitmq()?.storage,
        };
        Some(storage.unwrap_or_default())
    }

    /// What becomes of the data of `store`, if it is managed.
    pub fn managed_deletion(&self, store: ManagedStore) -> DeletionPolicy {
        let policy = match store {
            ManagedStore::Scylla => self
                .managed_scylla()
                .and_then(|managed| managed.deletion_policy),
            ManagedStore::Redis => self
                .managed_redis()
                .and_then(|managed| managed.deletion_policy),
            ManagedStore::Rabbitmq => self
                .managed_rabbitmq()
                .and_then(|managed| managed.deletion_policy),
        };
        policy.unwrap_or_default()
    }

    /// The CPU and memory that are ordered for `store`.
    pub fn managed_resources(&self, store: ManagedStore) -> Option<ResourceRequirements> {
        match store {
            ManagedStore::Scylla => self.managed_scylla()?.resources,
            ManagedStore::Redis => self.managed_redis()?.resources,
            ManagedStore::Rabbitmq => self.managed_rabbitmq()?.resources,
        }
    }
}

/// What is wrong with the choice between external and managed, and with what is managed, but for resources.
pub(crate) fn problems(spec: &ChatClusterSpec) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    let ScyllaSpec { external, managed } = spec.scylla.clone().unwrap_or_default();
    let scylla = (spec.scylla.is_some(), external.is_some(), managed.is_some());
    let RedisSpec { external, managed } = spec.redis.clone().unwrap_or_default();
    let redis = (spec.redis.is_some(), external.is_some(), managed.is_some());
    let RabbitmqSpec { external, managed } = spec.rabbitmq.clone().unwrap_or_default();
    let rabbitmq = (
        spec.rabbitmq.is_some(),
        external.is_some(),
        managed.is_some(),
    );
    for (store, (is_given, external, managed)) in
        ManagedStore::ALL.into_iter().zip([scylla, redis, rabbitmq])
    {
        let field = format!("spec.{}", store.name());
        if is_given && external == managed {
            let problem = match external {
                true => "is external and managed",
                false => "is neither external nor managed",
            };
            problems.push(FieldProblem::new(
                &field,
                problem,
                "one of external and managed",
            ));
        }
        let Some(storage) = spec.managed_storage(store) else {
            continue;
        };
        let amount = parse_quantity(storage.size());
        if amount.is_none_or(|amount| Some(amount) < parse_quantity("128Mi")) {
            problems.push(FieldProblem::new(
                format!("{field}.managed.storage.size"),
                format!("{:?} is not the size of a volume", storage.size()),
                "at least 128Mi, e.g. 20Gi",
            ));
        }
    }
    if let Some(scylla) = spec.managed_scylla() {
        if !(1..=100).contains(&scylla.members()) {
            problems.push(FieldProblem::new(
                "spec.scylla.managed.members",
                format!("{} is out of range", scylla.members()),
                "1 to 100",
            ));
        } else if !(1..=scylla.members().min(9)).contains(&scylla.copies()) {
            problems.push(FieldProblem::new(
                "spec.scylla.managed.replicationFactor",
                format!("{} copies can't be kept", scylla.copies()),
                format!("1 to {}, as there are members", scylla.members().min(9)),
            ));
        }
    }
    if let Some(rabbitmq) = spec.managed_rabbitmq()
        && !(1..=9).contains(&rabbitmq.replicas())
    {
        problems.push(FieldProblem::new(
            "spec.rabbitmq.managed.replicas",
            format!("{} is out of range", rabbitmq.replicas()),
            "1 to 9",
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Target, platform_config, validate_spec};

    fn kubernetes() -> Target {
        Target::Kubernetes {
            namespace: "chat".to_owned(),
        }
    }

    fn fields(yaml: &str) -> Vec<String> {
        let spec: ChatClusterSpec = serde_saphyr::from_str(yaml).unwrap();
        validate_spec("town", &spec, &kubernetes())
            .into_iter()
            .map(|problem| problem.field)
            .collect()
    }

    const MEDIA: &str = "media: {replicas: 1, store: {directory: {ephemeral: true}}}";

    #[test]
    fn what_is_absent_is_managed() {
        let spec: ChatClusterSpec = serde_saphyr::from_str(&format!("{{{MEDIA}}}")).unwrap();
        let config = platform_config("town", &spec, kubernetes()).unwrap();
        insta::assert_snapshot!(serde_saphyr::to_string(&config.stores).unwrap());
    }

    #[test]
    fn bad_orders_name_their_fields() {
        for (yaml, expected) in [
            ("scylla: {}", "spec.scylla"),
            (
                "redis: {managed: {}, external: {url: 'redis://r:1'}}",
                "spec.redis",
            ),
            ("rabbitmq: {}", "spec.rabbitmq"),
            (
                "scylla: {managed: {storage: {size: 1Mi}}}",
                "spec.scylla.managed.storage.size",
            ),
            (
                "redis: {managed: {storage: {size: much}}}",
                "spec.redis.managed.storage.size",
            ),
            (
                "scylla: {managed: {members: 0}}",
                "spec.scylla.managed.members",
            ),
            (
                "scylla: {managed: {members: 2, replicationFactor: 3}}",
                "spec.scylla.managed.replicationFactor",
            ),
            (
                "rabbitmq: {managed: {replicas: 10}}",
                "spec.rabbitmq.managed.replicas",
            ),
            (
                "rabbitmq: {managed: {resources: {limits: {memory: lots}}}}",
                "spec.rabbitmq.managed.resources.limits.memory",
            ),
            (
                "scylla: {managed: {keyspace: 'Town; DROP'}}",
                "spec.scylla.managed.keyspace",
            ),
        ] {
            assert_eq!(
                fields(&format!("{{{MEDIA}, {yaml}}}")),
                [expected],
                "{yaml}"
            );
        }
    }

    #[test]
    fn copies_are_as_many_as_members_and_at_most_three() {
        for (members, copies) in [(None, 1), (Some(2), 2), (Some(3), 3), (Some(9), 3)] {
            let scylla = ManagedScylla {
                members,
                ..ManagedScylla::default()
            };
            assert_eq!(scylla.copies(), copies);
        }
    }

    /// The longest name that a ChatCluster may have leaves room for what its stores' objects are called.
    #[test]
    fn names_stay_within_what_a_label_may_hold() {
        let name = "a".repeat(crate::MAX_NAME_LENGTH);
        for store in ManagedStore::ALL {
            for name in [store.service_name(&name), store.secret_name(&name)] {
                assert!(name.len() <= 63, "{name}");
            }
        }
    }
}
