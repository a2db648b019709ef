//! How often one address may call what needs no credentials: gRPC's counterpart of the gateway's limit on logins (EDGE-03).

use std::{net::IpAddr, sync::Arc};

use carillon_domain::{
    Error, ErrorCode, Result,
    limit::{Policy, Subject},
    ports::RateLimiter,
};

/// A limit by network.
#[derive(Clone)]
pub(crate) struct Strangers {
    pub(crate) policy: Policy,
    pub(crate) limiter: Arc<dyn RateLimiter>,
}

impl Strangers {
    /// Counts a call. `RateLimited` when the address has used up its own, `Unavailable` when the call can't be counted and may not
    /// pass uncounted.
    pub(crate) async fn admit(&self, address: IpAddr) -> Result<()> {
        let subject = Subject::at(address);
        let grant = match self.limiter.take_now(&self.policy, subject, 1) {
            Some(grant) => grant,
            None => self.limiter.take(&self.policy, subject, 1, 0).await?,
        };
        if grant.granted == 0 {
            return Err(Error::new(
                ErrorCode::RateLimited,
                "too many requests from this address",
            )
            .retry_after(grant.retry_after));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use carillon_domain::limit::Algorithm;

    use super::*;
    use crate::tests::fakes::FakeLimiter;

    /// EDGE-03: an address has so many calls, an IPv6 customer's network counts as one, and nobody else is concerned.
    #[tokio::test]
    async fn calls_are_counted_by_address() {
        let minute = Duration::from_secs(60);
        let strangers = Strangers {
            policy: Policy::new("test", Algorithm::default(), 2, minute).unwrap(),
            limiter: Arc::new(FakeLimiter::default()),
        };
        let admit = |address: &str| strangers.admit(address.parse().unwrap());
        assert!(admit("2001:db8::1").await.is_ok() && admit("2001:db8::2").await.is_ok());
        let error = admit("2001:db8::3").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::RateLimited);
        assert!(error.retry_after.is_some());
        assert!(admit("2001:db8:0:1::1").await.is_ok() && admit("192.0.2.1").await.is_ok());
    }
}
