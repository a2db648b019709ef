use std::time::Duration;

use async_trait::async_trait;

use crate::Result;

/// Small values that end by themselves: one-time codes, tickets, counters of limits, marks of work done. May be lost with the
/// store; nothing here is the only copy of what a person wrote. Keys are at most 256 bytes, values 4 KiB.
#[async_trait]
pub trait Ephemeral: Send + Sync {
    /// Stores a value for `ttl`, replacing what was there.
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<()>;

    /// Reads a value.
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>>;

    /// Reads and removes a value; of two concurrent calls, one gets it.
    async fn take(&self, key: &str) -> Result<Option<Vec<u8>>>;

    /// Counts up and answers the new count. The count ends `window` after its first increment.
    async fn increment(&self, key: &str, window: Duration) -> Result<u64>;

    /// Takes one increment back, if the count hasn't ended. Its end stays.
    async fn decrement(&self, key: &str) -> Result<()>;

    /// True for the first caller within `ttl`, false for the others.
    async fn claim(&self, key: &str, ttl: Duration) -> Result<bool>;

    /// Removes a value, counter or claim.
    async fn remove(&self, key: &str) -> Result<()>;
}
