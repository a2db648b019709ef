use async_trait::async_trait;

use crate::{Result, UserId};

/// Fewest characters of a prefix that people are looked for by.
pub const MIN_PREFIX_CHARS: usize = 2;

/// Finds people by the beginnings of terms. It knows nothing of accounts: whoever asks checks what it says. Terms have
/// [`MIN_PREFIX_CHARS`] to 100 characters and no control characters; they are compared by code points.
#[async_trait]
pub trait PeopleIndex: Send + Sync {
    /// Files a person under a term; fine if they are already.
    async fn put(&self, term: &str, user: UserId) -> Result<()>;

    /// Takes a person out from under a term; fine if they weren't there.
    async fn remove(&self, term: &str, user: UserId) -> Result<()>;

    /// Terms that begin so, with their people, ascending by both, after an entry, at most `limit` (1 to 1,000).
    async fn find(
        &self,
        prefix: &str,
        after: Option<(&str, UserId)>,
        limit: usize,
    ) -> Result<Vec<(String, UserId)>>;
}
