use async_trait::async_trait;

use crate::{
    Result,
    limit::{Grant, Policy, Subject},
};

/// Counts uses by policy and subject, exactly: of takers at once no more get a permit than there are. Uses may be forgotten with the
/// store, never invented, and nothing is kept of a subject that has everything again.
#[async_trait]
pub trait RateLimiter: Send + Sync {
    /// Books `owed`, uses that were let through before they were asked for, whatever is left (at most
    /// [`crate::limit::MOST_OVERDRAWN`] times the limit); then grants up to `wanted` permits. `Unavailable` when the uses can't be
    /// counted: whether they were is unknown then.
    async fn take(
        &self,
        policy: &Policy,
        subject: Subject,
        wanted: u32,
        owed: u32,
    ) -> Result<Grant>;

    /// The same with nothing owed, if the answer is at hand in this process. `None`, and nothing is counted, if one has to wait for
    /// it: then [`RateLimiter::take`] asks.
    fn take_now(&self, policy: &Policy, subject: Subject, wanted: u32) -> Option<Grant>;
}
