//! What the operator reports about a `ChatCluster`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube_derive::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The observed state of a `ChatCluster`. Only the operator writes it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ChatClusterStatus {
    /// The generation of the spec that the rest of the status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The platform version that is ordered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Where clients reach the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Components with enough ready pods, of all, e.g. `6/6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_components: Option<String>,
    /// Each component, in roll-out order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<ComponentStatus>,
    /// The release that was last seen whole and available: what a failed upgrade goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
    /// Whether a managed ScyllaDB was ordered: then the messages are in it, and it can't be exchanged any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scylla_managed: Option<bool>,
    /// The last upgrade: under way, done, or taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
    /// What holds and what doesn't: Available, Progressing, Degraded, SpecValid, SchemaMigrated, ScyllaReady, RedisReady, RabbitmqReady,
    /// ObjectStoreReady; Monitored, when `spec.monitoring` asks for something.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".to_owned()]))]
    pub conditions: Vec<Condition>,
}

/// A platform version and the image that runs it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// The version.
    pub version: String,
    /// The image, with tag.
    pub image: String,
}

/// A change from one release to another.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct UpgradeStatus {
    /// What ran before, and runs again when it fails.
    pub from: Release,
    /// What is ordered.
    pub to: Release,
    /// How far it is.
    pub step: UpgradeStep,
    /// The component whose pods are being replaced, at the step RollingOut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub component: Option<String>,
    /// When it began.
    pub started_at: Time,
    /// When this step, of this component, began.
    pub step_started_at: Time,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// How far an upgrade is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpgradeStep {
    /// The schema is brought to the new release.
    Migrating,
    /// The components' pods are replaced, one component after the other.
    RollingOut,
    /// All pods are of the new release; a message has to get through.
    Probing,
    /// It is over.
    Done,
    /// It failed; pods of the release before are coming back.
    RollingBack,
    /// It failed, and all pods are of the release before.
    RolledBack,
}

impl UpgradeStep {
    /// Whether it goes forward still.
    pub fn is_under_way(self) -> bool {
        matches!(
            self,
            UpgradeStep::Migrating | UpgradeStep::RollingOut | UpgradeStep::Probing
        )
    }

    /// Whether it failed.
    pub fn is_failed(self) -> bool {
        matches!(self, UpgradeStep::RollingBack | UpgradeStep::RolledBack)
    }
}

/// One component.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// The role's name, e.g. `gateway`.
    pub name: String,
    /// The version its pods were told to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Pods ordered.
    pub desired_replicas: i32,
    /// Pods that are ready.
    pub ready_replicas: i32,
}

/// Types of the conditions.
pub mod condition {
    /// Every component has the pods it needs, ready, and a message gets through.
    pub const AVAILABLE: &str = "Available";
    /// Something ordered is still being brought about.
    pub const PROGRESSING: &str = "Progressing";
    /// Something is wrong; the message says what and where.
    pub const DEGRADED: &str = "Degraded";
    /// The spec makes sense and can be run.
    pub const SPEC_VALID: &str = "SpecValid";
    /// The stores' schema is at the ordered version.
    pub const SCHEMA_MIGRATED: &str = "SchemaMigrated";
    /// ScyllaDB answers the roles that use it.
    pub const SCYLLA_READY: &str = "ScyllaReady";
    /// Redis answers the roles that use it.
    pub const REDIS_READY: &str = "RedisReady";
    /// RabbitMQ answers the roles that use it.
    pub const RABBITMQ_READY: &str = "RabbitmqReady";
    /// The store of files answers the media role.
    pub const OBJECT_STORE_READY: &str = "ObjectStoreReady";
    /// What `spec.monitoring` asks for is there. Reported only when it asks for something.
    pub const MONITORED: &str = "Monitored";
}
