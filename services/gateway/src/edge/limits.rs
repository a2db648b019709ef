//! Rate limits (RT-09, EDGE-03): a token bucket per key, in this process.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    net::IpAddr,
    num::NonZeroU32,
    time::Duration,
};

use carillon_domain::UserId;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    nanos::Nanos,
    state::{
        InMemoryState, NotKeyed, StateStore,
        keyed::{DashMapStateStore, ShrinkableKeyedStateStore},
    },
};

use crate::{metrics, options::GatewayOptions};

/// Above this many keys new keys share buckets until idle ones were forgotten: a stranger can't grow our memory. Whoever has a
/// bucket keeps it.
const MAX_KEYS: usize = 200_000;
/// Buckets that those share: enough that a few busy newcomers don't use up everybody's.
const SHARED: usize = 1024;

type Limiter<K> = RateLimiter<K, Buckets<K>, DefaultClock, StateInformationMiddleware>;

/// A bucket per key, up to a number of keys.
struct Buckets<K: Hash + Eq + Clone> {
    own: DashMapStateStore<K>,
    most: usize,
    shared: Box<[InMemoryState]>,
    /// Seeded at random: nobody can choose whom to share with.
    hasher: RandomState,
}

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(most: usize) -> Self {
        Self {
            own: DashMapStateStore::default(),
            most,
            shared: std::iter::repeat_with(InMemoryState::default)
                .take(SHARED)
                .collect(),
            hasher: RandomState::new(),
        }
    }
}

impl<K: Hash + Eq + Clone> StateStore for Buckets<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if self.own.contains_key(key) || self.own.len() < self.most {
            return self.own.measure_and_replace(key, f);
        }
        let place = self.hasher.hash_one(key) % self.shared.len() as u64;
        self.shared[place as usize].measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Buckets<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        self.own.retain_recent(drop_below);
    }

    fn shrink_to_fit(&self) {
        self.own.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.own.len()
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty()
    }
}

/// One limit.
pub struct Rate<K: Hash + Eq + Clone> {
    name: &'static str,
    /// `None`: no limit.
    limiter: Option<Limiter<K>>,
    clock: DefaultClock,
    window: Duration,
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
    /// `burst` at once, refilled evenly over `window`. A burst of 0 is no limit.
    fn new(name: &'static str, burst: u32, window: Duration) -> Self {
        Self::with_most(name, burst, window, MAX_KEYS)
    }

    fn with_most(name: &'static str, burst: u32, window: Duration, most: usize) -> Self {
        let quota = NonZeroU32::new(burst).and_then(|burst| {
            Quota::with_period(window / burst.get())?
                .allow_burst(burst)
                .into()
        });
        Self {
            name,
            limiter: quota.map(|quota| {
                let buckets = Buckets::new(most);
                RateLimiter::<K, _, _>::new(quota, buckets, DefaultClock::default())
                    .with_middleware::<StateInformationMiddleware>()
            }),
            clock: DefaultClock::default(),
            window,
        }
    }

    /// Takes one from the key's bucket. `None` when there is no limit.
    pub fn take(&self, key: &K) -> Result<Option<Allowance>, Refused> {
        let Some(limiter) = &self.limiter else {
            return Ok(None);
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
            auth: Rate::new("auth", options.auth_per_minute, minute),
            requests: Rate::new("requests", options.requests_per_minute, minute),
            messages: Rate::new("messages", burst, window),
            // Typing, reads, pings: cheaper than messages, but not free.
            frames: Rate::new("frames", burst.saturating_mul(5), window),
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
        let rate = Rate::new("test", 3, Duration::from_secs(3600));
        for left in [2, 1, 0] {
            assert_eq!(rate.take(&1u32).unwrap().unwrap().remaining, left);
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
        let rate = Rate::new("test", 0, Duration::from_secs(1));
        assert!((0..10_000).all(|_| rate.take(&1u32) == Ok(None)));
    }

    /// EDGE-03: strangers that fill the table take nothing from those who are in it, and the table stays as large as it may be.
    #[test]
    fn a_full_table_is_for_those_who_are_in_it() {
        let rate = Rate::with_most("test", 2, Duration::from_secs(3600), 10);
        assert_eq!(rate.take(&0u32).unwrap().unwrap().remaining, 1);
        let passed = (1..10_000).filter(|key| rate.take(key).is_ok()).count();
        assert!(passed <= 9 + 2 * SHARED, "newcomers share: {passed}");
        assert_eq!(rate.limiter.as_ref().unwrap().len(), 10);
        assert_eq!(rate.take(&0).unwrap().unwrap().remaining, 0);
        assert!(rate.take(&0).is_err());
    }
}
