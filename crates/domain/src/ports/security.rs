use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    Result, Timestamp, UserId,
    security::{SecurityEvent, Trail},
};

/// What happened to accounts, by person and trail. Bounded: an event ends at a time, and each trail keeps only its newest events.
#[async_trait]
pub trait SecurityLog: Send + Sync {
    /// Adds an event to a trail until `until`. Of the trail the newest `keep` (1 to 1,000) stay, by their ids; calls that run at the
    /// same time may leave a few more until the next one. The same event again changes nothing.
    async fn append(
        &self,
        trail: Trail,
        user: UserId,
        event: &SecurityEvent,
        until: Timestamp,
        keep: usize,
    ) -> Result<()>;

    /// Events of a trail that haven't ended, newest first, older than `before`, at most `limit` (1 to 1,000).
    async fn list(
        &self,
        trail: Trail,
        user: UserId,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>>;

    /// Removes every event of a person.
    async fn forget(&self, user: UserId) -> Result<()>;
}
