use async_trait::async_trait;

use crate::{
    Result, UserId,
    people::{Related, Sight},
    settings::{Settings, SettingsChange},
};

/// Contacts, blocks and settings (USER-04 to -07). Each is the matter of the person who makes it: nobody else can read it.
///
/// Every call may be repeated. `InvalidRequest` naming `user_id` when a person means themselves.
#[async_trait]
pub trait PeopleService: Send + Sync {
    /// Makes `other` a contact: `user` is told of their presence from then on. `NotFound` when there is no such person, or they
    /// blocked `user`; `FailedPrecondition` when there are [`crate::people::MAX_CONTACTS`] already.
    async fn put_contact(&self, user: UserId, other: UserId) -> Result<()>;

    /// Takes a contact back; fine if there was none.
    async fn remove_contact(&self, user: UserId, other: UserId) -> Result<()>;

    /// One contact; `NotFound` if there is none.
    async fn contact(&self, user: UserId, other: UserId) -> Result<Related>;

    /// Contacts ascending by id, after `after`, at most `limit` (1 to 1,000).
    async fn contacts(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>>;

    /// Blocks `other`: once it returns nothing new is shown to them, and gateways are told. After an error it may be made all the
    /// same. `NotFound` when there is no such person; `FailedPrecondition` when there are [`crate::people::MAX_BLOCKS`] already.
    async fn block(&self, user: UserId, other: UserId) -> Result<()>;

    /// Ends a block; fine if there was none.
    async fn unblock(&self, user: UserId, other: UserId) -> Result<()>;

    /// People whom `user` blocked, ascending by id, after `after`, at most `limit` (1 to 1,000).
    async fn blocks(
        &self,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>>;

    /// What decides what `user` is shown of others. For gateways: it tells who blocked them.
    async fn sight(&self, user: UserId) -> Result<Sight>;

    /// What `user` set (USER-06, USER-07).
    async fn settings(&self, user: UserId) -> Result<Settings>;

    /// Changes it; the settings as they are then. Gateways are told of privacy as of blocks. `InvalidRequest` naming `language` when it
    /// is no BCP 47 tag.
    async fn change_settings(&self, user: UserId, change: SettingsChange) -> Result<Settings>;
}
