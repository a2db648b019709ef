//! Removes the uploads of people whose accounts are erased (AUTH-15): the bytes first, so that nothing is left that nobody finds.

use std::time::Duration;

use carillon_domain::{
    Result, UserId,
    ports::{ErasurePart, PersonKeys},
};
use tokio::time::MissedTickBehavior;

use crate::MediaRole;

/// How often to look for such people.
const EVERY: Duration = Duration::from_secs(10);
/// People that are looked at in one round.
const PEOPLE: usize = 100;
/// Uploads that are looked up at once.
const UPLOADS: usize = 500;

impl MediaRole {
    /// Removes the uploads of erased people, now and then, for ever.
    pub async fn erase(&self, keys: &dyn PersonKeys) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.erase_pending(keys).await {
                tracing::warn!(%error, cause = error.cause_chain(), "uploads of erased people are kept for now");
            }
        }
    }

    pub(crate) async fn erase_pending(&self, keys: &dyn PersonKeys) -> Result<()> {
        let mut result = Ok(());
        for user in keys.erasing(ErasurePart::Media, PEOPLE).await? {
            match self.erase_uploads(user).await {
                Ok(()) => keys.erased(ErasurePart::Media, user).await?,
                // What can't be removed of one keeps nothing of others.
                Err(error) => result = Err(error),
            }
        }
        result
    }

    async fn erase_uploads(&self, user: UserId) -> Result<()> {
        loop {
            let ids = self.index.of_owner(user, None, UPLOADS).await?;
            if ids.is_empty() {
                return Ok(());
            }
            for id in ids {
                self.blobs.delete(id).await?;
                self.index.remove(user, id).await?;
            }
        }
    }
}
