//! Rate limits (RT-09, EDGE-03): which there are, and what a refusal says. Who counts is behind a port.

use std::{sync::Arc, time::Duration};

use carillon_domain::{
    Error, ErrorCode, Result, UserId,
    limit::{AUTH, Grant, Policy, Subject},
    ports::RateLimiter,
};

use super::ahead::Ahead;
use crate::{
    metrics,
    options::{GatewayOptions, Services},
};

/// Each reads all rooms of a person.
const EXPORTS_PER_DAY: u32 = 5;

/// One limit of requests.
pub struct Rate {
    /// `None`: no limit.
    policy: Option<Policy>,
    limiter: Arc<dyn RateLimiter>,
    /// What a refusal says.
    detail: &'static str,
}

/// What a request was told of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    pub policy: Policy,
    pub grant: Grant,
}

impl Rate {
    fn new(policy: Option<Policy>, limiter: &Arc<dyn RateLimiter>, detail: &'static str) -> Self {
        Self {
            policy,
            limiter: limiter.clone(),
            detail,
        }
    }

    /// Takes one: what there is to tell of the limit, `None` when there is none; and whether it was granted. `RateLimited`, or
    /// `Unavailable` when nothing may pass uncounted and it can't be counted.
    pub async fn take(&self, subject: Subject) -> (Option<Allowance>, Result<()>) {
        let Some(policy) = self.policy else {
            return (None, Ok(()));
        };
        let grant = match self.limiter.take_now(&policy, subject, 1) {
            Some(grant) => Ok(grant),
            None => self.limiter.take(&policy, subject, 1, 0).await,
        };
        match grant {
            Ok(grant) if grant.granted > 0 => (Some(Allowance { policy, grant }), Ok(())),
            Ok(grant) => {
                let refused = refused(&policy, self.detail, grant.retry_after);
                (Some(Allowance { policy, grant }), Err(refused))
            }
            Err(error) => (None, Err(error)),
        }
    }
}

/// Counts a refusal, and says when to try again.
pub fn refused(policy: &Policy, detail: &'static str, retry_after: Duration) -> Error {
    metrics::RATE_LIMITED
        .with_label_values(&[policy.name])
        .inc();
    Error::new(ErrorCode::RateLimited, detail).retry_after(retry_after)
}

/// Every limit of the gateway.
pub struct Limits {
    /// Requests that check secrets, by network. The gRPC edges count theirs under the same name.
    pub auth: Rate,
    /// Other requests, by network.
    pub requests: Rate,
    /// Requests with a token, by user.
    pub user_requests: Rate,
    /// Exports of one's own data, by user.
    pub exports: Rate,
    /// Messages on sockets, by user (RT-09).
    messages: Ahead,
    /// Other frames on sockets, by user, in this gateway.
    frames: Ahead,
}

impl Limits {
    pub fn new(options: &GatewayOptions, services: &Services) -> Self {
        let minute = Duration::from_secs(60);
        let policy =
            |name, limit, window| Policy::new(name, options.limit_algorithm, limit, window);
        let (per_second, burst) = (options.messages_per_second, options.message_burst);
        let (burst, window) = if per_second == 0 {
            (0, Duration::from_secs(1))
        } else {
            (
                burst,
                Duration::from_secs(1).mul_f64(f64::from(burst) / f64::from(per_second)),
            )
        };
        let shared = &services.limiter;
        let of_network = "too many requests from this address";
        let of_user = "too many requests, slow down";
        Self {
            auth: Rate::new(
                policy(AUTH, options.auth_per_minute, minute),
                shared,
                of_network,
            ),
            requests: Rate::new(
                policy("requests", options.requests_per_minute, minute),
                shared,
                of_network,
            ),
            user_requests: Rate::new(
                policy("user_requests", options.user_requests_per_minute, minute),
                shared,
                of_user,
            ),
            exports: Rate::new(
                policy("exports", EXPORTS_PER_DAY, minute * 60 * 24),
                shared,
                "too many exports, come back tomorrow",
            ),
            messages: Ahead::new(policy("messages", burst, window), shared.clone()),
            // Typing, reads, pings: cheaper than messages, but not free. Too cheap to count them together.
            frames: Ahead::new(
                policy("frames", burst.saturating_mul(5), window),
                services.own_limiter.clone(),
            ),
        }
    }

    /// Takes one for a frame on a socket. It never waits: see [`Ahead`]. The errors of [`Rate::take`].
    pub fn take_frame(&self, user: UserId, is_message: bool) -> Result<()> {
        let limit = if is_message {
            &self.messages
        } else {
            &self.frames
        };
        limit.take(Subject::User(user))
    }
}
