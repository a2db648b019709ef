//! The `ChatCluster` resource, and the configuration that every role of the platform reads.
//!
//! Two audiences share this crate: the operator (which reads `ChatCluster` objects from the API server) and the server
//! binary (`carillon up -f chatcluster.yaml` reads the same object from a file). Everything here is pure: no I/O, no
//! clock, no client. What a cluster looks like in Kubernetes objects is the operator's business; what a role does with
//! its configuration is the role's.
//!
//! * [`ChatCluster`], [`ChatClusterSpec`], [`ChatClusterStatus`]: the resource as users write and read it;
//! * [`parse_chat_cluster`]: a `ChatCluster` from YAML, unknown fields refused by name;
//! * [`platform_config`]: spec → [`config::PlatformConfig`], or every problem with the field it is in;
//! * [`chat_cluster_crd`]: the CustomResourceDefinition, generated from the types;
//! * [`chart_values_schema_json`]: the schema of a Helm chart's values, generated from the definition;
//! * [`reference_markdown`]: every field for people, generated from the definition.

pub mod config;

mod backup;
mod chatcluster;
mod crd;
mod file;
mod managed;
mod mapping;
mod problem;
mod quantity;
mod reference;
mod releases;
mod status;

pub use backup::*;
pub use chatcluster::*;
pub use crd::{
    chart_values_schema_json, chat_backup_crd, chat_backup_crd_yaml, chat_cluster_crd,
    chat_cluster_crd_yaml,
};
pub use file::{ChatClusterFileError, parse_chat_cluster};
pub use managed::{
    DATACENTER, DeletionPolicy, ManagedRabbitmq, ManagedRedis, ManagedScylla, ManagedStorage,
    ManagedStore,
};
pub use mapping::{
    Target, certificate_name, default_replicas, platform_config, progress_deadline_seconds,
    service_name, validate_spec,
};
pub use problem::{FieldProblem, describe_problems};
pub use quantity::{parse_bytes, parse_duration_seconds, parse_quantity};
pub use reference::reference_markdown;
pub use releases::{may_follow, supported_lines};
pub use status::*;

/// The platform version this build is, e.g. `0.1.0`. It is the default of `spec.version`.
pub const PLATFORM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The person of the operator's probe message, in every cluster: it has no account, and the roles let it do nothing but that.
/// The same as `carillon_domain::UserId::PROBE`.
pub const PROBE_USER: &str = "70726f62-6500-8000-8000-000000000000";

/// Longest name of a ChatCluster, so that the names of its children stay within 63 characters.
pub const MAX_NAME_LENGTH: usize = 40;

/// The six server roles, in the order in which they are listed to people and rolled out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Accounts, sessions and tokens.
    Auth,
    /// Rooms, messages and the sequencer.
    Message,
    /// Who is online, who is typing.
    Presence,
    /// Uploads and downloads.
    Media,
    /// Push to devices that have no live socket.
    Notification,
    /// The edge: REST and WebSocket.
    Gateway,
}

impl Role {
    /// Every role, in roll-out order: the edge last, when what it calls is there.
    pub const ALL: [Role; 6] = [
        Role::Auth,
        Role::Message,
        Role::Presence,
        Role::Media,
        Role::Notification,
        Role::Gateway,
    ];

    /// The role's name, as in `carillon serve <name>` and in `spec.<name>`.
    pub fn name(self) -> &'static str {
        match self {
            Role::Auth => "auth",
            Role::Message => "message",
            Role::Presence => "presence",
            Role::Media => "media",
            Role::Notification => "notification",
            Role::Gateway => "gateway",
        }
    }

    /// The port the role listens at for other roles (gRPC), or for clients (the gateway's HTTP), inside its container.
    pub fn port(self) -> u16 {
        match self {
            Role::Auth => 50051,
            Role::Message => 50052,
            Role::Presence => 50053,
            Role::Media => 50054,
            Role::Notification => 50055,
            Role::Gateway => 8080,
        }
    }
}
