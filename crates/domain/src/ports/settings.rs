use async_trait::async_trait;

use crate::{
    Result, UserId,
    settings::{Settings, SettingsChange},
};

/// What people set for themselves. Whether they exist isn't asked.
#[async_trait]
pub trait SettingsStore: Send + Sync {
    /// Settings of these people, in any order; who never set anything is left out. At most 1,000.
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, Settings)>>;

    /// Makes a change: what it names is so, whatever else is changed at the same time.
    async fn change(&self, user: UserId, change: &SettingsChange) -> Result<()>;

    /// Forgets all that somebody set; fine if they set nothing.
    async fn remove(&self, user: UserId) -> Result<()>;
}
