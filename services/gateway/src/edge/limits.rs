//! Rate limits (RT-09, EDGE-03): a token bucket per key, in this process.

use std::{hash::Hash, net::IpAddr, num::NonZeroU32, time::Duration};

use carillon_domain::UserId;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DashMapStateStore,
};

use crate::{metrics, options::GatewayOptions};

/// Above this many keys new keys share one bucket until idle ones were forgotten: a stranger can't grow our memory.
const MAX_KEYS: usize = 200_000;

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, DefaultClock, StateInformationMiddleware>;

/// One limit.
pub struct Rate<K: Hash + Eq + Clone> {
    name: &'static str,
    /// `None`: no limit.
    limiter: Option<Limiter<K>>,
    clock: DefaultClock,
    window: Duration,
    overflow: K,
}

/// What is left of a limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    pub limit: u32,
    pub remaining: u32,
    /// Until the bucket is full again.
    pub reset: Duration,
}

/// The limit is used up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    pub limit: u32,
    pub retry_after: Duration,
}

impl<K: Hash + Eq + Clone> Rate<K> {
    /// `burst` at once, refilled evenly over `window`. A burst of 0 is no limit. `overflow` is the key that new keys share when
    /// there are too many.
    fn new(name: &'static str, burst: u32, window: Duration, overflow: K) -> Self {
        let quota = NonZeroU32::new(burst).and_then(|burst| {
            Quota::with_period(window / burst.get())?
                .allow_burst(burst)
                .into()
        });
        Self {
            name,
            limiter: quota.map(|quota| {
                RateLimiter::dashmap(quota).with_middleware::<StateInformationMiddleware>()
            }),
            clock: DefaultClock::default(),
            window,
            overflow,
        }
    }

    /// Takes one from the key's bucket. `None` when there is no limit.
    pub fn take(&self, key: &K) -> Result<Option<Allowance>, Refused> {
        let Some(limiter) = &self.limiter else {
            return Ok(None);
        };
        let key = if limiter.len() >= MAX_KEYS {
            &self.overflow
        } else {
            key
        };
        match limiter.check_key(key) {
            Ok(snapshot) => {
                let limit = snapshot.quota().burst_size().get();
                let remaining = snapshot.remaining_burst_capacity();
                Ok(Some(Allowance {
                    limit,
                    remaining,
                    reset: self.window / limit * (limit - remaining),
                }))
            }
            Err(refused) => {
                metrics::RATE_LIMITED.with_label_values(&[self.name]).inc();
                Err(Refused {
                    limit: refused.quota().burst_size().get(),
                    retry_after: refused.wait_time_from(self.clock.now()),
                })
            }
        }
    }

    fn forget_idle(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

/// Every limit of the gateway.
pub struct Limits {
    /// Requests that check secrets, by address.
    pub auth: Rate<IpAddr>,
    /// Other requests, by address.
    pub requests: Rate<IpAddr>,
    /// Messages on sockets, by user (RT-09).
    pub messages: Rate<UserId>,
    /// Other frames on sockets, by user.
    pub frames: Rate<UserId>,
}

impl Limits {
    pub fn new(options: &GatewayOptions) -> Self {
        let minute = Duration::from_secs(60);
        let nobody = IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED);
        let no_user = UserId(uuid::Uuid::nil());
        let (per_second, burst) = (options.messages_per_second, options.message_burst);
        let (burst, window) = if per_second == 0 {
            (0, Duration::from_secs(1))
        } else {
            (
                burst,
                Duration::from_secs(1).mul_f64(f64::from(burst) / f64::from(per_second)),
            )
        };
        Self {
            auth: Rate::new("auth", options.auth_per_minute, minute, nobody),
            requests: Rate::new("requests", options.requests_per_minute, minute, nobody),
            messages: Rate::new("messages", burst, window, no_user),
            // Typing, reads, pings: cheaper than messages, but not free.
            frames: Rate::new("frames", burst.saturating_mul(5), window, no_user),
        }
    }
}

/// Drops full buckets of all limits; call it every few seconds.
pub fn forget_idle_clients(limits: &Limits) {
    limits.auth.forget_idle();
    limits.requests.forget_idle();
    limits.messages.forget_idle();
    limits.frames.forget_idle();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EDGE-03: the burst passes, then requests are refused with the time to wait; other keys aren't concerned.
    #[test]
    fn a_used_up_bucket_refuses_its_key_only() {
        let rate = Rate::new("test", 3, Duration::from_secs(3600), 0u32);
        for left in [2, 1, 0] {
            assert_eq!(rate.take(&1).unwrap().unwrap().remaining, left);
        }
        let refused = rate.take(&1).unwrap_err();
        assert_eq!(refused.limit, 3);
        assert!(
            refused.retry_after > Duration::from_secs(1000),
            "{refused:?}"
        );
        assert!(rate.take(&2).is_ok());
    }

    #[test]
    fn zero_is_no_limit() {
        let rate = Rate::new("test", 0, Duration::from_secs(1), 0u32);
        assert!((0..10_000).all(|_| rate.take(&1) == Ok(None)));
    }
}
