//! The media role's use cases.

use std::{
    ops::Range,
    sync::{Arc, LazyLock},
};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    Clock, Error, ErrorCode, MediaId, Result, RoomId, UserId,
    media::Media,
    ports::{BlobStore, MediaIndex},
    services::{MediaService, MessageService, NewMedia, RoomView},
};
use carillon_telemetry::metrics::{IntCounterVec, int_counter};
use sha2::{Digest, Sha256};

use crate::{kind, name};

static UPLOADS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_media_uploads_total",
        "Uploads, by outcome: stored, refused, error.",
        &["outcome"],
    )
});
static UPLOAD_BYTES: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_media_upload_bytes_total",
        "Bytes of stored uploads, by the first part of their content type.",
        &["type"],
    )
});

/// What the media role can be told.
#[derive(Clone, Debug)]
pub struct MediaOptions {
    /// Largest upload, in bytes.
    pub max_upload_bytes: u64,
}

impl Default for MediaOptions {
    /// 4 MiB.
    fn default() -> Self {
        Self {
            max_upload_bytes: 4 * 1024 * 1024,
        }
    }
}

/// The media role.
pub struct MediaRole {
    pub(crate) blobs: Arc<dyn BlobStore>,
    pub(crate) index: Arc<dyn MediaIndex>,
    messages: Arc<dyn MessageService>,
    clock: Arc<dyn Clock>,
    options: MediaOptions,
}

// === impl MediaRole ===

impl MediaRole {
    /// `messages` decides who may read a room.
    pub fn new(
        blobs: Arc<dyn BlobStore>,
        index: Arc<dyn MediaIndex>,
        messages: Arc<dyn MessageService>,
        clock: Arc<dyn Clock>,
        options: MediaOptions,
    ) -> Self {
        for outcome in ["stored", "refused", "error"] {
            UPLOADS.with_label_values(&[outcome]);
        }
        Self {
            blobs,
            index,
            messages,
            clock,
            options,
        }
    }

    /// The largest upload, in bytes, so that the edge can stop reading a body in time.
    pub fn max_upload_bytes(&self) -> u64 {
        self.options.max_upload_bytes
    }

    async fn store(&self, actor: UserId, new: NewMedia) -> Result<Media> {
        let room = self.readable(actor, new.room).await?;
        if room.role.is_none() {
            return Err(Error::denied("only members may upload to this room"));
        }
        let size = new.bytes.len() as u64;
        if size > self.options.max_upload_bytes {
            return Err(Error::new(
                ErrorCode::PayloadTooLarge,
                format!("at most {} bytes", self.options.max_upload_bytes),
            ));
        }
        if size == 0 {
            return Err(Error::invalid("file", "must not be empty"));
        }
        let file_name = name::clean(&new.file_name)
            .ok_or_else(|| Error::invalid("file_name", "a file name of 1 to 255 bytes"))?;
        let extension = name::extension(&file_name);
        let content_type = kind::content_type(extension.as_deref(), &new.bytes)?;
        let media = Media {
            id: MediaId::new(),
            room: new.room,
            owner: actor,
            file_name,
            content_type: content_type.to_owned(),
            size,
            sha256: sha256(new.bytes.clone()).await?,
            created_at: self.clock.now(),
        };
        // The bytes first: an entry is never without them. If the entry fails its outcome is unknown, so the bytes stay.
        self.blobs.put(media.id, new.bytes).await?;
        self.index.put(&media).await?;
        Ok(media)
    }

    async fn readable(&self, actor: UserId, room: RoomId) -> Result<RoomView> {
        self.messages.room(actor, room).await
    }

    /// The entry, if the actor may read its room: else the file doesn't exist for them (MEDIA-04).
    async fn fetchable(&self, actor: UserId, id: MediaId) -> Result<Media> {
        let missing = || Error::not_found("file");
        let media = self.index.get(id).await?.ok_or_else(missing)?;
        match self.readable(actor, media.room).await {
            Ok(_) => Ok(media),
            Err(error)
                if matches!(
                    error.code,
                    ErrorCode::NotFound | ErrorCode::PermissionDenied
                ) =>
            {
                Err(missing())
            }
            Err(error) => Err(error),
        }
    }
}

#[async_trait]
impl MediaService for MediaRole {
    #[tracing::instrument(name = "media.upload", skip_all, fields(bytes = media.bytes.len()))]
    async fn upload(&self, actor: UserId, media: NewMedia) -> Result<Media> {
        let result = self.store(actor, media).await;
        let outcome = match &result {
            Ok(media) => {
                let group = media.content_type.split('/').next().unwrap_or_default();
                UPLOAD_BYTES.with_label_values(&[group]).inc_by(media.size);
                "stored"
            }
            Err(error) if error.code.http_status() < 500 => "refused",
            Err(_) => "error",
        };
        UPLOADS.with_label_values(&[outcome]).inc();
        result
    }

    async fn describe(&self, actor: UserId, id: MediaId) -> Result<Media> {
        self.fetchable(actor, id).await
    }

    #[tracing::instrument(name = "media.download", skip_all)]
    async fn download(
        &self,
        actor: UserId,
        id: MediaId,
        range: Option<Range<u64>>,
    ) -> Result<(Media, Bytes)> {
        let media = self.fetchable(actor, id).await?;
        let range = match range {
            Some(range) => {
                let end = range.end.min(media.size);
                if range.start >= end {
                    return Err(Error::invalid("range", "must begin within the file"));
                }
                Some(range.start..end)
            }
            None => None,
        };
        match self.blobs.get(id, range).await {
            Ok(bytes) => Ok((media, bytes)),
            Err(error) if error.code == ErrorCode::NotFound => Err(Error::defect(format!(
                "the bytes of file {id} are not in the blob store"
            ))),
            Err(error) => Err(error),
        }
    }
}

/// Megabytes take milliseconds to hash, which other tasks of the thread shouldn't wait for.
async fn sha256(bytes: Bytes) -> Result<String> {
    tokio::task::spawn_blocking(move || hex::encode(Sha256::digest(&bytes)))
        .await
        .map_err(Error::internal)
}
