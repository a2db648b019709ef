//! Spec → role configuration: validation, defaults, and where things are in each target. Pure.

use std::path::{Path, PathBuf};

use ipnet::IpNet;

use k8s_openapi::api::core::v1::ResourceRequirements;

use crate::chatcluster::{Autoscaling, ChatClusterSpec, MailSecurity, ProviderSpec};
use crate::config::*;
use crate::managed::{self, ManagedStore};
use crate::problem::FieldProblem;
use crate::quantity::{BYTES_FORM, parse_bytes, parse_duration_seconds, parse_quantity};
use crate::releases;
use crate::{MAX_NAME_LENGTH, PLATFORM_VERSION, Role};

/// Where the platform is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All roles in one process on embedded stores (`carillon up`).
    Embedded {
        /// The directory that holds everything.
        data_dir: PathBuf,
    },
    /// Pods in a namespace, on stores that are external or managed.
    Kubernetes {
        /// The namespace.
        namespace: String,
    },
}

/// Pods of `role` when the spec gives neither a number nor an autoscaler.
pub fn default_replicas(_role: Role) -> i32 {
    2
}

/// Name of the Service (and Deployment) of `role` in the cluster `cluster_name`.
pub fn service_name(cluster_name: &str, role: Role) -> String {
    format!("{cluster_name}-{}", role.name())
}

/// Everything wrong with `spec` for `target`, in the order of the fields; empty when it can run.
pub fn validate_spec(
    cluster_name: &str,
    spec: &ChatClusterSpec,
    target: &Target,
) -> Vec<FieldProblem> {
    platform_config(cluster_name, spec, target.clone())
        .err()
        .unwrap_or_default()
}

/// The configuration of every role, or every problem of the spec.
///
/// The same inputs always give the same configuration. With [`Target::Embedded`] external stores in the spec are left
/// unused, so that one file serves both targets; with [`Target::Kubernetes`] what isn't external is managed.
pub fn platform_config(
    cluster_name: &str,
    spec: &ChatClusterSpec,
    target: Target,
) -> Result<PlatformConfig, Vec<FieldProblem>> {
    let mut check = Check::default();
    let places = Places {
        cluster_name,
        target: &target,
    };
    check.cluster_name(cluster_name);
    progress_deadline(spec, &mut check);
    monitoring(spec, &mut check);
    let config = PlatformConfig {
        cluster: cluster_name.to_owned(),
        version: version(spec, &places, &mut check),
        gateway: gateway(spec, &places, &mut check),
        auth: auth(cluster_name, spec, &places, &mut check),
        message: message(spec, &mut check),
        presence: presence(spec, &mut check),
        media: media(spec, &places, &mut check),
        notification: notification(spec, &places, &mut check),
        mail: mail(spec, &places, &mut check),
        stores: stores(spec, &places, &mut check),
        peers: places.peers(),
        keys: places.keys(),
        tls: places.tls(),
        telemetry: telemetry(spec, &places, &mut check),
        admin_port: 9090,
    };
    if check.problems.is_empty() {
        Ok(config)
    } else {
        Err(check.problems)
    }
}

// === sections ===

fn version(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> String {
    let version = spec
        .version
        .clone()
        .unwrap_or_else(|| PLATFORM_VERSION.to_owned());
    match places.target {
        Target::Embedded { .. } if version != PLATFORM_VERSION => check.problem(
            "spec.version",
            format!("{version:?} is not the version of this program"),
            PLATFORM_VERSION,
        ),
        Target::Embedded { .. } => {}
        Target::Kubernetes { .. } => {
            if let Err(problem) = releases::line_of(&version) {
                check.problems.push(problem);
            }
        }
    }
    version
}

/// Labels that the API server would refuse, and with them what carries them.
fn monitoring(spec: &ChatClusterSpec, check: &mut Check) {
    let Some(monitoring) = &spec.monitoring else {
        return;
    };
    let pod_monitor = monitoring.pod_monitor.as_ref();
    let rule = monitoring.prometheus_rule.as_ref();
    let dashboards = monitoring.dashboards.as_ref();
    for (part, labels) in [
        ("podMonitor", pod_monitor.and_then(|of| of.labels.as_ref())),
        ("prometheusRule", rule.and_then(|of| of.labels.as_ref())),
        ("dashboards", dashboards.and_then(|of| of.labels.as_ref())),
    ] {
        for (key, value) in labels.into_iter().flatten() {
            let field = format!("spec.monitoring.{part}.labels");
            if !is_label_key(key) {
                let problem = format!("{key:?} is not the key of a label");
                check.problem(&field, problem, LABEL_KEY_FORM);
            }
            if !value.is_empty() && !is_label_part(value) {
                let problem = format!("{value:?} is not the value of a label");
                check.problem(format!("{field}.{key}"), problem, LABEL_FORM);
            }
        }
    }
}

/// Seconds for which an upgrade may stand still.
const PROGRESS_DEADLINE_SECONDS: u64 = 300;

fn progress_deadline(spec: &ChatClusterSpec, check: &mut Check) -> u64 {
    let upgrade = spec.upgrade.as_ref();
    check.seconds_between(
        "spec.upgrade.progressDeadline",
        upgrade.and_then(|upgrade| upgrade.progress_deadline.as_deref()),
        PROGRESS_DEADLINE_SECONDS,
        (10, 3600, "10s to 1h"),
    )
}

/// Seconds for which an upgrade of a valid order may stand still; the default for an invalid one.
pub fn progress_deadline_seconds(spec: &ChatClusterSpec) -> u64 {
    progress_deadline(spec, &mut Check::default())
}

fn gateway(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> GatewayConfig {
    let gateway = spec.gateway.clone().unwrap_or_default();
    check.scaling(
        "spec.gateway",
        gateway.replicas,
        gateway.autoscaling.as_ref(),
    );
    if gateway.tls.is_some() && gateway.host.is_none() {
        check.problem(
            "spec.gateway.tls",
            "needs spec.gateway.host, the name the certificate is for",
            "",
        );
    }
    check.resources("spec.gateway.resources", gateway.resources.as_ref());
    if let Some(host) = &gateway.host
        && (!is_dns_name(host)
            || host.split('.').any(|label| label.len() > 63)
            || host.parse::<std::net::IpAddr>().is_ok())
    {
        check.problem(
            "spec.gateway.host",
            format!("{host:?} is not a host name"),
            "a DNS name in lower case, e.g. chat.example.com",
        );
    }
    if let Some(class) = &gateway.ingress_class_name
        && !is_dns_name(class)
    {
        check.problem(
            "spec.gateway.ingressClassName",
            format!("{class:?} is not the name of an IngressClass"),
            DNS_NAME_FORM,
        );
    }
    let allowed_origins = gateway.allowed_origins.unwrap_or_default();
    for (index, origin) in allowed_origins.iter().enumerate() {
        if !is_origin(origin) {
            check.problem(
                format!("spec.gateway.allowedOrigins[{index}]"),
                format!("{origin:?} is not an origin"),
                "scheme and host without a path, e.g. https://app.example.com, or *",
            );
        }
    }
    let trusted_proxies = check.networks(
        "spec.gateway.trustedProxies",
        gateway.trusted_proxies.as_deref().unwrap_or_default(),
    );
    let max_frame_bytes = check.bytes_between(
        "spec.gateway.maxFrameBytes",
        gateway.max_frame_bytes.as_ref(),
        65_536,
        (1_024, MAX_FRAME_BYTES_CAP, "1Ki to 1Mi"),
    );
    let heartbeat_seconds = check.seconds_between(
        "spec.gateway.heartbeat",
        gateway.heartbeat.as_deref(),
        30,
        (1, 600, "1s to 10m"),
    );
    let dead_after_seconds = check.seconds_between(
        "spec.gateway.deadAfter",
        gateway.dead_after.as_deref(),
        heartbeat_seconds.saturating_mul(3),
        (1, 3_600, "1s to 1h"),
    );
    if dead_after_seconds <= heartbeat_seconds {
        check.problem(
            "spec.gateway.deadAfter",
            format!("{dead_after_seconds}s leaves no time to answer a heartbeat sent every {heartbeat_seconds}s"),
            "longer than spec.gateway.heartbeat",
        );
    }
    let drain_seconds = check.seconds_between(
        "spec.gateway.drain",
        gateway.drain.as_deref(),
        10,
        (0, 600, "0s to 10m"),
    );
    let limits = gateway.limits.unwrap_or_default();
    let requests_per_minute = check.at_least_one(
        "spec.gateway.limits.requestsPerMinute",
        limits.requests_per_minute,
        120,
    );
    let service_port = gateway.port.unwrap_or(Role::Gateway.port());
    if service_port == 0 {
        check.problem("spec.gateway.port", "0 is not a port", "1 to 65535");
    }
    GatewayConfig {
        http_port: match places.target {
            Target::Embedded { .. } => service_port,
            Target::Kubernetes { .. } => Role::Gateway.port(),
        },
        host: gateway.host,
        allowed_origins,
        trusted_proxies,
        max_frame_bytes,
        max_body_bytes: 1 << 20,
        heartbeat_seconds,
        dead_after_seconds,
        send_buffer: 256,
        drain_seconds,
        auth_per_minute: check.at_least_one(
            "spec.gateway.limits.authPerMinute",
            limits.auth_per_minute,
            10,
        ),
        requests_per_minute,
        user_requests_per_minute: check.at_least_one(
            "spec.gateway.limits.userRequestsPerMinute",
            limits.user_requests_per_minute,
            requests_per_minute.div_ceil(2),
        ),
        messages_per_second: check.at_least_one(
            "spec.gateway.limits.messagesPerSecond",
            limits.messages_per_second,
            10,
        ),
        limit_algorithm: limits.algorithm.unwrap_or_default(),
        limits_without_redis: limits.without_redis.unwrap_or_default(),
    }
}

fn auth(
    cluster_name: &str,
    spec: &ChatClusterSpec,
    places: &Places<'_>,
    check: &mut Check,
) -> AuthConfig {
    let auth = spec.auth.clone().unwrap_or_default();
    check.scaling("spec.auth", auth.replicas, None);
    check.resources("spec.auth.resources", auth.resources.as_ref());
    let access_ttl_seconds = check.seconds_between(
        "spec.auth.accessTokenTtl",
        auth.access_token_ttl.as_deref(),
        900,
        (60, 86_400, "1m to 24h"),
    );
    let refresh_ttl_seconds = check.seconds_between(
        "spec.auth.refreshTokenTtl",
        auth.refresh_token_ttl.as_deref(),
        604_800,
        (60, 365 * 86_400, "1m to 365d"),
    );
    if refresh_ttl_seconds <= access_ttl_seconds {
        check.problem(
            "spec.auth.refreshTokenTtl",
            "a refresh token that ends before its access token can never be used",
            "longer than spec.auth.accessTokenTtl",
        );
    }
    let dev_mode = auth.dev_mode.unwrap_or(false);
    if dev_mode && auth.otp.is_some() {
        check.problem(
            "spec.auth.devMode",
            "gives every phone the code 123456 and contradicts spec.auth.otp",
            "one of spec.auth.devMode and spec.auth.otp",
        );
    }
    let argon2 = auth.argon2.unwrap_or_default();
    AuthConfig {
        grpc_port: Role::Auth.port(),
        issuer: auth
            .issuer
            .unwrap_or_else(|| format!("carillon://{cluster_name}")),
        access_ttl_seconds,
        refresh_ttl_seconds,
        dev_mode,
        argon2: Argon2Config {
            memory_kib: check.between(
                "spec.auth.argon2.memoryKib",
                argon2.memory_kib,
                65_536,
                (8_192, 4_194_304),
            ),
            iterations: check.between(
                "spec.auth.argon2.iterations",
                argon2.iterations,
                3,
                (1, 100),
            ),
            parallelism: check.between(
                "spec.auth.argon2.parallelism",
                argon2.parallelism,
                2,
                (1, 64),
            ),
        },
        otp_provider: match (auth.otp, dev_mode) {
            (Some(otp), _) => OtpProvider::Twilio(places.provider(
                "spec.auth.otp.twilio",
                "twilio",
                &otp.twilio,
                check,
            )),
            (None, true) => OtpProvider::Dev,
            (None, false) => OtpProvider::Disabled,
        },
    }
}

fn message(spec: &ChatClusterSpec, check: &mut Check) -> MessageConfig {
    if let Some(message) = &spec.message {
        check.scaling(
            "spec.message",
            message.replicas,
            message.autoscaling.as_ref(),
        );
        check.resources("spec.message.resources", message.resources.as_ref());
    }
    MessageConfig {
        grpc_port: Role::Message.port(),
        partitions: 1024,
    }
}

fn presence(spec: &ChatClusterSpec, check: &mut Check) -> PresenceConfig {
    if let Some(presence) = &spec.presence {
        check.scaling("spec.presence", presence.replicas, None);
        check.resources("spec.presence.resources", presence.resources.as_ref());
    }
    PresenceConfig {
        grpc_port: Role::Presence.port(),
        lease_seconds: 45,
    }
}

fn media(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> MediaConfig {
    let media = spec.media.clone().unwrap_or_default();
    check.scaling("spec.media", media.replicas, None);
    check.resources("spec.media.resources", media.resources.as_ref());
    let max_upload_bytes = check.bytes_between(
        "spec.media.maxUploadBytes",
        media.max_upload_bytes.as_ref(),
        4 << 20,
        (1 << 10, MAX_UPLOAD_BYTES_CAP, "1Ki to 64Mi"),
    );
    MediaConfig {
        grpc_port: Role::Media.port(),
        max_upload_bytes,
        blob: blob(spec, places, check),
    }
}

fn blob(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> BlobConfig {
    const FIELD: &str = "spec.media.store";
    const FORMS: &str = "exactly one of s3 and directory";
    let store = spec.media.as_ref().and_then(|media| media.store.as_ref());
    if store.is_some_and(|store| store.s3.is_some() == store.directory.is_some()) {
        check.problem(FIELD, "names not one store", FORMS);
    }
    if let Some(s3) = spec.s3() {
        check.url(
            "spec.media.store.s3.endpoint",
            &s3.endpoint,
            &["http", "https"],
        );
        if s3.bucket.is_empty() {
            check.problem(
                "spec.media.store.s3.bucket",
                "is empty",
                "the name of a bucket",
            );
        }
        check.secret_name("spec.media.store.s3.secretName", &s3.secret_name);
    }
    let directory = spec.media_directory();
    let ephemeral = directory.is_some_and(|directory| directory.ephemeral == Some(true));
    if ephemeral && directory.is_some_and(|directory| directory.persistent_volume_claim.is_some()) {
        check.problem(
            "spec.media.store.directory.ephemeral",
            "contradicts persistentVolumeClaim",
            "one of persistentVolumeClaim and ephemeral",
        );
    }
    match places.target {
        Target::Embedded { data_dir } => BlobConfig::Directory {
            path: directory
                .and_then(|directory| directory.path.as_ref())
                .map_or_else(|| data_dir.join("media"), PathBuf::from),
        },
        Target::Kubernetes { .. } => {
            if let Some(directory) = directory {
                if directory.path.is_some() {
                    check.problem(
                        "spec.media.store.directory.path",
                        "only means something to `carillon up`",
                        "persistentVolumeClaim or ephemeral: true",
                    );
                } else if directory.persistent_volume_claim.is_none() && !ephemeral {
                    check.problem(
                        "spec.media.store.directory",
                        "does not say what it is on",
                        "persistentVolumeClaim or ephemeral: true",
                    );
                }
                let replicas = spec
                    .media
                    .as_ref()
                    .and_then(|media| media.replicas)
                    .unwrap_or(default_replicas(Role::Media));
                if ephemeral && replicas > 1 {
                    check.problem(
                        "spec.media.store.directory.ephemeral",
                        format!("gives each of {replicas} media pods a disk of its own: a file would be found by chance"),
                        "spec.media.replicas: 1, or persistentVolumeClaim, or s3",
                    );
                }
            }
            match spec.s3() {
                Some(s3) => BlobConfig::S3 {
                    bucket: s3.bucket.clone(),
                    endpoint: s3.endpoint.clone(),
                    region: s3.region.clone().unwrap_or_else(|| "us-east-1".to_owned()),
                    credentials_dir: places.credentials("s3", &s3.secret_name),
                    allow_http: s3.endpoint.starts_with("http://"),
                },
                None => {
                    if store.is_none() {
                        check.problem(FIELD, "is needed in Kubernetes", FORMS);
                    }
                    BlobConfig::Directory {
                        path: PathBuf::from(MEDIA_DIR),
                    }
                }
            }
        }
    }
}

fn notification(
    spec: &ChatClusterSpec,
    places: &Places<'_>,
    check: &mut Check,
) -> NotificationConfig {
    let notification = spec.notification.clone().unwrap_or_default();
    check.scaling("spec.notification", notification.replicas, None);
    check.resources(
        "spec.notification.resources",
        notification.resources.as_ref(),
    );
    let mut provider = |field: &str, purpose: &str, provider: Option<&ProviderSpec>| {
        provider.map(|provider| places.provider(field, purpose, provider, check))
    };
    NotificationConfig {
        grpc_port: Role::Notification.port(),
        web_push: provider(
            "spec.notification.webPush",
            "web-push",
            notification.web_push.as_ref(),
        ),
        fcm: provider("spec.notification.fcm", "fcm", notification.fcm.as_ref()),
        apns: provider("spec.notification.apns", "apns", notification.apns.as_ref()),
    }
}

fn mail(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> Option<MailConfig> {
    let mail = spec.mail.as_ref()?;
    let security = mail.security.unwrap_or_default();
    if mail.host.is_empty() || mail.host.contains(|c: char| c.is_whitespace() || c == '/') {
        check.problem(
            "spec.mail.host",
            format!("{:?} is no server", mail.host),
            "a host name or address, e.g. smtp.example.com",
        );
    }
    let default_port = match security {
        MailSecurity::StartTls => 587,
        MailSecurity::Tls => 465,
        MailSecurity::None => 25,
    };
    let port = check.between("spec.mail.port", mail.port, default_port, (1, 65_535));
    if !is_mail_address(&mail.from) {
        check.problem(
            "spec.mail.from",
            format!("{:?} is no address", mail.from),
            "an e-mail address, e.g. chat@example.com",
        );
    }
    if let Some(name) = &mail.secret_name {
        check.secret_name("spec.mail.secretName", name);
        if security == MailSecurity::None {
            check.problem(
                "spec.mail.security",
                "none would send the Secret's password in the clear",
                "startTls or tls, or no spec.mail.secretName",
            );
        }
    }
    let host = spec
        .gateway
        .as_ref()
        .and_then(|gateway| gateway.host.as_ref());
    let public_url = match (&mail.public_url, host) {
        (Some(url), _) => {
            check.url("spec.mail.publicUrl", url, &["http", "https"]);
            url.clone()
        }
        (None, Some(host)) => format!("https://{host}"),
        (None, None) => {
            check.problem(
                "spec.mail.publicUrl",
                "is missing, and without spec.gateway.host nothing says where links lead",
                "https://…",
            );
            String::new()
        }
    };
    Some(MailConfig {
        host: mail.host.clone(),
        port: u16::try_from(port).unwrap_or(u16::MAX),
        security,
        from: mail.from.clone(),
        public_url,
        credentials_dir: mail
            .secret_name
            .as_ref()
            .map(|name| places.credentials("mail", name)),
    })
}

fn is_mail_address(text: &str) -> bool {
    let unfit = |c: char| c.is_whitespace() || c.is_control() || "<>@".contains(c);
    text.split_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && !domain.is_empty() && !local.contains(unfit) && !domain.contains(unfit)
    })
}

fn stores(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> StoresConfig {
    let scylla = spec.external_scylla();
    let redis = spec.external_redis();
    let rabbitmq = spec.external_rabbitmq();
    check.problems.extend(managed::problems(spec));
    for store in ManagedStore::ALL {
        check.resources(
            &format!("spec.{}.managed.resources", store.name()),
            spec.managed_resources(store).as_ref(),
        );
    }
    if let Some(scylla) = scylla {
        if scylla.contact_points.is_empty() {
            check.problem(
                "spec.scylla.external.contactPoints",
                "is empty",
                "at least one host:port",
            );
        }
        for (index, contact_point) in scylla.contact_points.iter().enumerate() {
            if !is_host_port(contact_point) {
                check.problem(
                    format!("spec.scylla.external.contactPoints[{index}]"),
                    format!("{contact_point:?} is not an address"),
                    "host:port, e.g. scylla:9042",
                );
            }
        }
        if scylla.datacenter.is_empty() {
            check.problem(
                "spec.scylla.external.datacenter",
                "is empty",
                "the name of a data centre",
            );
        }
        check.between(
            "spec.scylla.external.replicationFactor",
            scylla.replication_factor,
            3,
            (1, 9),
        );
        if let Some(name) = &scylla.secret_name {
            check.secret_name("spec.scylla.external.secretName", name);
        }
    }
    if let Some(redis) = redis {
        check.url(
            "spec.redis.external.url",
            &redis.url,
            &[
                "redis",
                "rediss",
                "redis-cluster",
                "rediss-cluster",
                "redis-sentinel",
                "rediss-sentinel",
            ],
        );
        check.no_password("spec.redis.external.url", &redis.url);
        if let Some(name) = &redis.secret_name {
            check.secret_name("spec.redis.external.secretName", name);
        }
    }
    if let Some(rabbitmq) = rabbitmq {
        if let Some(url) = &rabbitmq.url {
            check.url("spec.rabbitmq.external.url", url, &["amqp", "amqps"]);
            check.no_password("spec.rabbitmq.external.url", url);
        }
        if let Some(name) = &rabbitmq.secret_name {
            check.secret_name("spec.rabbitmq.external.secretName", name);
        }
        if rabbitmq.url.is_none() && rabbitmq.secret_name.is_none() {
            check.problem(
                "spec.rabbitmq.external",
                "names no broker",
                "url, secretName or both",
            );
        }
    }
    let namespace = match places.target {
        Target::Embedded { data_dir } => {
            return StoresConfig::Embedded {
                data_dir: data_dir.clone(),
            };
        }
        Target::Kubernetes { namespace } => namespace,
    };
    let managed_scylla = spec.managed_scylla();
    let keyspace = keyspace(
        namespace,
        places.cluster_name,
        scylla
            .and_then(|scylla| scylla.keyspace.as_deref())
            .or(managed_scylla
                .as_ref()
                .and_then(|scylla| scylla.keyspace.as_deref())),
        managed_scylla.is_some(),
        check,
    );
    let credentials = |purpose: &str, secret_name: &Option<String>| {
        secret_name
            .as_ref()
            .map(|name| places.credentials(purpose, name))
    };
    let at = |store: ManagedStore| store.address(places.cluster_name, namespace);
    StoresConfig::External(ExternalStores {
        scylla: match (scylla, managed_scylla) {
            (Some(scylla), _) => ScyllaConfig {
                contact_points: scylla.contact_points.clone(),
                datacenter: scylla.datacenter.clone(),
                keyspace,
                replication_factor: scylla.replication_factor.unwrap_or(3),
                credentials_dir: credentials("scylla", &scylla.secret_name),
            },
            (None, managed) => ScyllaConfig {
                contact_points: vec![at(ManagedStore::Scylla)],
                datacenter: managed::DATACENTER.to_owned(),
                keyspace,
                replication_factor: managed.unwrap_or_default().copies(),
                credentials_dir: Some(Path::new(SECRETS_DIR).join("scylla")),
            },
        },
        redis: match redis {
            Some(redis) => RedisConfig {
                url: redis.url.clone(),
                credentials_dir: credentials("redis", &redis.secret_name),
            },
            None => RedisConfig {
                url: format!("redis://{}", at(ManagedStore::Redis)),
                credentials_dir: Some(Path::new(SECRETS_DIR).join("redis")),
            },
        },
        rabbitmq: match rabbitmq {
            Some(rabbitmq) => RabbitmqConfig {
                url: rabbitmq.url.clone(),
                credentials_dir: credentials("rabbitmq", &rabbitmq.secret_name),
            },
            None => RabbitmqConfig {
                url: Some(format!("amqp://{}", at(ManagedStore::Rabbitmq))),
                credentials_dir: Some(Path::new(SECRETS_DIR).join("rabbitmq")),
            },
        },
    })
}

fn telemetry(spec: &ChatClusterSpec, places: &Places<'_>, check: &mut Check) -> TelemetryConfig {
    let telemetry = spec.telemetry.clone().unwrap_or_default();
    if let Some(endpoint) = &telemetry.otlp_endpoint {
        check.url("spec.telemetry.otlpEndpoint", endpoint, &["http", "https"]);
    }
    let trace_ratio = telemetry.trace_ratio.unwrap_or(1.0);
    if !(0.0..=1.0).contains(&trace_ratio) {
        check.problem(
            "spec.telemetry.traceRatio",
            format!("{trace_ratio} is not a share"),
            "0 to 1",
        );
    }
    TelemetryConfig {
        otlp_endpoint: telemetry.otlp_endpoint,
        trace_ratio,
        log_format: match places.target {
            Target::Embedded { .. } => LogFormat::Text,
            Target::Kubernetes { .. } => LogFormat::Json,
        },
    }
}

// === where things are ===

struct Places<'a> {
    cluster_name: &'a str,
    target: &'a Target,
}

impl Places<'_> {
    /// In a pod the operator mounts each Secret by purpose; on a laptop the user lays files out by the Secret's name.
    fn credentials(&self, purpose: &str, secret_name: &str) -> PathBuf {
        match self.target {
            Target::Embedded { data_dir } => data_dir.join("secrets").join(secret_name),
            Target::Kubernetes { .. } => Path::new(SECRETS_DIR).join(purpose),
        }
    }

    fn provider(
        &self,
        field: &str,
        purpose: &str,
        provider: &ProviderSpec,
        check: &mut Check,
    ) -> ProviderConfig {
        if let Some(url) = &provider.base_url {
            check.url(&format!("{field}.baseUrl"), url, &["http", "https"]);
        }
        check.secret_name(&format!("{field}.secretName"), &provider.secret_name);
        ProviderConfig {
            base_url: provider.base_url.clone(),
            credentials_dir: Some(self.credentials(purpose, &provider.secret_name)),
        }
    }

    fn peers(&self) -> Option<Peers> {
        let Target::Kubernetes { namespace } = self.target else {
            return None;
        };
        let url = |role: Role, suffix: &str| {
            format!(
                "https://{}{suffix}.{namespace}.svc:{}",
                service_name(self.cluster_name, role),
                role.port()
            )
        };
        Some(Peers {
            auth: url(Role::Auth, ""),
            message: url(Role::Message, ""),
            message_headless: url(Role::Message, "-headless"),
            presence: url(Role::Presence, ""),
            media: url(Role::Media, ""),
            notification: url(Role::Notification, ""),
        })
    }

    fn tls(&self) -> Option<TlsConfig> {
        let Target::Kubernetes { namespace } = self.target else {
            return None;
        };
        let directory = Path::new(TLS_DIR);
        let name = |role| certificate_name(self.cluster_name, namespace, role);
        Some(TlsConfig {
            certificate_file: directory.join("tls.crt"),
            key_file: directory.join("tls.key"),
            trust_file: directory.join("ca.crt"),
            names: TlsNames {
                gateway: name(Role::Gateway),
                auth: name(Role::Auth),
                message: name(Role::Message),
                presence: name(Role::Presence),
                media: name(Role::Media),
                notification: name(Role::Notification),
            },
        })
    }

    fn keys(&self) -> KeysConfig {
        match self.target {
            Target::Embedded { data_dir } => {
                let keys = data_dir.join("keys");
                KeysConfig {
                    signing_key_file: keys.join("signing.pem"),
                    jwks_file: keys.join("jwks.json"),
                    internal_token_file: Some(keys.join("internal-token")),
                }
            }
            Target::Kubernetes { .. } => KeysConfig {
                signing_key_file: Path::new(SECRETS_DIR).join("jwt/signing.pem"),
                jwks_file: Path::new(JWKS_DIR).join("jwks.json"),
                internal_token_file: None,
            },
        }
    }
}

/// The DNS name in the certificate of `role`, which is also its Service's.
pub fn certificate_name(cluster_name: &str, namespace: &str, role: Role) -> String {
    format!("{}.{namespace}.svc", service_name(cluster_name, role))
}

/// The keyspace: as given, or from namespace and name. `__` between the two keeps `a-b`/`c` and `a`/`b-c` apart.
fn keyspace(
    namespace: &str,
    cluster_name: &str,
    given: Option<&str>,
    is_managed: bool,
    check: &mut Check,
) -> String {
    const FORM: &str = "a lower-case letter, then at most 47 lower-case letters, digits and _";
    let name = match given {
        Some(given) => given.to_owned(),
        None => format!(
            "carillon_{}__{}",
            namespace.replace('-', "_"),
            cluster_name.replace('-', "_")
        ),
    };
    let well_formed = name.len() <= 48
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !well_formed {
        let problem = match given {
            Some(given) => format!("{given:?} is not a keyspace name"),
            None => format!("must be given: its default {name:?} is too long"),
        };
        let field = match is_managed {
            true => "spec.scylla.managed.keyspace",
            false => "spec.scylla.external.keyspace",
        };
        check.problem(field, problem, FORM);
    }
    name
}

// === checks ===

/// Collects problems, so that a user sees all of them at once.
#[derive(Default)]
struct Check {
    problems: Vec<FieldProblem>,
}

impl Check {
    fn problem(
        &mut self,
        field: impl Into<String>,
        problem: impl Into<String>,
        allowed: impl Into<String>,
    ) {
        self.problems
            .push(FieldProblem::new(field, problem, allowed));
    }

    fn cluster_name(&mut self, name: &str) {
        let well_formed = name.len() <= MAX_NAME_LENGTH
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if !well_formed {
            self.problem(
                "metadata.name",
                format!("{name:?} can't name a ChatCluster: its Services would have no valid names"),
                format!("a lower-case letter, then lower-case letters, digits and -; at most {MAX_NAME_LENGTH} characters"),
            );
        }
    }

    fn seconds_between(
        &mut self,
        field: &str,
        text: Option<&str>,
        default: u64,
        (least, most, allowed): (u64, u64, &str),
    ) -> u64 {
        let Some(text) = text else { return default };
        match parse_duration_seconds(field, text) {
            Ok(seconds) if (least..=most).contains(&seconds) => seconds,
            Ok(_) => {
                self.problem(field, format!("{text:?} is out of range"), allowed);
                default
            }
            Err(problem) => {
                self.problems.push(problem);
                default
            }
        }
    }

    fn bytes_between(
        &mut self,
        field: &str,
        size: Option<&crate::ByteSize>,
        default: u64,
        (least, most, allowed): (u64, u64, &str),
    ) -> u64 {
        let Some(size) = size else { return default };
        let text = match size {
            crate::ByteSize::Number(number) => number.to_string(),
            crate::ByteSize::Text(text) => text.clone(),
        };
        match parse_bytes(field, &text) {
            Ok(bytes) if (least..=most).contains(&bytes) => bytes,
            Ok(_) => {
                self.problem(
                    field,
                    format!("{text} is out of range"),
                    format!("{allowed}, as {BYTES_FORM}"),
                );
                default
            }
            Err(problem) => {
                self.problems.push(problem);
                default
            }
        }
    }

    fn between(
        &mut self,
        field: &str,
        value: Option<u32>,
        default: u32,
        (least, most): (u32, u32),
    ) -> u32 {
        match value {
            None => default,
            Some(value) if (least..=most).contains(&value) => value,
            Some(value) => {
                self.problem(
                    field,
                    format!("{value} is out of range"),
                    format!("{least} to {most}"),
                );
                default
            }
        }
    }

    fn at_least_one(&mut self, field: &str, value: Option<u32>, default: u32) -> u32 {
        self.between(field, value, default, (1, u32::MAX))
    }

    /// Networks in CIDR notation, without bits after the prefix.
    fn networks(&mut self, field: &str, texts: &[String]) -> Vec<IpNet> {
        const FORM: &str =
            "a network in CIDR notation, e.g. 10.42.0.0/16, fd00::/8 or 192.0.2.7/32";
        let mut networks = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            let field = format!("{field}[{index}]");
            match text.parse::<IpNet>() {
                Ok(network) if network.prefix_len() == 0 => self.problem(
                    field,
                    format!("{text:?} holds every address: each client could invent its own"),
                    FORM,
                ),
                Ok(network) => networks.push(network.trunc()),
                Err(_) => self.problem(field, format!("{text:?} is not a network"), FORM),
            }
        }
        networks
    }

    fn scaling(&mut self, field: &str, replicas: Option<i32>, autoscaling: Option<&Autoscaling>) {
        const RANGE: std::ops::RangeInclusive<i32> = 1..=1000;
        if let Some(replicas) = replicas
            && !RANGE.contains(&replicas)
        {
            self.problem(
                format!("{field}.replicas"),
                format!("{replicas} is out of range"),
                "1 to 1000",
            );
        }
        let Some(autoscaling) = autoscaling else {
            return;
        };
        if replicas.is_some() {
            self.problem(
                format!("{field}.replicas"),
                format!("contradicts {field}.autoscaling"),
                "one of replicas and autoscaling",
            );
        }
        if !RANGE.contains(&autoscaling.max_replicas) {
            self.problem(
                format!("{field}.autoscaling.maxReplicas"),
                format!("{} is out of range", autoscaling.max_replicas),
                "1 to 1000",
            );
        }
        let least = autoscaling.min_replicas.unwrap_or(1);
        if least < 1 || least > autoscaling.max_replicas {
            self.problem(
                format!("{field}.autoscaling.minReplicas"),
                format!("{least} is out of range"),
                "1 to maxReplicas",
            );
        }
    }

    /// The API server checks these only when a pod template is written, which is half-way through a roll-out.
    fn resources(&mut self, field: &str, resources: Option<&ResourceRequirements>) {
        let Some(resources) = resources else { return };
        if resources
            .claims
            .as_ref()
            .is_some_and(|claims| !claims.is_empty())
        {
            self.problem(
                format!("{field}.claims"),
                "no role uses a claimed device",
                "requests and limits",
            );
        }
        let none = Default::default();
        let requests = resources.requests.as_ref().unwrap_or(&none);
        let limits = resources.limits.as_ref().unwrap_or(&none);
        for (kind, amounts) in [("requests", requests), ("limits", limits)] {
            for (name, amount) in amounts {
                let field = format!("{field}.{kind}.{name}");
                if !RESOURCES.contains(&name.as_str()) {
                    self.problem(field, "no role uses it", RESOURCES.join(", "));
                } else if parse_quantity(&amount.0).is_none() {
                    self.problem(
                        field,
                        format!("{:?} is not an amount", amount.0),
                        "a number, or one with a suffix, e.g. 500m, 1.5 or 512Mi",
                    );
                }
            }
        }
        for (name, limit) in limits {
            if let Some(request) = requests.get(name)
                && let (Some(request_amount), Some(limit_amount)) =
                    (parse_quantity(&request.0), parse_quantity(&limit.0))
                && request_amount > limit_amount
            {
                self.problem(
                    format!("{field}.requests.{name}"),
                    format!("{} is more than the limit", request.0),
                    format!("at most {field}.limits.{name}, {}", limit.0),
                );
            }
        }
    }

    fn url(&mut self, field: &str, url: &str, schemes: &[&str]) {
        let well_formed = url.split_once("://").is_some_and(|(scheme, rest)| {
            schemes.contains(&scheme)
                && !rest.is_empty()
                && !rest.starts_with('/')
                && !rest.contains(char::is_whitespace)
        });
        if !well_formed {
            let forms: Vec<String> = schemes
                .iter()
                .map(|scheme| format!("{scheme}://…"))
                .collect();
            self.problem(
                field,
                format!("{:?} is not such an address", without_credentials(url)),
                forms.join(", "),
            );
        }
    }

    fn no_password(&mut self, field: &str, url: &str) {
        if url.contains('@') {
            self.problem(
                field,
                "holds credentials, which everybody who may read the ChatCluster would see",
                "an address without them; credentials in a Secret (secretName)",
            );
        }
    }

    fn secret_name(&mut self, field: &str, name: &str) {
        if !is_dns_name(name) {
            self.problem(
                field,
                format!("{name:?} is not the name of a Secret"),
                DNS_NAME_FORM,
            );
        }
    }
}

/// What a role's pod may be given.
const RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];

const DNS_NAME_FORM: &str =
    "lower-case letters, digits, - and ., each part beginning and ending with a letter or digit";

const LABEL_FORM: &str =
    "at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit";
const LABEL_KEY_FORM: &str = "at most 63 letters, digits, -, _ and ., beginning and ending with a letter or digit; before them, if anything, a DNS name and /";

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => is_dns_name(domain) && is_label_part(name),
        None => is_label_part(key),
    }
}

/// What Kubernetes takes for the name in a label's key, and for its value unless that is empty.
fn is_label_part(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= 63
        && text.starts_with(is_plain)
        && text.ends_with(is_plain)
        && text.chars().all(|c| is_plain(c) || "-_.".contains(c))
}

/// What Kubernetes takes for the name of most objects (RFC 1123).
fn is_dns_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            label
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
                && !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

/// Problems go into conditions, events and logs: what may be a password must not.
fn without_credentials(url: &str) -> String {
    match url.rsplit_once('@') {
        Some((_, rest)) => format!("…@{rest}"),
        None => url.to_owned(),
    }
}

fn is_origin(origin: &str) -> bool {
    origin == "*"
        || origin.split_once("://").is_some_and(|(scheme, host)| {
            (scheme == "http" || scheme == "https")
                && !host.is_empty()
                && !host.contains(['/', '@', ' ', '?', '#'])
        })
}

fn is_host_port(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty()
            && !host.contains(char::is_whitespace)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{LimitAlgorithm, WithoutRedis};

    pub(crate) const DESIGN_SPEC: &str = "spec:
  version: 0.1.0
  gateway: {replicas: 2, host: chat.example.com, tls: {secretName: town-tls}, limits: {authPerMinute: 10, requestsPerMinute: 120}}
  auth: {replicas: 2, accessTokenTtl: 15m, refreshTokenTtl: 7d, otp: {twilio: {secretName: twilio}}}
  message: {autoscaling: {minReplicas: 3, maxReplicas: 12, target: {connections: 20000}}}
  presence: {replicas: 2}
  media: {replicas: 2, maxUploadBytes: 4Mi, store: {s3: {bucket: town, endpoint: https://s3.example.com, secretName: s3}}}
  notification: {replicas: 2, fcm: {secretName: fcm}, apns: {secretName: apns}, webPush: {secretName: vapid}}
  scylla:   {external: {contactPoints: [scylla:9042], datacenter: dc1, secretName: scylla}}
  redis:    {external: {url: redis://redis:6379}}
  rabbitmq: {external: {secretName: rabbit}}
  telemetry: {otlpEndpoint: http://otel-collector:4317, traceRatio: 0.1}
";

    fn spec(yaml: &str) -> ChatClusterSpec {
        serde_saphyr::from_str(yaml).unwrap()
    }

    fn design() -> ChatClusterSpec {
        crate::parse_chat_cluster(&format!(
            "apiVersion: carillon.chat/v1alpha1\nkind: ChatCluster\nmetadata: {{name: town}}\n{DESIGN_SPEC}"
        ))
        .unwrap()
        .spec
    }

    fn embedded() -> Target {
        Target::Embedded {
            data_dir: PathBuf::from("/data"),
        }
    }

    fn kubernetes() -> Target {
        Target::Kubernetes {
            namespace: "chat".to_owned(),
        }
    }

    fn problem_fields(spec: &ChatClusterSpec, target: Target) -> Vec<String> {
        validate_spec("town", spec, &target)
            .into_iter()
            .map(|problem| problem.field)
            .collect()
    }

    #[test]
    fn labels_are_those_that_kubernetes_takes() {
        for good in ["release", "a.example.com/x_Y.9", "9"] {
            assert!(is_label_key(good), "{good}");
        }
        for bad in ["", "-a", "a b", "/a", "A/b", "a/b/c", "a/"] {
            assert!(!is_label_key(bad), "{bad}");
        }
        let long = "a".repeat(63);
        assert!(is_label_part(&long) && !is_label_part(&format!("{long}a")));
        let yaml = "monitoring: {podMonitor: {labels: {release: 'my prometheus', of: ''}}, prometheusRule: {labels: {'a b': c}}, dashboards: {labels: {grafana: '-'}}}";
        let spec: ChatClusterSpec = serde_saphyr::from_str(yaml).unwrap();
        let mut check = Check::default();
        monitoring(&spec, &mut check);
        let fields: Vec<String> = check
            .problems
            .into_iter()
            .map(|found| found.field)
            .collect();
        assert_eq!(
            fields,
            [
                "spec.monitoring.podMonitor.labels.release",
                "spec.monitoring.prometheusRule.labels",
                "spec.monitoring.dashboards.labels.grafana",
            ]
        );
    }

    #[test]
    fn the_design_example_for_kubernetes() {
        insta::assert_snapshot!(
            platform_config("town", &design(), kubernetes())
                .unwrap()
                .to_yaml()
        );
    }

    #[test]
    fn the_design_example_embedded() {
        insta::assert_snapshot!(
            platform_config("town", &design(), embedded())
                .unwrap()
                .to_yaml()
        );
    }

    #[test]
    fn an_empty_spec_embedded_takes_the_defaults() {
        let config = platform_config("town", &ChatClusterSpec::default(), embedded()).unwrap();
        insta::assert_snapshot!(config.to_yaml());
    }

    #[test]
    fn the_yaml_is_read_back_equal_and_refuses_unknown_fields() {
        for target in [embedded(), kubernetes()] {
            let config = platform_config("town", &design(), target).unwrap();
            let yaml = config.to_yaml();
            assert_eq!(PlatformConfig::from_yaml(&yaml).unwrap(), config);
            let error = PlatformConfig::from_yaml(&format!("{yaml}\nextra: 1\n")).unwrap_err();
            assert!(error.to_string().contains("extra"), "{error}");
        }
    }

    /// EDGE-03: written and read back as networks.
    #[test]
    fn trusted_proxies_reach_the_gateway() {
        let spec = spec("{gateway: {trustedProxies: [10.42.7.0/16, 'fd00::/8']}}");
        let config = platform_config("town", &spec, embedded()).unwrap();
        let read = PlatformConfig::from_yaml(&config.to_yaml()).unwrap();
        let proxies = read.gateway.trusted_proxies.iter();
        let proxies: Vec<String> = proxies.map(ToString::to_string).collect();
        assert_eq!(proxies, ["10.42.0.0/16", "fd00::/8"]);
    }

    /// EDGE-03: how limits count, and what without Redis; a person has half of what an address has.
    #[test]
    fn limits_reach_the_gateway() {
        let limits = |yaml: &str| {
            let spec = spec(&format!("{{gateway: {{limits: {yaml}}}}}"));
            let config = platform_config("town", &spec, embedded()).unwrap();
            PlatformConfig::from_yaml(&config.to_yaml())
                .unwrap()
                .gateway
        };
        let given =
            limits("{userRequestsPerMinute: 7, algorithm: slidingWindow, withoutRedis: closed}");
        assert_eq!(given.user_requests_per_minute, 7);
        assert_eq!(given.limit_algorithm, LimitAlgorithm::SlidingWindow);
        assert_eq!(given.limits_without_redis, WithoutRedis::Closed);
        assert_eq!(limits("{}").user_requests_per_minute, 60);
        assert_eq!(limits("{}").limits_without_redis, WithoutRedis::Open);
        assert_eq!(limits("{requestsPerMinute: 1}").user_requests_per_minute, 1);
    }

    #[test]
    fn an_empty_spec_in_kubernetes_names_what_is_missing() {
        assert_eq!(
            problem_fields(&ChatClusterSpec::default(), kubernetes()),
            ["spec.media.store"]
        );
    }

    /// Each line: a spec that contradicts itself or makes no sense, and the fields that must be named.
    #[test]
    fn bad_specs_name_their_fields() {
        for (yaml, fields) in [
            ("{version: 9.9.9}", vec!["spec.version"]),
            (
                "{message: {replicas: 2, autoscaling: {maxReplicas: 4}}}",
                vec!["spec.message.replicas"],
            ),
            (
                "{gateway: {replicas: 2, autoscaling: {minReplicas: 5, maxReplicas: 4}}}",
                vec![
                    "spec.gateway.replicas",
                    "spec.gateway.autoscaling.minReplicas",
                ],
            ),
            (
                "{gateway: {tls: {secretName: a}}}",
                vec!["spec.gateway.tls"],
            ),
            ("{gateway: {replicas: 0}}", vec!["spec.gateway.replicas"]),
            ("{gateway: {host: a..b}}", vec!["spec.gateway.host"]),
            ("{gateway: {host: -a.b}}", vec!["spec.gateway.host"]),
            ("{gateway: {host: 192.0.2.7}}", vec!["spec.gateway.host"]),
            (
                "{gateway: {ingressClassName: 'a b'}}",
                vec!["spec.gateway.ingressClassName"],
            ),
            (
                "{gateway: {resources: {requests: {memory: 2Gi, cpu: 1}, limits: {memory: 1Gi, cpu: '1'}}}}",
                vec!["spec.gateway.resources.requests.memory"],
            ),
            (
                "{auth: {resources: {limits: {memory: 12Q}}}, message: {resources: {requests: {cpu: -1}}}}",
                vec![
                    "spec.auth.resources.limits.memory",
                    "spec.message.resources.requests.cpu",
                ],
            ),
            (
                "{presence: {resources: {claims: [{name: gpu}]}}, media: {resources: {limits: {disk: 1Gi}}}, notification: {resources: {requests: {cpu: ''}}}}",
                vec![
                    "spec.presence.resources.claims",
                    "spec.media.resources.limits.disk",
                    "spec.notification.resources.requests.cpu",
                ],
            ),
            (
                "{gateway: {maxFrameBytes: 2Mi}}",
                vec!["spec.gateway.maxFrameBytes"],
            ),
            (
                "{gateway: {maxFrameBytes: 1000000000000}}",
                vec!["spec.gateway.maxFrameBytes"],
            ),
            (
                "{gateway: {heartbeat: 30s, deadAfter: 30s}}",
                vec!["spec.gateway.deadAfter"],
            ),
            (
                "{gateway: {allowedOrigins: ['https://a.example', 'a.example', 'https://a/b']}}",
                vec![
                    "spec.gateway.allowedOrigins[1]",
                    "spec.gateway.allowedOrigins[2]",
                ],
            ),
            (
                "{gateway: {trustedProxies: [10.0.0.0/8, 10.0.0.1, fd00::/8, proxy, 0.0.0.0/0]}}",
                vec![
                    "spec.gateway.trustedProxies[1]",
                    "spec.gateway.trustedProxies[3]",
                    "spec.gateway.trustedProxies[4]",
                ],
            ),
            (
                "{media: {maxUploadBytes: 65Mi}}",
                vec!["spec.media.maxUploadBytes"],
            ),
            (
                "{gateway: {limits: {authPerMinute: 0}}}",
                vec!["spec.gateway.limits.authPerMinute"],
            ),
            (
                "{gateway: {limits: {userRequestsPerMinute: 0}}}",
                vec!["spec.gateway.limits.userRequestsPerMinute"],
            ),
            (
                "{auth: {accessTokenTtl: 15 minutes}}",
                vec!["spec.auth.accessTokenTtl"],
            ),
            (
                "{auth: {accessTokenTtl: 1h, refreshTokenTtl: 1h}}",
                vec!["spec.auth.refreshTokenTtl"],
            ),
            (
                "{auth: {accessTokenTtl: 5s}}",
                vec!["spec.auth.accessTokenTtl"],
            ),
            (
                "{auth: {devMode: true, otp: {twilio: {secretName: t}}}}",
                vec!["spec.auth.devMode"],
            ),
            (
                "{mail: {host: smtp.example.com, from: nobody}}",
                vec!["spec.mail.from", "spec.mail.publicUrl"],
            ),
            (
                "{mail: {host: 'smtp://h', port: 0, from: a@b.c, security: none, secretName: s, publicUrl: h}}",
                vec![
                    "spec.mail.host",
                    "spec.mail.port",
                    "spec.mail.security",
                    "spec.mail.publicUrl",
                ],
            ),
            (
                "{auth: {argon2: {memoryKib: 1}}}",
                vec!["spec.auth.argon2.memoryKib"],
            ),
            (
                "{media: {maxUploadBytes: 4MB}}",
                vec!["spec.media.maxUploadBytes"],
            ),
            ("{media: {store: {}}}", vec!["spec.media.store"]),
            (
                "{media: {store: {directory: {}, s3: {bucket: b, endpoint: 'https://s', secretName: s}}}}",
                vec!["spec.media.store"],
            ),
            (
                "{media: {store: {s3: {bucket: b, endpoint: 's3.example.com', secretName: S3}}}}",
                vec![
                    "spec.media.store.s3.endpoint",
                    "spec.media.store.s3.secretName",
                ],
            ),
            (
                "{scylla: {external: {contactPoints: [], datacenter: ''}}}",
                vec![
                    "spec.scylla.external.contactPoints",
                    "spec.scylla.external.datacenter",
                ],
            ),
            (
                "{scylla: {external: {contactPoints: [scylla], datacenter: d}}}",
                vec!["spec.scylla.external.contactPoints[0]"],
            ),
            (
                "{redis: {external: {url: 'redis://:secret@redis:6379'}}}",
                vec!["spec.redis.external.url"],
            ),
            ("{rabbitmq: {external: {}}}", vec!["spec.rabbitmq.external"]),
            (
                "{telemetry: {traceRatio: 1.5, otlpEndpoint: 'collector:4317'}}",
                vec!["spec.telemetry.otlpEndpoint", "spec.telemetry.traceRatio"],
            ),
        ] {
            assert_eq!(problem_fields(&spec(yaml), embedded()), fields, "{yaml}");
        }
    }

    #[test]
    fn resources_that_a_pod_can_have_are_taken() {
        for yaml in [
            "{gateway: {host: chat.example.com, resources: {requests: {cpu: 500m, memory: 512Mi}, limits: {cpu: 1, memory: 1e9}}}}",
            "{gateway: {host: localhost, ingressClassName: nginx}, auth: {resources: {limits: {ephemeral-storage: 0.5Ei}}}}",
            "{message: {resources: {}}}",
        ] {
            assert_eq!(problem_fields(&spec(yaml), embedded()), [""; 0], "{yaml}");
        }
    }

    #[test]
    fn a_directory_in_kubernetes_says_what_it_is_on() {
        let with_store = |media: &str| {
            let mut spec = design();
            spec.media = Some(serde_saphyr::from_str(media).unwrap());
            problem_fields(&spec, kubernetes())
        };
        assert_eq!(
            with_store("{store: {directory: {}}}"),
            ["spec.media.store.directory"]
        );
        assert_eq!(
            with_store("{store: {directory: {path: /x}}}"),
            ["spec.media.store.directory.path"]
        );
        assert_eq!(
            with_store("{store: {directory: {ephemeral: true}}}"),
            ["spec.media.store.directory.ephemeral"]
        );
        assert_eq!(
            with_store(
                "{replicas: 1, store: {directory: {ephemeral: true, persistentVolumeClaim: {claimName: a}}}}"
            ),
            ["spec.media.store.directory.ephemeral"]
        );
        assert!(with_store("{replicas: 1, store: {directory: {ephemeral: true}}}").is_empty());
        assert!(
            with_store("{store: {directory: {persistentVolumeClaim: {claimName: a}}}}").is_empty()
        );
    }

    #[test]
    fn a_problem_never_repeats_a_password() {
        for yaml in [
            "{redis: {external: {url: 'http://:hunter2@redis'}}}",
            "{rabbitmq: {external: {url: 'amqp://u:hunter2@r'}}}",
        ] {
            let text = crate::describe_problems(&validate_spec("town", &spec(yaml), &embedded()));
            assert!(!text.is_empty() && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_long_name_asks_for_a_keyspace() {
        let mut spec = design();
        let name = "a-very-long-name-for-a-chat-cluster-town";
        let fields = |spec: &ChatClusterSpec| -> Vec<String> {
            validate_spec(name, spec, &kubernetes())
                .into_iter()
                .map(|problem| problem.field)
                .collect()
        };
        fn external(spec: &mut ChatClusterSpec) -> &mut crate::ExternalScylla {
            spec.scylla.as_mut().unwrap().external.as_mut().unwrap()
        }
        assert_eq!(fields(&spec), ["spec.scylla.external.keyspace"]);
        external(&mut spec).keyspace = Some("town".to_owned());
        assert!(fields(&spec).is_empty());
        external(&mut spec).keyspace = Some("Town; DROP".to_owned());
        assert_eq!(fields(&spec), ["spec.scylla.external.keyspace"]);
    }

    #[test]
    fn a_name_that_services_cannot_have_is_refused() {
        for name in [
            "",
            "Town",
            "4ever",
            "town.example",
            "town-",
            "a-very-long-name-for-a-chat-cluster-town-x",
        ] {
            let problems = validate_spec(name, &ChatClusterSpec::default(), &embedded());
            assert_eq!(problems.len(), 1, "{name}: {problems:?}");
            assert_eq!(problems[0].field, "metadata.name");
        }
    }

    #[test]
    fn durations_and_sizes_reach_the_configuration() {
        let spec = spec(
            "{gateway: {maxFrameBytes: 128Ki, heartbeat: 10s, drain: 1m, port: 80}, auth: {accessTokenTtl: 5m, refreshTokenTtl: 30d, devMode: true}, media: {maxUploadBytes: 1048576}}",
        );
        let config = platform_config("town", &spec, embedded()).unwrap();
        assert_eq!(config.gateway.max_frame_bytes, 131_072);
        assert_eq!(
            (
                config.gateway.heartbeat_seconds,
                config.gateway.dead_after_seconds
            ),
            (10, 30)
        );
        assert_eq!(config.gateway.drain_seconds, 60);
        assert_eq!(config.gateway.http_port, 80);
        assert_eq!(
            (
                config.auth.access_ttl_seconds,
                config.auth.refresh_ttl_seconds
            ),
            (300, 2_592_000)
        );
        assert_eq!(config.auth.otp_provider, OtpProvider::Dev);
        assert_eq!(config.media.max_upload_bytes, 1_048_576);
    }
}
