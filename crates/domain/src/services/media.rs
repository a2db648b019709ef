use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{MediaId, Result, RoomId, UserId, media::Media};

/// An upload.
#[derive(Clone, Debug)]
pub struct NewMedia {
    /// The room whose readers may fetch it.
    pub room: RoomId,
    /// The client's name of the file.
    pub file_name: String,
    /// The bytes, at most the configured limit.
    pub bytes: Bytes,
}

/// Uploads and downloads (MEDIA-01, -03, -04).
#[async_trait]
pub trait MediaService: Send + Sync {
    /// Stores a file. `UnsupportedMediaType` when extension and magic bytes disagree or the type is refused, `PayloadTooLarge`
    /// above the limit.
    async fn upload(&self, actor: UserId, media: NewMedia) -> Result<Media>;

    /// What is known of a file.
    async fn describe(&self, actor: UserId, id: MediaId) -> Result<Media>;

    /// A file's bytes, or a range of them.
    async fn download(
        &self,
        actor: UserId,
        id: MediaId,
        range: Option<Range<u64>>,
    ) -> Result<(Media, Bytes)>;
}
