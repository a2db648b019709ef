//! How often one address may call what needs no credentials: gRPC's counterpart of the gateway's limit on logins (EDGE-03).

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
};

use carillon_domain::{Error, ErrorCode, Result};
use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};

/// Addresses that are remembered; beyond that all new ones share one bucket, until idle ones were forgotten.
const MAX_KEYS: usize = 100_000;
/// Idle addresses are forgotten after so many calls.
const FORGET_EVERY: u32 = 4096;

/// A token bucket per address.
pub(crate) struct Strangers {
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
    calls: AtomicU32,
}

impl Strangers {
    /// `None`, which is no limit, for 0.
    pub(crate) fn per_minute(calls: u32) -> Option<Self> {
        let quota = Quota::per_minute(NonZeroU32::new(calls)?);
        Some(Self {
            limiter: RateLimiter::keyed(quota),
            clock: DefaultClock::default(),
            calls: AtomicU32::new(0),
        })
    }

    /// Counts a call. `RateLimited` when the address has used up its own.
    pub(crate) fn admit(&self, address: IpAddr) -> Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.limiter.retain_recent();
        }
        let key = if self.limiter.len() >= MAX_KEYS {
            IpAddr::from([0; 16])
        } else {
            carillon_domain::network_of(address)
        };
        self.limiter.check_key(&key).map_err(|refused| {
            Error::new(
                ErrorCode::RateLimited,
                "too many requests from this address",
            )
            .retry_after(refused.wait_time_from(self.clock.now()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EDGE-03: an address has so many calls, an IPv6 customer's network counts as one, and nobody else is concerned.
    #[test]
    fn calls_are_counted_by_address() {
        let strangers = Strangers::per_minute(2).unwrap();
        let admit = |address: &str| strangers.admit(address.parse().unwrap());
        assert!(admit("2001:db8::1").is_ok() && admit("2001:db8::2").is_ok());
        let error = admit("2001:db8::3").unwrap_err();
        assert_eq!(error.code, ErrorCode::RateLimited);
        assert!(error.retry_after.is_some());
        assert!(admit("2001:db8:0:1::1").is_ok() && admit("192.0.2.1").is_ok());
        assert!(Strangers::per_minute(0).is_none());
    }
}
