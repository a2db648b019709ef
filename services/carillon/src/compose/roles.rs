//! One function per role: ports in, service out.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use carillon_adapters::{
    limits::{Fallback, MemoryLimiter},
    sealed::Sealed,
};
use carillon_auth::{
    Auth, AuthOptions, DevOtp, OtpProvider, PasswordOptions, People, SigningKeys, Verifier,
    VerifyingKeys,
};
use carillon_crds::{
    LimitAlgorithm, WithoutRedis,
    config::{self as crds, KeysConfig, PlatformConfig},
};
use carillon_domain::{
    Clock, ReplicaId,
    limit::{self, Algorithm, Policy},
    ports::{BlobStore, Probe, PushQueue, RateLimiter},
    services::{
        AccountService, AuthService, MediaService, MessageService, NotificationService,
        PeopleService, PresenceService, TokenVerifier,
    },
    time::SystemClock,
};
use carillon_gateway::{Gateway, GatewayOptions, Services};
use carillon_media::{MediaOptions, MediaRole};
use carillon_message::{MessageOptions, MessagePorts, MessageRole, Ownership};
use carillon_notification::{
    FcmOptions, NotificationOptions, NotificationPorts, NotificationRole, ServiceAccount, VapidKey,
    WebPushOptions,
};
use carillon_presence::{PresenceOptions, PresenceRole};
use carillon_rpc::{RoleNames, Tls};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    reach,
    stores::{FastStore, WideStore},
};
use crate::{config, failure::Failure};

/// How long a stopping process of a cluster still takes connections: until those who route to it know that it isn't ready.
pub const LEAD: Duration = Duration::from_secs(3);

fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock)
}

/// The private keys; only the auth role reads them.
pub fn signing_keys(keys: &KeysConfig) -> Result<SigningKeys, Failure> {
    let pem = config::read(&keys.signing_key_file, "the signing key")?;
    SigningKeys::from_pem([pem])
        .map_err(|error| Failure::usage(format!("{}: {error}", keys.signing_key_file.display())))
}

/// The process's certificate and whom it believes; `None` without `tls` in the configuration.
pub fn tls(config: &PlatformConfig) -> Result<Option<Tls>, Failure> {
    let Some(tls) = &config.tls else {
        return Ok(None);
    };
    let names = RoleNames {
        gateway: tls.names.gateway.clone(),
        auth: tls.names.auth.clone(),
        message: tls.names.message.clone(),
        presence: tls.names.presence.clone(),
        media: tls.names.media.clone(),
        notification: tls.names.notification.clone(),
    };
    let certificate = config::read(&tls.certificate_file, "the certificate")?;
    let key = config::read(&tls.key_file, "the certificate's key")?;
    let trust = config::read(&tls.trust_file, "the trusted authorities")?;
    Tls::new(&names, &certificate, &key, &trust)
        .map(Some)
        .map_err(|error| {
            let directory = tls
                .certificate_file
                .parent()
                .unwrap_or(&tls.certificate_file);
            Failure::usage(format!("{}: {error}", directory.display()))
        })
}

/// The public keys, as a JWK set that the operator wrote.
pub fn public_keys(jwks: &str) -> Result<VerifyingKeys, Failure> {
    VerifyingKeys::from_jwks(jwks)
        .map_err(|error| Failure::usage(format!("keys.jwksFile: {error}")))
}

/// Checks tokens in this process.
pub fn verifier(config: &PlatformConfig, keys: VerifyingKeys, fast: &FastStore) -> Arc<Verifier> {
    Arc::new(Verifier::new(
        keys,
        config.auth.issuer.clone(),
        fast.sessions.clone(),
        clock(),
    ))
}

/// Auth.
pub fn auth(
    config: &PlatformConfig,
    keys: SigningKeys,
    wide: &WideStore,
    fast: &FastStore,
) -> Result<Arc<Auth>, Failure> {
    let options = AuthOptions {
        issuer: config.auth.issuer.clone(),
        access_ttl: Duration::from_secs(config.auth.access_ttl_seconds),
        refresh_ttl: Duration::from_secs(config.auth.refresh_ttl_seconds),
        passwords: PasswordOptions {
            memory_kib: config.auth.argon2.memory_kib,
            iterations: config.auth.argon2.iterations,
            lanes: config.auth.argon2.parallelism,
            ..PasswordOptions::default()
        },
        ..AuthOptions::default()
    };
    let ports = carillon_auth::Ports {
        accounts: wide.accounts.clone(),
        people: wide.people.clone(),
        settings: wide.settings.clone(),
        people_index: wide.people_index.clone(),
        security: wide.security.clone(),
        person_keys: wide.person_keys.clone(),
        push_targets: wide.push_targets.clone(),
        sessions: fast.sessions.clone(),
        ephemeral: fast.ephemeral.clone(),
        bus: fast.bus.clone(),
        clock: clock(),
    };
    let otp: Option<Arc<dyn OtpProvider>> = match &config.auth.otp_provider {
        crds::OtpProvider::Dev => Some(Arc::new(DevOtp::new(config.auth.dev_mode)?)),
        crds::OtpProvider::Disabled => None,
        crds::OtpProvider::Twilio(provider) => Some(Arc::new(reach::twilio(provider)?)),
    };
    let auth = Auth::new(options, ports, keys, otp)
        .map_err(|error| Failure::usage(format!("spec.auth: {error}")))?;
    Ok(Arc::new(match &config.mail {
        Some(mail) => auth.with_mail(reach::mail(&config.cluster, mail)?),
        None => auth,
    }))
}

/// Goes on with erasures of accounts that were cut off, until the stop.
pub async fn erasing_accounts(auth: Arc<Auth>, stop: CancellationToken) -> Result<(), Infallible> {
    stop.run_until_cancelled(auth.erase_pending()).await;
    Ok(())
}

/// Removes uploads of people whose accounts are erased, until the stop.
pub fn erasing_uploads(
    media: Arc<MediaRole>,
    wide: &WideStore,
    stop: CancellationToken,
) -> impl Future<Output = Result<(), Infallible>> + Send + use<> {
    let keys = wide.person_keys.clone();
    async move {
        stop.run_until_cancelled(media.erase(keys.as_ref())).await;
        Ok(())
    }
}

/// Contacts, blocks and settings; a part of the auth role.
pub fn people(wide: &WideStore, fast: &FastStore) -> Arc<dyn PeopleService> {
    Arc::new(People::new(
        wide.people.clone(),
        wide.settings.clone(),
        wide.accounts.clone(),
        fast.bus.clone(),
        clock(),
    ))
}

/// Presence, with the work that it does by itself.
pub fn presence(config: &PlatformConfig, wide: &WideStore, fast: &FastStore) -> Arc<PresenceRole> {
    let options = PresenceOptions {
        lease: Duration::from_secs(config.presence.lease_seconds),
        ..PresenceOptions::default()
    };
    Arc::new(PresenceRole::new(
        fast.presence.clone(),
        wide.rooms.clone(),
        wide.people.clone(),
        wide.settings.clone(),
        fast.bus.clone(),
        clock(),
        options,
    ))
}

/// Message.
pub fn message(
    wide: &WideStore,
    fast: &FastStore,
    queue: Arc<dyn PushQueue>,
    presence: Arc<dyn PresenceService>,
    ownership: Arc<dyn Ownership>,
    replica: ReplicaId,
    peers: Option<Arc<dyn MessageService>>,
) -> Arc<dyn MessageService> {
    let ports = MessagePorts {
        log: Arc::new(Sealed::new(wide.log.clone(), wide.person_keys.clone())),
        rooms: wide.rooms.clone(),
        accounts: wide.accounts.clone(),
        people: wide.people.clone(),
        settings: wide.settings.clone(),
        bus: fast.bus.clone(),
        presence,
        push_queue: queue,
        clock: clock(),
        ownership,
        person_keys: wide.person_keys.clone(),
    };
    MessageRole::start(MessageOptions::default(), ports, replica, peers)
}

/// Media.
pub fn media(
    config: &PlatformConfig,
    wide: &WideStore,
    blobs: Arc<dyn BlobStore>,
    messages: Arc<dyn MessageService>,
) -> Arc<MediaRole> {
    let options = MediaOptions {
        max_upload_bytes: config.media.max_upload_bytes,
    };
    Arc::new(MediaRole::new(
        blobs,
        wide.media_index.clone(),
        messages,
        clock(),
        options,
    ))
}

/// Notification, with the work that it does by itself.
pub fn notification(
    config: &PlatformConfig,
    wide: &WideStore,
    fast: &FastStore,
    queue: Arc<dyn PushQueue>,
) -> Result<Arc<NotificationRole>, Failure> {
    let options = notification_options(config)?;
    let ports = NotificationPorts {
        targets: wide.push_targets.clone(),
        people: wide.people.clone(),
        settings: wide.settings.clone(),
        queue,
        ephemeral: fast.ephemeral.clone(),
        sessions: fast.sessions.clone(),
        clock: clock(),
    };
    let role = NotificationRole::new(ports, options)
        .map_err(|error| Failure::usage(format!("spec.notification: {error}")))?;
    Ok(Arc::new(role))
}

fn notification_options(config: &PlatformConfig) -> Result<NotificationOptions, Failure> {
    let bad = |error: carillon_notification::OptionsError| {
        Failure::usage(format!("spec.notification: {error}"))
    };
    let mut options = NotificationOptions::default();
    if let Some(provider) = &config.notification.web_push {
        let directory = credentials_dir(provider, "webPush")?;
        options.web_push = Some(WebPushOptions {
            base_url: provider
                .base_url
                .as_deref()
                .map(|url| base_url(url, "webPush"))
                .transpose()?,
            vapid_key: VapidKey::parse(&config::secret(directory, "private_key.pem")?)
                .map_err(bad)?,
            subject: config::secret(directory, "subject")?,
            ttl: Duration::from_secs(28 * 24 * 3600),
        });
    }
    if let Some(provider) = &config.notification.fcm {
        let directory = credentials_dir(provider, "fcm")?;
        options.fcm = Some(FcmOptions {
            base_url: base_url(
                provider.base_url.as_deref().unwrap_or(FcmOptions::BASE_URL),
                "fcm",
            )?,
            service_account: ServiceAccount::from_json(&config::secret(
                directory,
                "service_account.json",
            )?)
            .map_err(bad)?,
        });
    }
    if config.notification.apns.is_some() {
        return Err(Failure::usage(
            "spec.notification.apns: this release can't push through APNs; leave it out",
        ));
    }
    Ok(options)
}

fn credentials_dir<'a>(
    provider: &'a crds::ProviderConfig,
    name: &str,
) -> Result<&'a std::path::Path, Failure> {
    let missing = || Failure::usage(format!("spec.notification.{name}.secretName: missing"));
    provider.credentials_dir.as_deref().ok_or_else(missing)
}

fn base_url(text: &str, name: &str) -> Result<url::Url, Failure> {
    text.parse().map_err(|error| {
        Failure::usage(format!(
            "spec.notification.{name}.baseUrl: {text:?} is no URL: {error}"
        ))
    })
}

/// Who counts for rate limits: all processes together, as far as there are several.
#[derive(Clone)]
pub struct Limiters {
    pub shared: Arc<dyn RateLimiter>,
    /// Of this process alone.
    pub own: Arc<dyn RateLimiter>,
}

/// The limiters of this process.
pub fn limiters(config: &PlatformConfig, fast: &FastStore) -> Limiters {
    let own: Arc<dyn RateLimiter> = Arc::new(MemoryLimiter::new());
    let shared = match &fast.limiter {
        Some(limiter) => {
            let local = match config.gateway.limits_without_redis {
                WithoutRedis::Open => Some(own.clone()),
                WithoutRedis::Closed => None,
            };
            Arc::new(Fallback::new(limiter.clone(), local))
        }
        None => own.clone(),
    };
    Limiters { shared, own }
}

/// What an address may try without credentials, by REST and gRPC together.
pub fn strangers(config: &PlatformConfig) -> Option<Policy> {
    Policy::new(
        limit::AUTH,
        limit_algorithm(config),
        config.gateway.auth_per_minute,
        Duration::from_secs(60),
    )
}

fn limit_algorithm(config: &PlatformConfig) -> Algorithm {
    match config.gateway.limit_algorithm {
        LimitAlgorithm::FixedWindow => Algorithm::FixedWindow,
        LimitAlgorithm::SlidingWindow => Algorithm::SlidingWindow,
        LimitAlgorithm::TokenBucket => Algorithm::TokenBucket,
    }
}

/// What the gateway calls.
pub struct GatewayCalls {
    pub auth: Arc<dyn AuthService>,
    pub accounts: Arc<dyn AccountService>,
    pub verifier: Arc<dyn TokenVerifier>,
    pub people: Arc<dyn PeopleService>,
    pub messages: Arc<dyn MessageService>,
    pub presence: Arc<dyn PresenceService>,
    pub media: Arc<dyn MediaService>,
    pub notifications: Arc<dyn NotificationService>,
}

/// The gateway.
pub fn gateway(
    config: &PlatformConfig,
    fast: &FastStore,
    calls: GatewayCalls,
    limiters: Limiters,
    jwks: watch::Receiver<Bytes>,
    probes: Vec<Arc<dyn Probe>>,
) -> Gateway {
    let limits = &config.gateway;
    let options = GatewayOptions {
        allowed_origins: limits.allowed_origins.clone(),
        trusted_proxies: limits.trusted_proxies.clone(),
        max_frame_bytes: usize::try_from(limits.max_frame_bytes).unwrap_or(usize::MAX),
        max_body_bytes: usize::try_from(limits.max_body_bytes).unwrap_or(usize::MAX),
        max_upload_bytes: usize::try_from(config.media.max_upload_bytes).unwrap_or(usize::MAX),
        heartbeat: Duration::from_secs(limits.heartbeat_seconds),
        dead_after: Duration::from_secs(limits.dead_after_seconds),
        send_buffer: limits.send_buffer,
        // A process on its own has nobody before it who could send clients elsewhere.
        lead: match config.stores {
            crds::StoresConfig::External(_) => LEAD,
            crds::StoresConfig::Embedded { .. } => Duration::ZERO,
        },
        drain: Duration::from_secs(limits.drain_seconds),
        auth_per_minute: limits.auth_per_minute,
        requests_per_minute: limits.requests_per_minute,
        user_requests_per_minute: limits.user_requests_per_minute,
        messages_per_second: limits.messages_per_second,
        limit_algorithm: limit_algorithm(config),
        presence_renewal: Duration::from_secs((config.presence.lease_seconds / 3).max(1)),
        probes,
        ..GatewayOptions::default()
    };
    let services = Services {
        auth: calls.auth,
        accounts: calls.accounts,
        verifier: calls.verifier,
        people: calls.people,
        messages: calls.messages,
        presence: calls.presence,
        media: calls.media,
        notifications: calls.notifications,
        bus: fast.bus.clone(),
        limiter: limiters.shared,
        own_limiter: limiters.own,
        clock: clock(),
    };
    Gateway::new(options, services, jwks)
}
