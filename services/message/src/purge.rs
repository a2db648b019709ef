//! Removes from the store, now and then, what retention leaves no more (MSG-21). Readers don't wait for it: see [`crate::reads`].

use std::{sync::Weak, time::Duration};

use tokio::time::MissedTickBehavior;

use crate::MessageRole;

/// Purges every so often, until the role is gone.
pub async fn run(role: Weak<MessageRole>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    loop {
        tick.tick().await;
        let Some(role) = role.upgrade() else { return };
        if let Err(error) = role.purge().await {
            tracing::warn!(%error, cause = error.cause_chain(), "rooms keep more than their retention for now");
        }
    }
}
