//! The `ChatCluster` as its author writes it.
//!
//! Every field is optional; an absent field takes the default named in its description. Defaults are applied when the
//! spec is read ([`crate::platform_config`]) and never written back, so that what a user stored in Git stays what the
//! API server has.
//!
//! CEL rules here mirror the checks of [`crate::validate_spec`]: the API server refuses what it can see to be wrong at
//! `kubectl apply`, and `carillon up` and the operator refuse the same and more with the same words.

#![allow(
    clippy::duplicated_attributes,
    reason = "printer columns are attributes that repeat their keys"
)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ResourceRequirements;
use kube_derive::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::backup::RestoreFrom;
use crate::managed::{ManagedRabbitmq, ManagedRedis, ManagedScylla};
use crate::status::ChatClusterStatus;

/// A chat platform: six roles and the stores they use.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "carillon.chat",
    version = "v1alpha1",
    kind = "ChatCluster",
    namespaced,
    shortname = "cc",
    category = "carillon",
    status = "ChatClusterStatus",
    derive = "PartialEq",
    doc = "A self-hosted chat platform: gateway, auth, message, presence, media and notification.",
    crates(kube_core = "::kube_core"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(
        name = "Available",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Available\")].status"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        description = "Components with enough ready pods, of all",
        json_path = ".status.readyComponents"
    ),
    printcolumn(name = "Endpoint", type_ = "string", json_path = ".status.endpoint"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Available\")].message"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!has(oldSelf.scylla) || has(oldSelf.scylla.managed) == (!has(self.scylla) || has(self.scylla.managed))").message("spec.scylla: whether it is managed or external can't be changed, for messages stay where they are; restore a backup into a new ChatCluster").field_path(".scylla"),
    validation = Rule::new("!(!has(self.scylla) || has(self.scylla.managed)) || !(!has(oldSelf.scylla) || has(oldSelf.scylla.managed)) || (has(self.scylla) && has(self.scylla.managed.keyspace) ? self.scylla.managed.keyspace : '') == (has(oldSelf.scylla) && has(oldSelf.scylla.managed.keyspace) ? oldSelf.scylla.managed.keyspace : '')").message("spec.scylla.managed.keyspace: can't be changed, for messages stay where they are").field_path(".scylla"),
    validation = Rule::new("!has(self.restoreFrom) || (has(oldSelf.restoreFrom) && self.restoreFrom == oldSelf.restoreFrom)").message("spec.restoreFrom: only a new ChatCluster begins with a backup, and always with the same").field_path(".restoreFrom"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ChatClusterSpec {
    /// Let go of the cluster: while `true` the operator changes nothing but the status, and what runs goes on running. Deleting the
    /// ChatCluster still removes everything. Default: false. Ignored by `carillon up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Put the cluster to sleep: while `true` every role has no pods and no autoscaler; keys, configuration, Services and the data in
    /// the stores stay. Default: false. Ignored by `carillon up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hibernated: Option<bool>,
    /// Platform version to run. Default: what runs already; for a new cluster the version that the operator (or the `carillon` binary)
    /// was built for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$"))]
    pub version: Option<String>,
    /// A backup that a new ChatCluster begins with: no role is started before all of it is restored into stores that are empty. May be
    /// taken out later, and not be changed. Ignored by `carillon up`; see `carillon restore`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_from: Option<RestoreFrom>,
    /// Which container image the roles run. Ignored by `carillon up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSpec>,
    /// How a change of version or image is carried out. Ignored by `carillon up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeSpec>,
    /// The edge: REST and WebSocket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewaySpec>,
    /// Accounts, sessions and tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
    /// Rooms and messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<MessageSpec>,
    /// Who is online, who is typing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence: Option<PresenceSpec>,
    /// Uploads and downloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<MediaSpec>,
    /// Push to devices without a live socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notification: Option<NotificationSpec>,
    /// Mail to people: confirmation of addresses, forgotten passwords. Default: none is sent, and nobody can set a forgotten password anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<MailSpec>,
    /// ScyllaDB (or Apache Cassandra): messages and accounts. Default: `managed: {}`, for development. `carillon up` embeds its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scylla: Option<ScyllaSpec>,
    /// Redis: live events, sessions, presence. Default: `managed: {}`, for development. `carillon up` embeds its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSpec>,
    /// RabbitMQ: push jobs. Default: `managed: {}`, for development. `carillon up` embeds its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rabbitmq: Option<RabbitmqSpec>,
    /// Traces and logs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetrySpec>,
    /// What Prometheus and Grafana are given to read. Default: nothing. Ignored by `carillon up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monitoring: Option<MonitoringSpec>,
}

/// Which image to run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageSpec {
    /// Image without tag, e.g. `registry.example.com/carillon`. Default: what the operator was installed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub repository: Option<String>,
    /// Tag. Default: the tag that the operator was installed with, if any, else the platform version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$"))]
    pub tag: Option<String>,
    /// When the kubelet pulls the image. Default: `IfNotPresent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Names of Secrets with registry credentials, in the same namespace. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secrets: Option<Vec<String>>,
}

/// How a change of version or image is carried out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpgradeSpec {
    /// How long an upgrade may stand still before it is taken back: the migration, a component without a new ready pod, or messages
    /// that don't get through. A duration such as `5m`, 10s to 1h. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<String>,
}

/// When the kubelet pulls the image. Default: `IfNotPresent`.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: it must be on the node.
    Never,
}

/// How many pods an autoscaler may choose, and on what.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Fewest replicas. Default: 2, or `maxReplicas` when that is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: Option<i32>,
    /// Most replicas.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// What to scale on. Default: 70 % CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<AutoscalingTarget>,
}

/// What an autoscaler aims at; with both, the larger demand wins.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AutoscalingTarget {
    /// Live sockets of the whole cluster per replica. Needs an external metrics API that serves `carillon_gateway_sockets`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub connections: Option<i64>,
    /// Average CPU use in per cent of the request. Needs the resource metrics API. Default: none with `connections`, else 70.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub cpu_percent: Option<i32>,
}

/// The edge.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("spec.gateway: replicas and autoscaling contradict each other; give one").field_path(".replicas"),
    validation = Rule::new("!has(self.autoscaling) || !has(self.autoscaling.minReplicas) || self.autoscaling.minReplicas <= self.autoscaling.maxReplicas").message("spec.gateway.autoscaling: minReplicas is larger than maxReplicas").field_path(".autoscaling"),
    validation = Rule::new("!has(self.tls) || has(self.host)").message("spec.gateway.tls: needs spec.gateway.host, the name the certificate is for").field_path(".tls"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewaySpec {
    /// Number of pods. Default: 2. Not with `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// Let a HorizontalPodAutoscaler choose the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// The name clients use. With it an Ingress is made. Default: none; clients use the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(
            pattern = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$"
        )
    )]
    pub host: Option<String>,
    /// TLS for `host`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// IngressClass of the Ingress. Default: the cluster's default class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_class_name: Option<String>,
    /// Port of the gateway's Service; `carillon up` listens at it. Default: 8080.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Rate limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<GatewayLimits>,
    /// Browser origins that may call the API (CORS), e.g. `https://app.example.com`; `*` for any. Default: none but the gateway's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub allowed_origins: Option<Vec<String>>,
    /// Networks of the proxies before the gateway, in CIDR notation, e.g. `10.42.0.0/16`: the addresses that an ingress controller or
    /// load balancer connects from. Only what comes from these may name its client in `X-Forwarded-For`; rate limits and the list of
    /// sessions go by that address. Default: none, and the address of the connection counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub trusted_proxies: Option<Vec<String>>,
    /// Largest WebSocket frame. Default: 64Ki; at most 1Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_frame_bytes: Option<ByteSize>,
    /// How often an idle socket is asked for a sign of life. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub heartbeat: Option<String>,
    /// After how long without a sign of life a socket is closed. Default: three heartbeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub dead_after: Option<String>,
    /// How long a stopping gateway takes to hand its sockets over. Default: 10s; at most 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub drain: Option<String>,
    /// CPU and memory of a pod. Default: requests 100m / 128Mi, memory limit 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// A TLS certificate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSpec {
    /// A Secret of type `kubernetes.io/tls` in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// How much one client may ask for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayLimits {
    /// Registrations, logins and codes per minute and address. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub auth_per_minute: Option<u32>,
    /// Other REST requests per minute and address. Default: 120.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u32>,
    /// REST requests with a token per minute and person, over all devices. Default: half of requestsPerMinute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub user_requests_per_minute: Option<u32>,
    /// Messages on sockets per second and person, over all devices. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub messages_per_second: Option<u32>,
    /// How the limits count. Default: tokenBucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<LimitAlgorithm>,
    /// What becomes of requests while Redis, which counts for all gateways, is away. Default: open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub without_redis: Option<WithoutRedis>,
}

/// How limits count. Default: tokenBucket.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum LimitAlgorithm {
    /// A window begins with the first request and ends as a whole; around its end twice the limit can pass.
    FixedWindow,
    /// A window that moves with the clock: the one before counts less and less. It supposes that its requests came evenly.
    SlidingWindow,
    /// The whole limit at once, then one by one as they come back.
    #[default]
    TokenBucket,
}

/// What becomes of requests while Redis, which counts for all gateways, is away. Default: open.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum WithoutRedis {
    /// Each gateway counts by itself, with the same limits.
    #[default]
    Open,
    /// They are refused with `unavailable`.
    Closed,
}

/// Accounts, sessions and tokens.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.devMode) && self.devMode && has(self.otp))").message("spec.auth: devMode gives every phone the code 123456 and contradicts otp; give one").field_path(".devMode"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthSpec {
    /// Number of pods. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// How long an access token is good. Default: 15m; 1m to 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub access_token_ttl: Option<String>,
    /// How long a refresh token is good. Default: 7d; longer than an access token, at most 365d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub refresh_token_ttl: Option<String>,
    /// The `iss` of tokens. Changing it ends every session. Default: `carillon://` and the ChatCluster's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub issuer: Option<String>,
    /// For development only: the code of every phone is 123456. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev_mode: Option<bool>,
    /// Who sends codes to phones. Default: nobody; phone login is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otp: Option<OtpSpec>,
    /// Cost of a password hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argon2: Option<Argon2Spec>,
    /// CPU and memory of a pod. Default: requests 100m / 256Mi, memory limit 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Who sends codes to phones.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OtpSpec {
    /// Twilio Verify. Secret keys: `account_sid`, `auth_token`, `service_sid`.
    pub twilio: ProviderSpec,
}

/// An outside service and the Secret with its credentials.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderSpec {
    /// A Secret in the same namespace; `carillon up` reads `<data dir>/secrets/<name>/<key>`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
    /// Where the service is. Default: the provider's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub base_url: Option<String>,
}

/// Mail to people, over SMTP. With it an address is an account's only once its owner has opened the link that is mailed there.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.security) && self.security == 'none' && has(self.secretName))").message("spec.mail: security none would send the Secret's password in the clear; give one").field_path(".security"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MailSpec {
    /// The SMTP server; its certificate must be for this name or address.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// Its port. Default: 587; 465 with `security: tls`, 25 with `none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u32>,
    /// How the connection is secured: `startTls`, `tls` or `none`. Default: startTls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security: Option<MailSecurity>,
    /// The sender's address. The name beside it is the ChatCluster's.
    #[schemars(regex(pattern = r"^[^@\s<>]+@[^@\s<>]+$"))]
    pub from: String,
    /// A Secret with `username` and `password`, if the server wants a login, and `ca.crt`, if its certificate isn't signed by one of the web's
    /// authorities. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
    /// Where links in mails lead. Default: `https://` and `spec.gateway.host`; needed without that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub public_url: Option<String>,
}

/// How the connection to the mail server is secured: `startTls`, `tls` or `none`. Default: startTls.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum MailSecurity {
    /// Must change to TLS before anything is said.
    #[default]
    StartTls,
    /// TLS from the first byte.
    Tls,
    /// None: for a server beside the cluster that wants no login.
    None,
}

/// Cost of a password hash (Argon2id). Existing hashes are upgraded at the next login.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argon2Spec {
    /// Memory in KiB. Default: 65536.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 8192, max = 4194304))]
    pub memory_kib: Option<u32>,
    /// Passes. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub iterations: Option<u32>,
    /// Lanes. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub parallelism: Option<u32>,
}

/// Rooms and messages.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("spec.message: replicas and autoscaling contradict each other; give one").field_path(".replicas"),
    validation = Rule::new("!has(self.autoscaling) || !has(self.autoscaling.minReplicas) || self.autoscaling.minReplicas <= self.autoscaling.maxReplicas").message("spec.message.autoscaling: minReplicas is larger than maxReplicas").field_path(".autoscaling"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MessageSpec {
    /// Number of pods. Default: 2. Not with `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// Let a HorizontalPodAutoscaler choose the number of pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// CPU and memory of a pod. Default: requests 100m / 128Mi, memory limit 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Who is online, who is typing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PresenceSpec {
    /// Number of pods. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// CPU and memory of a pod. Default: requests 50m / 64Mi, memory limit 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Uploads and downloads.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MediaSpec {
    /// Number of pods. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// Largest upload. Default: 4Mi; 1Ki to 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_upload_bytes: Option<ByteSize>,
    /// Where files are kept. Required in Kubernetes; `carillon up` uses its data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<MediaStoreSpec>,
    /// CPU and memory of a pod. Default: requests 50m / 128Mi, memory limit 1Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// Where files are kept: one of the two.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.s3) != has(self.directory)").message("spec.media.store: give exactly one of s3 and directory"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MediaStoreSpec {
    /// A bucket of an S3-compatible store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Spec>,
    /// A directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirectorySpec>,
}

/// A bucket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Spec {
    /// The bucket; it must exist.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// Where the store is, e.g. `https://s3.example.com`. `http://` sends credentials and files unprotected.
    #[schemars(regex(pattern = r"^https?://"))]
    pub endpoint: String,
    /// Region. Default: `us-east-1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// A Secret with the keys `access_key_id` and `secret_access_key`.
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: String,
}

/// A directory; in Kubernetes say what it is on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("!(has(self.persistentVolumeClaim) && has(self.ephemeral) && self.ephemeral)").message("spec.media.store.directory: give one of persistentVolumeClaim and ephemeral"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DirectorySpec {
    /// Only for `carillon up`: the directory. Default: `media` in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub path: Option<String>,
    /// Kubernetes: a PersistentVolumeClaim in the same namespace; ReadWriteMany when there is more than one media pod. With one, a roll-out stops it before the next one starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaimSpec>,
    /// Kubernetes: the pod's own disk. Files are lost with the pod; only with one media replica. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<bool>,
}

/// A PersistentVolumeClaim.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PersistentVolumeClaimSpec {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
}

/// Push to devices without a live socket.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationSpec {
    /// Number of pods. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub replicas: Option<i32>,
    /// Firebase Cloud Messaging. Secret key: `service_account.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fcm: Option<ProviderSpec>,
    /// Apple Push Notification service. Secret keys: `key.p8`, `key_id`, `team_id`, `topic`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apns: Option<ProviderSpec>,
    /// Web Push. Secret keys: `private_key.pem` (VAPID, P-256), `subject` (a `mailto:` or `https:` address).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_push: Option<ProviderSpec>,
    /// CPU and memory of a pod. Default: requests 50m / 64Mi, memory limit 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
}

/// ScyllaDB or Apache Cassandra.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.external) != has(self.managed)").message("spec.scylla: give one of external and managed"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScyllaSpec {
    /// A cluster that somebody else runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalScylla>,
    /// One that the operator orders. Can't be exchanged for `external` later, nor the other way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedScylla>,
}

/// A ScyllaDB cluster that somebody else runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalScylla {
    /// `host:port` of some nodes; the others are found through them.
    #[schemars(
        length(min = 1, max = 64),
        inner(regex(pattern = r"^[^\s:/]+:[0-9]{1,5}$"))
    )]
    pub contact_points: Vec<String>,
    /// The data centre to read from and write to.
    #[schemars(length(min = 1))]
    pub datacenter: String,
    /// Keyspace; created when absent. Names in Redis and RabbitMQ start with it too. Default: `carillon_<namespace>__<name>`, with `_` for `-`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z][a-z0-9_]{0,47}$"))]
    pub keyspace: Option<String>,
    /// Copies of each row, used when the keyspace is created. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 9))]
    pub replication_factor: Option<u32>,
    /// A Secret with the keys `username` and `password`. Default: no authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// Redis.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.external) != has(self.managed)").message("spec.redis: give one of external and managed"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisSpec {
    /// A server or cluster that somebody else runs. ChatClusters with different keyspaces may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRedis>,
    /// One that the operator runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRedis>,
}

/// A Redis that somebody else runs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalRedis {
    /// `redis://host:port/db`, `rediss://` for TLS, `redis-cluster://` and `redis-sentinel://`. No password here.
    #[schemars(regex(
        pattern = r"^(redis|rediss|redis-cluster|rediss-cluster|redis-sentinel|rediss-sentinel)://[^@\s]+$"
    ))]
    pub url: String,
    /// A Secret with the keys `username` (optional) and `password`. Default: no authentication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// RabbitMQ.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.external) != has(self.managed)").message("spec.rabbitmq: give one of external and managed"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RabbitmqSpec {
    /// A broker that somebody else runs. ChatClusters with different keyspaces may share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<ExternalRabbitmq>,
    /// One that the operator orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedRabbitmq>,
}

/// A RabbitMQ that somebody else runs: its address in `url`, or in the Secret.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(
    crates(kube_core = "::kube_core"),
    validation = Rule::new("has(self.url) || has(self.secretName)").message("spec.rabbitmq.external: give url, secretName or both"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalRabbitmq {
    /// `amqp://host:port/vhost`, or `amqps://` for TLS. No password here. Default: the Secret's `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^amqps?://[^@\s]+$"))]
    pub url: Option<String>,
    /// A Secret with the key `url` (credentials included), or with the keys `username` and `password` for the `url` here. Default: none; nobody asks for a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret_name: Option<String>,
}

/// Traces and logs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetrySpec {
    /// An OTLP gRPC receiver, e.g. `http://otel-collector:4317`. Default: none; no traces are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub otlp_endpoint: Option<String>,
    /// Share of traces that is kept, 0 to 1. Default: 1 with `otlpEndpoint`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub trace_ratio: Option<f64>,
}

/// What Prometheus and Grafana are given to read: what is named here is made, and goes when it is taken out.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MonitoringSpec {
    /// A PodMonitor (`monitoring.coreos.com/v1`), by which Prometheus scrapes every role. Not together with the one for all
    /// ChatClusters that the operator's chart makes: pods would be scraped twice. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_monitor: Option<PodMonitorSpec>,
    /// A PrometheusRule (`monitoring.coreos.com/v1`) with the objectives and alerts of this ChatCluster alone. Not together with the
    /// one for all of the operator's chart. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prometheus_rule: Option<PrometheusRuleSpec>,
    /// A ConfigMap with a Grafana dashboard each: overview, messages, gateway, stores and push of this ChatCluster alone.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dashboards: Option<DashboardsSpec>,
}

/// How the roles are scraped.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodMonitorSpec {
    /// Whether it is made. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Further labels, which your Prometheus selects by, e.g. `{release: prometheus}`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Time between two scrapes. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]+[smhd])+$"))]
    pub interval: Option<String>,
}

/// What is recorded and alerted on.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrometheusRuleSpec {
    /// Whether it is made. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Further labels, which your Prometheus selects by, e.g. `{release: prometheus}`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Where your copies of the runbooks are, e.g. `https://wiki.example.com/carillon`. Default: `docs/runbooks`, their path in the
    /// project's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://"))]
    pub runbook_base_url: Option<String>,
}

/// How Grafana finds the dashboards.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[x_kube(crates(kube_core = "::kube_core"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DashboardsSpec {
    /// Whether they are made. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Labels that Grafana's sidecar looks for. Default: `{grafana_dashboard: "1"}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Annotations, e.g. `{grafana_folder: Chat}`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// A number of bytes as a plain number or with a suffix (`4Mi`).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(untagged)]
pub enum ByteSize {
    /// A plain number.
    Number(u64),
    /// A number with a suffix.
    Text(String),
}

impl ByteSize {
    /// The bytes; `field` is named in the error.
    pub fn bytes(&self, field: &str) -> Result<u64, crate::FieldProblem> {
        match self {
            ByteSize::Number(bytes) => Ok(*bytes),
            ByteSize::Text(text) => crate::parse_bytes(field, text),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "pattern": "^[0-9]+(k|M|G|Ki|Mi|Gi)?$",
        })
    }
}

/// What a Secret that the spec refers to is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretUse {
    /// The fields that name it.
    pub fields: Vec<String>,
    /// Whether pods mount it, and so can't start without it.
    pub mounted: bool,
}

impl ChatClusterSpec {
    /// The Secrets the spec refers to, by name.
    pub fn referenced_secrets(&self) -> BTreeMap<String, SecretUse> {
        let mut found = self.mounted_secrets();
        // The ingress controller reads this one, and may be what makes it be issued: no pod waits for it.
        if let Some(tls) = self
            .gateway
            .as_ref()
            .and_then(|gateway| gateway.tls.as_ref())
        {
            found
                .entry(tls.secret_name.clone())
                .or_default()
                .fields
                .push("spec.gateway.tls.secretName".to_owned());
        }
        found
    }

    fn mounted_secrets(&self) -> BTreeMap<String, SecretUse> {
        let mut found: BTreeMap<String, SecretUse> = BTreeMap::new();
        let mut note = |field: &str, name: Option<&String>| {
            if let Some(name) = name {
                let secret = found.entry(name.clone()).or_default();
                secret.mounted = true;
                secret.fields.push(field.to_owned());
            }
        };
        note(
            "spec.auth.otp.twilio.secretName",
            self.auth
                .as_ref()
                .and_then(|auth| auth.otp.as_ref())
                .map(|otp| &otp.twilio.secret_name),
        );
        note(
            "spec.mail.secretName",
            self.mail
                .as_ref()
                .and_then(|mail| mail.secret_name.as_ref()),
        );
        note(
            "spec.media.store.s3.secretName",
            self.s3().map(|s3| &s3.secret_name),
        );
        if let Some(notification) = &self.notification {
            note(
                "spec.notification.fcm.secretName",
                notification.fcm.as_ref().map(|fcm| &fcm.secret_name),
            );
            note(
                "spec.notification.apns.secretName",
                notification.apns.as_ref().map(|apns| &apns.secret_name),
            );
            note(
                "spec.notification.webPush.secretName",
                notification
                    .web_push
                    .as_ref()
                    .map(|web_push| &web_push.secret_name),
            );
        }
        note(
            "spec.scylla.external.secretName",
            self.external_scylla()
                .and_then(|scylla| scylla.secret_name.as_ref()),
        );
        note(
            "spec.redis.external.secretName",
            self.external_redis()
                .and_then(|redis| redis.secret_name.as_ref()),
        );
        note(
            "spec.rabbitmq.external.secretName",
            self.external_rabbitmq()
                .and_then(|rabbitmq| rabbitmq.secret_name.as_ref()),
        );
        found
    }

    /// The bucket of the media store, when it is one.
    pub fn s3(&self) -> Option<&S3Spec> {
        self.media.as_ref()?.store.as_ref()?.s3.as_ref()
    }

    /// The directory of the media store, when it is one.
    pub fn media_directory(&self) -> Option<&DirectorySpec> {
        self.media.as_ref()?.store.as_ref()?.directory.as_ref()
    }
}
