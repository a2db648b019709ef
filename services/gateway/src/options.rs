//! What a gateway is made from.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    Clock,
    limit::Algorithm,
    ports::{Bus, Probe, RateLimiter},
    services::{
        AccountService, AuthService, MediaService, MessageService, NotificationService,
        PeopleService, PresenceService, TokenVerifier,
    },
};
use ipnet::IpNet;

/// The largest frame that may be configured (RT-07).
const MAX_FRAME_CAP: usize = 1024 * 1024;

/// Limits and times of a gateway. [`GatewayOptions::default`] is safe for a public host.
#[derive(Clone)]
pub struct GatewayOptions {
    /// Origins of other hosts whose pages may call the API and open sockets, such as `https://app.example.com`. `*` allows all.
    pub allowed_origins: Vec<String>,
    /// Largest frame or message that a socket accepts, in bytes; at most 1 MiB.
    pub max_frame_bytes: usize,
    /// Largest JSON body, in bytes.
    pub max_body_bytes: usize,
    /// Largest uploaded file, in bytes.
    pub max_upload_bytes: usize,
    /// Bytes of uploads in memory at once; further ones are refused with a time to try again. One user has at most a quarter.
    pub upload_bytes_at_once: usize,
    /// The same for downloads, which are read piece by piece as the client takes them.
    pub download_bytes_at_once: usize,
    /// How often the server pings a socket.
    pub heartbeat: Duration,
    /// A socket without any frame for this long is dead.
    pub dead_after: Duration,
    /// Frames waiting for one socket before it counts as too slow; eight times as many while its connection takes what it is given.
    pub send_buffer: usize,
    /// How long new requests are still answered when the gateway stops, so that whoever sends clients here can notice that it is
    /// not ready any more; at most a third of `drain`.
    pub lead: Duration,
    /// How long a stop takes, at most: `lead`, then over the rest sockets are told to resume elsewhere, and requests under way are
    /// waited for.
    pub drain: Duration,
    /// How long a socket may take to authenticate by its first message.
    pub auth_timeout: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
    /// Requests per minute and address to endpoints that check secrets; 0 is no limit.
    pub auth_per_minute: u32,
    /// Requests per minute and address to all other endpoints; 0 is no limit.
    pub requests_per_minute: u32,
    /// Requests with a token per minute and user; 0 is no limit.
    pub user_requests_per_minute: u32,
    /// Messages (sends, edits, deletes) per second and user on sockets; 0 is no limit.
    pub messages_per_second: u32,
    /// How many messages may come at once.
    pub message_burst: u32,
    /// How the limits count.
    pub limit_algorithm: Algorithm,
    /// Requests of one socket under way at once; then the socket is not read until one ends.
    pub requests_in_flight: usize,
    /// Open connections, sockets among them, at most; more are closed at once.
    pub max_connections: usize,
    /// Networks of the proxies before the gateway: from these, and from nobody else, `X-Forwarded-For` and `X-Forwarded-Proto` are
    /// believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Clients reach the gateway by TLS: send HSTS. Behind a trusted proxy its `X-Forwarded-Proto` says so too.
    pub tls: bool,
    /// Name of the cookie that may carry an access token on a socket's handshake.
    pub cookie: String,
    /// How often presence leases of connected devices are renewed: a third of the presence role's lease.
    pub presence_renewal: Duration,
    /// How often the heads of followed rooms are compared with what was delivered, to find a lost last event.
    pub sweep: Duration,
    /// When blocks that are about to change are looked at again: later than the call that changes them may last, and sooner than
    /// leases of presence end.
    pub blocks_settle: Duration,
    /// What `/ready` asks. A dependency that doesn't answer within 2 s is down.
    pub probes: Vec<Arc<dyn Probe>>,
}

impl Default for GatewayOptions {
    fn default() -> Self {
        Self {
            allowed_origins: Vec::new(),
            max_frame_bytes: 64 * 1024,
            max_body_bytes: 256 * 1024,
            max_upload_bytes: 4 * 1024 * 1024,
            upload_bytes_at_once: 128 * 1024 * 1024,
            download_bytes_at_once: 64 * 1024 * 1024,
            heartbeat: Duration::from_secs(30),
            dead_after: Duration::from_secs(90),
            send_buffer: 256,
            lead: Duration::from_secs(3),
            drain: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            auth_per_minute: 10,
            requests_per_minute: 120,
            user_requests_per_minute: 60,
            messages_per_second: 10,
            message_burst: 20,
            limit_algorithm: Algorithm::default(),
            requests_in_flight: 32,
            max_connections: 200_000,
            trusted_proxies: Vec::new(),
            tls: false,
            cookie: "jwt".to_owned(),
            presence_renewal: Duration::from_secs(15),
            sweep: Duration::from_secs(15),
            blocks_settle: Duration::from_secs(10),
            probes: Vec::new(),
        }
    }
}

impl GatewayOptions {
    /// Brings values into the ranges that the gateway can work with.
    pub(crate) fn bounded(mut self) -> Self {
        self.max_frame_bytes = self.max_frame_bytes.clamp(1024, MAX_FRAME_CAP);
        self.send_buffer = self.send_buffer.clamp(8, 65_536);
        self.requests_in_flight = self.requests_in_flight.clamp(1, 1024);
        self.heartbeat = self.heartbeat.max(Duration::from_millis(50));
        self.dead_after = self.dead_after.max(self.heartbeat);
        self.lead = self.lead.min(self.drain / 3);
        self.message_burst = self.message_burst.max(1);
        self.sweep = self.sweep.max(Duration::from_millis(50));
        self.presence_renewal = self.presence_renewal.max(Duration::from_millis(50));
        self
    }
}

/// Everything the gateway calls.
#[derive(Clone)]
pub struct Services {
    /// Accounts and tokens.
    pub auth: Arc<dyn AuthService>,
    /// What people do with their own accounts.
    pub accounts: Arc<dyn AccountService>,
    /// Checks access tokens in this process.
    pub verifier: Arc<dyn TokenVerifier>,
    /// Contacts and blocks.
    pub people: Arc<dyn PeopleService>,
    /// Rooms and messages.
    pub messages: Arc<dyn MessageService>,
    /// Who is online.
    pub presence: Arc<dyn PresenceService>,
    /// Uploads.
    pub media: Arc<dyn MediaService>,
    /// Push targets.
    pub notifications: Arc<dyn NotificationService>,
    /// Signals of the services.
    pub bus: Arc<dyn Bus>,
    /// Counts for all gateways together.
    pub limiter: Arc<dyn RateLimiter>,
    /// Counts for this gateway alone.
    pub own_limiter: Arc<dyn RateLimiter>,
    /// The present.
    pub clock: Arc<dyn Clock>,
}
