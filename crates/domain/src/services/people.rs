use async_trait::async_trait;

use crate::{
    Result, UserId,
    people::{Hidden, Related},
};

/// Contacts and blocks (USER-04, USER-05). Each is the matter of the person who makes it: nobody else can read it.
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

    /// Whose presence and typing `user` must not get. For gateways: it tells who blocked them.
    async fn hidden_from(&self, user: UserId) -> Result<Hidden>;
}
