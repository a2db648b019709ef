use async_trait::async_trait;

use crate::{
    Result, Timestamp, UserId,
    people::{Between, Related, Relation},
};

/// Contacts and blocks, by who said it and by whom it is about. Whether the people exist isn't asked.
#[async_trait]
pub trait PeopleStore: Send + Sync {
    /// Says it. Saying it again changes nothing, the time included; whether it is new. `FailedPrecondition` when it is new and
    /// `user` has `most` entries already; of calls that run at the same time each may be let in.
    async fn put(
        &self,
        relation: Relation,
        user: UserId,
        other: UserId,
        since: Timestamp,
        most: usize,
    ) -> Result<bool>;

    /// Takes it back; whether it was there.
    async fn remove(&self, relation: Relation, user: UserId, other: UserId) -> Result<bool>;

    /// What `user` said of `other`.
    async fn get(&self, relation: Relation, user: UserId, other: UserId)
    -> Result<Option<Related>>;

    /// Of whom `user` said it, ascending by id, after `after`, at most `limit` (1 to 5,001).
    async fn list(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<Related>>;

    /// Who said it of `user`, ascending by id, after `after`, at most `limit` (1 to 5,001).
    async fn list_reverse(
        &self,
        relation: Relation,
        user: UserId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<UserId>>;

    /// Of whom of `others` `user` said it, and who of them said it of `user`, in any order; people with neither are left out. At
    /// most 1,000 others.
    async fn between(
        &self,
        relation: Relation,
        user: UserId,
        others: &[UserId],
    ) -> Result<Vec<Between>>;

    /// Which of `others` blocked `user` or are blocked by them: [`PeopleStore::between`] about blocks.
    async fn blocked_between(&self, user: UserId, others: &[UserId]) -> Result<Vec<Between>> {
        self.between(Relation::Block, user, others).await
    }
}
