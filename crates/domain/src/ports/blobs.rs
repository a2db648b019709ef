use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{MediaId, Result, UserId, media::Media};

/// Bytes of uploads.
#[async_trait]
pub trait BlobStore: Send + Sync {
    /// Stores bytes durably under the id.
    async fn put(&self, id: MediaId, bytes: Bytes) -> Result<()>;

    /// Reads all bytes, or a range of them. `NotFound` when there are none.
    async fn get(&self, id: MediaId, range: Option<Range<u64>>) -> Result<Bytes>;

    /// Removes the bytes; removing what isn't there is fine.
    async fn delete(&self, id: MediaId) -> Result<()>;
}

/// What is known of uploads.
#[async_trait]
pub trait MediaIndex: Send + Sync {
    /// Stores an entry.
    async fn put(&self, media: &Media) -> Result<()>;

    /// Reads an entry.
    async fn get(&self, id: MediaId) -> Result<Option<Media>>;

    /// Removes an entry; removing what isn't there is fine.
    async fn remove(&self, owner: UserId, id: MediaId) -> Result<()>;

    /// Ids of a person's uploads, ascending, after `after`, at most `limit` (1 to 1,000).
    async fn of_owner(
        &self,
        owner: UserId,
        after: Option<MediaId>,
        limit: usize,
    ) -> Result<Vec<MediaId>>;
}
