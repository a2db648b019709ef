//! What the notification role can be told.

use std::time::Duration;

use url::Url;

use crate::{fcm::ServiceAccount, web_push::VapidKey};

/// What the notification role can be told. A provider that is `None` is not configured: its targets are refused.
#[derive(Clone, Debug)]
pub struct NotificationOptions {
    /// Web Push.
    pub web_push: Option<WebPushOptions>,
    /// Firebase Cloud Messaging.
    pub fcm: Option<FcmOptions>,
    /// Longest time for one request to a provider, from connecting to the last byte of the answer.
    pub request_timeout: Duration,
    /// The same for endpoints that strangers named: one that never answers holds a place of a job so long.
    pub strangers_timeout: Duration,
    /// Messages per minute that one person gets pushes for; further ones are dropped.
    pub pushes_per_user_and_minute: u64,
    /// Requests under way at once for one job.
    pub deliveries_at_once: usize,
}

impl Default for NotificationOptions {
    fn default() -> Self {
        Self {
            web_push: None,
            fcm: None,
            request_timeout: Duration::from_secs(10),
            strangers_timeout: Duration::from_secs(3),
            pushes_per_user_and_minute: 60,
            deliveries_at_once: 8,
        }
    }
}

/// Web Push (RFC 8030).
#[derive(Clone, Debug)]
pub struct WebPushOptions {
    /// A push service of one's own: endpoints under this URL are called even if they aren't `https` or not on a public address.
    /// Every other endpoint must be `https` and on a public address.
    pub base_url: Option<Url>,
    /// The application server's key (RFC 8292).
    pub vapid_key: VapidKey,
    /// Whom a push service may write to: a `mailto:` or `https:` URL.
    pub subject: String,
    /// How long a push service keeps a message for a device that isn't connected.
    pub ttl: Duration,
}

/// FCM HTTP v1.
#[derive(Clone, Debug)]
pub struct FcmOptions {
    /// `https://fcm.googleapis.com`, unless a gateway or test stands in for it.
    pub base_url: Url,
    /// The credentials.
    pub service_account: ServiceAccount,
}

impl FcmOptions {
    /// Google's own service.
    pub const BASE_URL: &'static str = "https://fcm.googleapis.com";
}

/// Options that can't be used. Never shows a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The VAPID key.
    #[error("the VAPID key is no P-256 private key: expected PKCS#8 PEM, or 32 bytes in base64url")]
    VapidKey,
    /// The VAPID subject.
    #[error("the VAPID subject must be a mailto: or https: URL")]
    VapidSubject,
    /// A URL.
    #[error("the base URL of {0} must be an http or https URL without a query")]
    BaseUrl(&'static str),
    /// The service account's JSON.
    #[error("the FCM service account is not the JSON file that Google gives")]
    ServiceAccount(#[source] serde_json::Error),
    /// The service account's key.
    #[error("the FCM service account's private key is no RSA key in PKCS#8 PEM")]
    ServiceAccountKey,
    /// The HTTP client.
    #[error("the HTTP client can't be made")]
    Client(#[source] reqwest::Error),
    /// TLS.
    #[error("TLS can't be set up")]
    Tls(#[source] rustls::Error),
}
