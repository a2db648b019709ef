//! Erases accounts (AUTH-15). What begins is noted before anything is removed, and everything may be done again: whoever finds the
//! note goes on, however often somebody was cut off. What other roles hold they remove by themselves.

use std::time::Duration;

use carillon_domain::{
    Result, UserId, account::Identity, names::search_terms, people::Relation, ports::ErasurePart,
};
use tokio::time::MissedTickBehavior;

use crate::{
    post::{self, Purpose},
    service::Auth,
};

/// How often to look for people whose erasure was cut off.
const EVERY: Duration = Duration::from_secs(10);
/// People that are looked at in one round.
const PEOPLE: usize = 100;
/// Contacts and blocks that are read at once.
const RELATED: usize = 1000;

impl Auth {
    /// Erases the caller's account, if they know its password; what other roles hold goes within seconds.
    pub(crate) async fn erase_own(&self, who: &Identity, password: Option<String>) -> Result<()> {
        self.admit(who, password, "password").await?;
        let now = self.ports.clock.now();
        self.ports.person_keys.begin_erasing(who.user, now).await?;
        tracing::info!(user = %who.user, "an account is erased");
        // The caller's own session last: until all is done, a failed call can be made again.
        self.end_others(who).await?;
        self.end_own(who).await?;
        self.erase(who.user).await
    }

    /// Erases accounts whose erasure was cut off, now and then, for ever.
    pub async fn erase_pending(&self) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if let Err(error) = self.erase_those_waiting().await {
                tracing::warn!(%error, cause = error.cause_chain(), "accounts that are to be erased are kept for now");
            }
        }
    }

    pub(crate) async fn erase_those_waiting(&self) -> Result<()> {
        let keys = self.ports.person_keys.as_ref();
        let mut result = Ok(());
        for user in keys.erasing(ErasurePart::Account, PEOPLE).await? {
            // Whoever can't be erased keeps nobody else from it.
            result = result.and(self.erase(user).await);
        }
        result
    }

    /// Removes everything that this role holds of a person.
    async fn erase(&self, user: UserId) -> Result<()> {
        let ports = &self.ports;
        let now = ports.clock.now();
        ports.person_keys.destroy(user, now).await?;
        self.end_sessions(user).await?;
        // Before the account: afterwards nobody knows what they were filed under.
        if let Some(account) = ports.accounts.by_ids(&[user]).await?.first() {
            for term in search_terms(&account.user) {
                ports.people_index.remove(&term, user).await?;
            }
        }
        ports.accounts.erase(user).await?;
        // From here on nobody logs in: what a login left that was under way goes with the rest.
        self.end_sessions(user).await?;
        for target in ports.push_targets.of_users(&[user]).await? {
            ports.push_targets.remove(user, target.device).await?;
        }
        for relation in Relation::ALL {
            self.unrelate(relation, user).await?;
        }
        ports.settings.remove(user).await?;
        // An address that was never confirmed stands there.
        for purpose in Purpose::ALL {
            post::spend(ports.ephemeral.as_ref(), purpose, user).await?;
        }
        ports.security.forget(user).await?;
        // Again, for the parts that were quicker than this one: nothing is added any more that they would miss.
        ports.person_keys.begin_erasing(user, now).await?;
        ports.person_keys.erased(ErasurePart::Account, user).await
    }

    async fn end_sessions(&self, user: UserId) -> Result<()> {
        for session in self.ports.sessions.list(user).await? {
            self.end_other(user, session.device).await?;
        }
        Ok(())
    }

    /// Removes what somebody said of others, and others of them.
    async fn unrelate(&self, relation: Relation, user: UserId) -> Result<()> {
        let people = self.ports.people.as_ref();
        loop {
            let others = people.list(relation, user, None, RELATED).await?;
            if others.is_empty() {
                break;
            }
            for other in others {
                people.remove(relation, user, other.user).await?;
            }
        }
        loop {
            let others = people.list_reverse(relation, user, None, RELATED).await?;
            if others.is_empty() {
                return Ok(());
            }
            for other in others {
                people.remove(relation, other, user).await?;
            }
        }
    }
}
