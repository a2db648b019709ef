//! What every server process reads, from one YAML file.
//!
//! In Kubernetes the operator writes the file into a ConfigMap, mounted at [`CONFIG_FILE`]; `carillon up` makes the same
//! value in memory. It holds no secret: credentials are directories with one file per key, mounted from Secrets.
//! Reading the files, and what to do with the values, is not here.

use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chatcluster::{LimitAlgorithm, MailSecurity, WithoutRedis};

/// Where a pod finds its configuration.
pub const CONFIG_FILE: &str = "/etc/carillon/config.yaml";
/// Where a pod finds its Secrets: one directory per purpose (`scylla`, `redis`, `s3`, …) with one file per key.
pub const SECRETS_DIR: &str = "/etc/carillon/secrets";
/// Where a pod finds the public keys.
pub const JWKS_DIR: &str = "/etc/carillon/jwks";
/// Where a pod finds its certificate: `tls.crt`, `tls.key` and `ca.crt`.
pub const TLS_DIR: &str = "/etc/carillon/tls";
/// Where a media pod finds its directory store.
pub const MEDIA_DIR: &str = "/var/lib/carillon/media";

/// The hard upper bound of `gateway.maxFrameBytes`.
pub const MAX_FRAME_BYTES_CAP: u64 = 1 << 20;

/// The hard upper bound of `media.maxUploadBytes`: an upload is in the memory of a gateway and of a media pod as a whole.
pub const MAX_UPLOAD_BYTES_CAP: u64 = 64 << 20;

/// The configuration of every role of one cluster.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlatformConfig {
    /// Name of the ChatCluster.
    pub cluster: String,
    /// Platform version that was ordered.
    pub version: String,
    /// The edge.
    pub gateway: GatewayConfig,
    /// Accounts and tokens.
    pub auth: AuthConfig,
    /// Rooms and messages.
    pub message: MessageConfig,
    /// Who is online.
    pub presence: PresenceConfig,
    /// Files.
    pub media: MediaConfig,
    /// Push.
    pub notification: NotificationConfig,
    /// Mail to people, when configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mail: Option<MailConfig>,
    /// Where data lives.
    pub stores: StoresConfig,
    /// Where the other roles are; `None` when all are in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Peers>,
    /// Keys that the cluster made for itself.
    pub keys: KeysConfig,
    /// Mutual TLS between the roles; `None` leaves calls in plain text, known by the internal token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Traces and logs.
    pub telemetry: TelemetryConfig,
    /// Port of `/health`, `/ready` and `/metrics`. 0 takes any free port.
    pub admin_port: u16,
}

/// The edge.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Port of REST and WebSocket. 0 takes any free port.
    pub http_port: u16,
    /// Public host name, when there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Browser origins that may call (CORS); `*` for any.
    pub allowed_origins: Vec<String>,
    /// Networks of proxies whose `X-Forwarded-For` is believed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
    /// Largest WebSocket frame, bytes; at most [`MAX_FRAME_BYTES_CAP`].
    pub max_frame_bytes: u64,
    /// Largest request body but for uploads, bytes.
    pub max_body_bytes: u64,
    /// Seconds between signs of life asked of an idle socket.
    pub heartbeat_seconds: u64,
    /// Seconds without a sign of life after which a socket is closed.
    pub dead_after_seconds: u64,
    /// Events that may wait for one socket before it counts as too slow.
    pub send_buffer: usize,
    /// Seconds over which a stopping gateway hands its sockets over.
    pub drain_seconds: u64,
    /// Registrations, logins and codes per minute and address.
    pub auth_per_minute: u32,
    /// Other REST requests per minute and address.
    pub requests_per_minute: u32,
    /// REST requests with a token per minute and person.
    pub user_requests_per_minute: u32,
    /// Messages on sockets per second and person.
    pub messages_per_second: u32,
    /// How the limits count.
    pub limit_algorithm: LimitAlgorithm,
    /// What becomes of requests that can't be counted for all gateways.
    pub limits_without_redis: WithoutRedis,
}

/// Accounts and tokens.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthConfig {
    /// gRPC port.
    pub grpc_port: u16,
    /// The `iss` of tokens.
    pub issuer: String,
    /// Life of an access token, seconds.
    pub access_ttl_seconds: u64,
    /// Life of a refresh token, seconds.
    pub refresh_ttl_seconds: u64,
    /// Development: phone codes are 123456.
    pub dev_mode: bool,
    /// Cost of a password hash.
    pub argon2: Argon2Config,
    /// Who sends codes to phones.
    pub otp_provider: OtpProvider,
}

/// Cost of a password hash (Argon2id).
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Argon2Config {
    /// Memory, KiB.
    pub memory_kib: u32,
    /// Passes.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
}

/// Who sends codes to phones.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum OtpProvider {
    /// Nobody: phone login is refused.
    Disabled,
    /// Nobody: the code is always 123456. Only with `devMode`.
    Dev,
    /// Twilio Verify.
    Twilio(ProviderConfig),
}

/// An outside service.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProviderConfig {
    /// Where it is; `None` for the provider's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// Directory with one file per credential.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
}

/// Rooms and messages.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MessageConfig {
    /// gRPC port.
    pub grpc_port: u16,
    /// Number of partitions that rooms hash to. Fixed for the life of the data.
    pub partitions: u32,
}

/// Who is online.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PresenceConfig {
    /// gRPC port.
    pub grpc_port: u16,
    /// Seconds after which a device that was not renewed is offline.
    pub lease_seconds: u64,
}

/// Files.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MediaConfig {
    /// gRPC port.
    pub grpc_port: u16,
    /// Largest upload, bytes.
    pub max_upload_bytes: u64,
    /// Where files are kept.
    pub blob: BlobConfig,
}

/// Where files are kept.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum BlobConfig {
    /// A directory.
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// A bucket.
    S3 {
        /// The bucket.
        bucket: String,
        /// Where the store is.
        endpoint: String,
        /// Region.
        region: String,
        /// Directory with the files `access_key_id` and `secret_access_key`.
        credentials_dir: PathBuf,
        /// Whether the endpoint is plain HTTP.
        allow_http: bool,
    },
}

/// Push.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NotificationConfig {
    /// gRPC port.
    pub grpc_port: u16,
    /// Web Push, when configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_push: Option<ProviderConfig>,
    /// Firebase Cloud Messaging, when configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fcm: Option<ProviderConfig>,
    /// Apple Push Notification service, when configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apns: Option<ProviderConfig>,
}

/// Mail to people, over SMTP.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MailConfig {
    /// The server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is secured.
    pub security: MailSecurity,
    /// The sender's address.
    pub from: String,
    /// Where links lead.
    pub public_url: String,
    /// Directory with the files `username` and `password` (both or none) and `ca.crt` (optional).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
}

/// Where data lives.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum StoresConfig {
    /// On this machine, in this process.
    Embedded {
        /// The directory that holds everything.
        data_dir: PathBuf,
    },
    /// In servers that somebody else runs.
    External(ExternalStores),
}

/// Servers that somebody else runs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExternalStores {
    /// ScyllaDB or Apache Cassandra.
    pub scylla: ScyllaConfig,
    /// Redis.
    pub redis: RedisConfig,
    /// RabbitMQ.
    pub rabbitmq: RabbitmqConfig,
}

/// ScyllaDB or Apache Cassandra.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScyllaConfig {
    /// `host:port` of some nodes.
    pub contact_points: Vec<String>,
    /// Local data centre.
    pub datacenter: String,
    /// Keyspace.
    pub keyspace: String,
    /// Copies of each row, when the keyspace is created.
    pub replication_factor: u32,
    /// Directory with the files `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
}

/// Redis.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RedisConfig {
    /// Where it is.
    pub url: String,
    /// Directory with the files `username` (optional) and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
}

/// RabbitMQ: at least one of the two is there.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RabbitmqConfig {
    /// Where it is, without credentials; `None` when it is in the file `url` of `credentials_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Directory with the file `url`, or with the files `username` and `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_dir: Option<PathBuf>,
}

/// Where the other roles are: base URLs for gRPC.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peers {
    /// The auth role.
    pub auth: String,
    /// The message role: any replica.
    pub message: String,
    /// The message role: a name that resolves to every replica, ready or not, so that the owner of a partition can be reached.
    pub message_headless: String,
    /// The presence role.
    pub presence: String,
    /// The media role.
    pub media: String,
    /// The notification role.
    pub notification: String,
}

/// Keys that the cluster made for itself.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeysConfig {
    /// Ed25519 private key, PKCS#8 PEM. Only the auth role has the file.
    pub signing_key_file: PathBuf,
    /// Public keys as a JWK set.
    pub jwks_file: PathBuf,
    /// The token by which roles know each other where there is no `tls`: 64 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub internal_token_file: Option<PathBuf>,
}

/// Mutual TLS between the roles. The files may change while a process runs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsConfig {
    /// The process's own certificate chain, leaf first, PEM.
    pub certificate_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The authorities whose certificates count, PEM.
    pub trust_file: PathBuf,
    /// The DNS name in the certificate of each role.
    pub names: TlsNames,
}

/// The DNS name in the certificate of each role.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsNames {
    /// Of the gateway.
    pub gateway: String,
    /// Of auth.
    pub auth: String,
    /// Of message.
    pub message: String,
    /// Of presence.
    pub presence: String,
    /// Of media.
    pub media: String,
    /// Of notification.
    pub notification: String,
}

/// Names of what a pod says it has in use, under `in_use` of `/ready`: there the operator sees that what it changed has arrived.
pub mod in_use {
    /// [`fingerprint`](super::fingerprint) of the certificate file.
    pub const CERTIFICATE: &str = "tls.certificate";
    /// [`fingerprint`](super::fingerprint) of the trust file.
    pub const TRUST: &str = "tls.trust";
    /// [`fingerprint`](super::fingerprint) of the JWK set.
    pub const PUBLIC_KEYS: &str = "jwks";
    /// `kid` of the key that signs tokens; of the auth role only.
    pub const SIGNING_KEY: &str = "signing_key";
}

/// Tells a text of public certificates or keys from others: the first 64 bits of its SHA-256, in hex. White space around it doesn't count.
pub fn fingerprint(text: &str) -> String {
    hex::encode(&Sha256::digest(text.trim().as_bytes())[..8])
}

/// Traces and logs.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TelemetryConfig {
    /// OTLP gRPC receiver; `None` sends no traces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
    /// Share of traces that is kept, 0 to 1.
    pub trace_ratio: f64,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people at a terminal.
    Text,
}

impl PlatformConfig {
    /// Reads the YAML that [`PlatformConfig::to_yaml`] wrote; the error names the field and line.
    pub fn from_yaml(yaml: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str(yaml)
    }

    /// The YAML of the whole configuration, the same for equal values.
    pub fn to_yaml(&self) -> String {
        serde_saphyr::to_string(self).expect("plain structs with string keys always serialize")
    }
}
