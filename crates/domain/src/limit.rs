//! Rate limits: what a policy says, and the decision of each algorithm as a pure function of what was used before (EDGE-03).
//!
//! A limiter keeps one [`Usage`] per policy and subject, wherever it likes. Redis has its own copy of these decisions, in Lua; the
//! conformance suite holds both to the same promises.

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{UserId, network_of};

/// How many times its limit a subject can be overdrawn: it waits so many windows at most, whatever happened.
pub const MOST_OVERDRAWN: u32 = 10;

/// The name of the limit on tries of secrets by network: REST and gRPC count them together.
pub const AUTH: &str = "auth";

/// Sums of fractions of a permit are off by less than this.
const EPSILON: f64 = 1e-6;

/// How uses are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// A window begins with the first use and ends as a whole. Cheap and easy to explain; around its end twice the limit can pass.
    FixedWindow,
    /// A counter for this window of the clock and one for the window before, which counts less the longer this one lasts. Unlike a
    /// log of all uses it needs the same memory for any limit; it supposes that the uses of the window before were spread evenly.
    SlidingWindow,
    /// As many permits as the limit, which come back one by one over the window.
    #[default]
    TokenBucket,
}

impl Algorithm {
    /// Each of them.
    pub const ALL: [Self; 3] = [Self::FixedWindow, Self::SlidingWindow, Self::TokenBucket];
}

/// So many within so long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Tells policies apart: each counts by itself. Uses of one name by different processes are counted together.
    pub name: &'static str,
    /// How uses are counted.
    pub algorithm: Algorithm,
    /// Uses that may come at once.
    pub limit: NonZeroU32,
    /// Over this time as many come back.
    pub window: Duration,
}

impl Policy {
    /// `None`, which is no limit, for a limit of 0.
    pub fn new(
        name: &'static str,
        algorithm: Algorithm,
        limit: u32,
        window: Duration,
    ) -> Option<Self> {
        Some(Self {
            name,
            algorithm,
            limit: NonZeroU32::new(limit)?,
            window,
        })
    }
}

/// Whose uses are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// A client's network: see [`Subject::at`].
    Network(IpAddr),
    /// A person, over all devices.
    User(UserId),
}

impl Subject {
    /// What counts as one client: an IPv6 customer has a whole /64.
    pub fn at(address: IpAddr) -> Self {
        Self::Network(network_of(address))
    }
}

/// The answer of a limiter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grant {
    /// Permits granted: as many as were wanted, or as there were.
    pub granted: u32,
    /// The policy's limit.
    pub limit: u32,
    /// Permits left.
    pub remaining: u32,
    /// Until everything is there again.
    pub reset: Duration,
    /// Until there is one more; zero while something remains.
    pub retry_after: Duration,
}

/// What was used before. The default is nothing.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    /// When the numbers were right, or when the window began; microseconds of the limiter's clock.
    at: u64,
    /// Permits in use: of the bucket, or of this window.
    used: f64,
    /// Those of the window before.
    before: f64,
}

impl Usage {
    /// Books `owed` whatever is left, then grants up to `wanted`. `now` is in microseconds of a clock that begins anywhere.
    pub fn take(&mut self, policy: &Policy, now: u64, wanted: u32, owed: u32) -> Grant {
        self.advance(policy, now);
        let limit = f64::from(policy.limit.get());
        let most = (limit * f64::from(MOST_OVERDRAWN)).max(self.used);
        self.used = (self.used + f64::from(owed)).min(most);
        let free = limit - self.weighed(policy, now);
        let granted = f64::from(wanted).min((free + EPSILON).floor()).max(0.0);
        self.used += granted;
        let remaining = (free - granted + EPSILON).floor().max(0.0);
        let retry_after = if remaining >= 1.0 {
            0.0
        } else {
            self.until_one_is_free(policy, now)
        };
        Grant {
            granted: granted as u32,
            limit: policy.limit.get(),
            remaining: remaining as u32,
            reset: microseconds(self.until_all_are_free(policy, now)),
            retry_after: microseconds(retry_after),
        }
    }

    /// Whether forgetting it changes nothing.
    pub fn is_nothing(&self, policy: &Policy, now: u64) -> bool {
        let mut usage = *self;
        usage.advance(policy, now);
        usage.used <= 0.0 && usage.before <= 0.0
    }

    fn advance(&mut self, policy: &Policy, now: u64) {
        let window = window_of(policy);
        match policy.algorithm {
            Algorithm::FixedWindow => {
                // A clock that went back begins a new one, too.
                if self.used == 0.0 || now < self.at || now - self.at >= window {
                    (self.at, self.used) = (now, 0.0);
                }
            }
            Algorithm::SlidingWindow => {
                let began = now - now % window;
                if began != self.at {
                    self.before = if began == self.at + window {
                        self.used
                    } else {
                        0.0
                    };
                    (self.at, self.used) = (began, 0.0);
                }
            }
            Algorithm::TokenBucket => {
                let back = now.saturating_sub(self.at) as f64 * rate_of(policy);
                (self.at, self.used) = (now, (self.used - back).max(0.0));
            }
        }
    }

    fn weighed(&self, policy: &Policy, now: u64) -> f64 {
        match policy.algorithm {
            Algorithm::SlidingWindow => {
                let gone = (now - self.at) as f64 / window_of(policy) as f64;
                self.used + self.before * (1.0 - gone)
            }
            Algorithm::FixedWindow | Algorithm::TokenBucket => self.used,
        }
    }

    fn until_one_is_free(&self, policy: &Policy, now: u64) -> f64 {
        let window = window_of(policy) as f64;
        let gone = (now - self.at) as f64;
        let room = f64::from(policy.limit.get()) - 1.0;
        match policy.algorithm {
            Algorithm::FixedWindow => window - gone,
            Algorithm::SlidingWindow if self.used <= room => {
                window * (1.0 - (room - self.used) / self.before) - gone
            }
            Algorithm::SlidingWindow => {
                // In the next window, for which this one is the one before.
                window - gone + window * (1.0 - room / self.used)
            }
            Algorithm::TokenBucket => (self.used - room) / rate_of(policy),
        }
    }

    fn until_all_are_free(&self, policy: &Policy, now: u64) -> f64 {
        let window = window_of(policy) as f64;
        let left = window - (now - self.at) as f64;
        match policy.algorithm {
            Algorithm::TokenBucket => self.used / rate_of(policy),
            _ if self.used <= 0.0 && self.before <= 0.0 => 0.0,
            Algorithm::SlidingWindow if self.used > 0.0 => left + window,
            Algorithm::FixedWindow | Algorithm::SlidingWindow => left,
        }
    }
}

/// Microseconds, at least one.
fn window_of(policy: &Policy) -> u64 {
    u64::try_from(policy.window.as_micros())
        .unwrap_or(u64::MAX)
        .max(1)
}

/// Permits that come back in a microsecond.
fn rate_of(policy: &Policy) -> f64 {
    f64::from(policy.limit.get()) / window_of(policy) as f64
}

fn microseconds(number: f64) -> Duration {
    Duration::from_micros(number.max(0.0).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn policy(algorithm: Algorithm, limit: u32, window: Duration) -> Policy {
        Policy::new("test", algorithm, limit, window).unwrap()
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let minute = Duration::from_secs(60);
        assert_eq!(Policy::new("test", Algorithm::default(), 0, minute), None);
    }

    /// EDGE-03: at once as many as the limit, and then none.
    #[test]
    fn each_algorithm_has_its_limit() {
        for algorithm in Algorithm::ALL {
            let policy = policy(algorithm, 3, Duration::from_secs(60));
            let mut usage = Usage::default();
            let now = 600 * SECOND;
            for left in [2, 1, 0] {
                let grant = usage.take(&policy, now, 1, 0);
                assert_eq!((grant.granted, grant.remaining), (1, left), "{algorithm:?}");
            }
            let grant = usage.take(&policy, now, 1, 0);
            assert_eq!((grant.granted, grant.limit), (0, 3), "{algorithm:?}");
            assert!(!grant.retry_after.is_zero() && grant.retry_after <= grant.reset);
        }
    }

    /// EDGE-03: what each of them is known for, minute by minute.
    #[test]
    fn the_algorithms_differ_in_what_comes_back() {
        let granted = |algorithm, at: u64| {
            let policy = policy(algorithm, 60, Duration::from_secs(60));
            let mut usage = Usage::default();
            assert_eq!(usage.take(&policy, 90 * SECOND, 60, 0).granted, 60);
            usage.take(&policy, at * SECOND, 60, 0).granted
        };
        // The window of its own ends after a minute, as a whole.
        assert_eq!(granted(Algorithm::FixedWindow, 149), 0);
        assert_eq!(granted(Algorithm::FixedWindow, 150), 60);
        // The clock's window ends at 120 s, and counts for less and less until 180 s.
        assert_eq!(granted(Algorithm::SlidingWindow, 119), 0);
        assert_eq!(granted(Algorithm::SlidingWindow, 150), 30);
        assert_eq!(granted(Algorithm::SlidingWindow, 180), 60);
        // One a second.
        assert_eq!(granted(Algorithm::TokenBucket, 91), 1);
        assert_eq!(granted(Algorithm::TokenBucket, 120), 30);
        assert_eq!(granted(Algorithm::TokenBucket, 150), 60);
    }

    /// RT-09: what was let through without asking is missing later, up to a bound.
    #[test]
    fn what_is_owed_is_booked() {
        let policy = policy(Algorithm::TokenBucket, 10, Duration::from_secs(1));
        let mut usage = Usage::default();
        let grant = usage.take(&policy, 0, 5, 30);
        assert_eq!((grant.granted, grant.remaining), (0, 0));
        assert_eq!(grant.retry_after, Duration::from_millis(2100));
        let grant = usage.take(&policy, 0, 0, 1_000_000);
        assert_eq!(grant.reset, policy.window * MOST_OVERDRAWN);
        // No further than that, also by and by.
        assert_eq!(usage.take(&policy, 0, 0, 1).reset, grant.reset);
    }

    fn any_algorithm() -> impl Strategy<Value = Algorithm> {
        prop::sample::select(Algorithm::ALL.to_vec())
    }

    proptest! {
        /// EDGE-03: who waits as long as was said is let in, and nobody before.
        #[test]
        fn the_time_to_wait_is_right(
            algorithm in any_algorithm(),
            limit in 1u32..200,
            window in 1_000u64..100_000_000,
            began in 0u64..1_000_000_000,
            takes in prop::collection::vec((0u64..20_000_000, 1u32..50, 0u32..30), 1..40),
        ) {
            let policy = policy(algorithm, limit, Duration::from_micros(window));
            let mut usage = Usage::default();
            let mut now = began;
            for (pause, wanted, owed) in takes {
                now += pause;
                let grant = usage.take(&policy, now, wanted, owed);
                prop_assert!(grant.granted <= wanted && grant.remaining <= limit);
                prop_assert_eq!(grant.remaining == 0, !grant.retry_after.is_zero());
                let wait = grant.retry_after.as_micros() as u64;
                // A microsecond of rounding.
                let then = usage.clone().take(&policy, now + wait + 1, 1, 0);
                prop_assert_eq!(then.granted, 1);
                // And what a fraction of a permit below EPSILON takes.
                let early = 3 + window / 1_000_000;
                if wait > early {
                    let then = usage.clone().take(&policy, now + wait - early, 1, 0);
                    prop_assert_eq!(then.granted, 0);
                }
                let reset = grant.reset.as_micros() as u64 + 1;
                prop_assert!(usage.is_nothing(&policy, now + reset));
            }
        }

        /// EDGE-03: over any time a bucket grants its limit and what came back meanwhile, and no more.
        #[test]
        fn a_bucket_grants_no_more_than_it_gets(
            limit in 1u32..50,
            takes in prop::collection::vec((0u64..400_000, 1u32..30), 1..60),
        ) {
            let policy = policy(Algorithm::TokenBucket, limit, Duration::from_secs(1));
            let mut usage = Usage::default();
            let (mut now, mut granted) = (0, 0);
            for (pause, wanted) in takes {
                now += pause;
                granted += usage.take(&policy, now, wanted, 0).granted;
                let most = f64::from(limit) * (1.0 + now as f64 / SECOND as f64) + 0.001;
                prop_assert!(f64::from(granted) <= most);
            }
        }
    }
}
