//! Uploaded files.

use serde::{Deserialize, Serialize};

use crate::{MediaId, RoomId, Timestamp, UserId};

/// What is known of an uploaded file. Whoever may read the room may fetch it (MEDIA-04).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Media {
    /// Stable id; also the key of the bytes in the blob store.
    pub id: MediaId,
    /// The room it was uploaded to.
    pub room: RoomId,
    /// Who uploaded it.
    pub owner: UserId,
    /// The client's file name, cleaned.
    pub file_name: String,
    /// The type that the bytes say.
    pub content_type: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, hex: a strong ETag.
    pub sha256: String,
    /// When.
    pub created_at: Timestamp,
}
