use std::time::Duration;

use async_trait::async_trait;

use crate::{
    DeviceId, Result, Timestamp, UserId,
    presence::{Lease, Presence},
};

/// Leases of connected devices. A person's state is the highest of their leases; without one they are offline. Atomic per user:
/// each change of a person's state is answered to exactly one caller.
#[async_trait]
pub trait PresenceStore: Send + Sync {
    /// Grants or renews leases until `now + ttl`; answers the people whose state changed.
    async fn renew(&self, leases: &[Lease], now: Timestamp, ttl: Duration)
    -> Result<Vec<Presence>>;

    /// Ends a lease at once; answers the person's state if it changed.
    async fn release(
        &self,
        user: UserId,
        device: DeviceId,
        now: Timestamp,
    ) -> Result<Option<Presence>>;

    /// Ends leases that ran out before `now`, at most `limit`; answers the people whose state changed.
    async fn expire(&self, now: Timestamp, limit: usize) -> Result<Vec<Presence>>;

    /// States of these people, in the order asked (unknown ones are offline and never seen). At most 1,000. A lease that ran
    /// out before `now` doesn't count.
    async fn get(&self, users: &[UserId], now: Timestamp) -> Result<Vec<Presence>>;
}
