//! `carillon.media.v1.MediaService`: the server of a `MediaService`, and the client that is one.
//!
//! A file is one gRPC message: the upload limit is a few MiB, and the services take and give whole files.

use std::{ops::Range, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use carillon_domain::{
    MediaId, Result, RoomId, UserId,
    media::Media,
    services::{MediaService, NewMedia},
};
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    PeerRole,
    connection::{self, Connection, Credentials, For},
    gate::handle,
    proto::media::{
        self as pb, media_service_client::MediaServiceClient, media_service_server as server,
    },
    values::{CALL_DEADLINE, answer, id, required, timestamp, timestamp_to_proto},
};

/// What a message may be larger than its file.
const ENVELOPE: usize = 64 * 1024;

/// The largest answer that a client takes. Files outlive the upload limit that they came under, and the server is one of ours: this
/// bounds a defect, not a stranger.
const MAX_ANSWER: usize = (1 << 30) + ENVELOPE;

/// Deadline of calls that carry a file.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(30);

// === server ===

/// Offers a `MediaService` over gRPC; mount it with [`crate::serve`].
#[derive(Clone)]
pub struct MediaServer {
    service: Arc<dyn MediaService>,
    max_upload_bytes: usize,
}

impl MediaServer {
    /// Takes files of at most `max_upload_bytes`.
    pub fn new(service: Arc<dyn MediaService>, max_upload_bytes: usize) -> Self {
        Self {
            service,
            max_upload_bytes,
        }
    }

    pub(crate) fn into_tonic(self) -> server::MediaServiceServer<Self> {
        let limit = self.max_upload_bytes.saturating_add(ENVELOPE);
        server::MediaServiceServer::new(self).max_decoding_message_size(limit)
    }
}

#[tonic::async_trait]
impl server::MediaService for MediaServer {
    async fn upload(
        &self,
        request: Request<pb::UploadRequest>,
    ) -> Result<Response<pb::UploadResponse>, Status> {
        handle(request, |caller, upload| async move {
            let new = NewMedia {
                room: id("room_id", &upload.room_id)?,
                file_name: upload.file_name,
                bytes: upload.content,
            };
            let media = self.service.upload(caller.actor()?, new).await?;
            Ok(pb::UploadResponse {
                media: Some(media_to_proto(media)),
            })
        })
        .await
    }

    async fn describe(
        &self,
        request: Request<pb::DescribeRequest>,
    ) -> Result<Response<pb::DescribeResponse>, Status> {
        handle(request, |caller, describe| async move {
            let id = id("media_id", &describe.media_id)?;
            let media = self.service.describe(caller.actor()?, id).await?;
            Ok(pb::DescribeResponse {
                media: Some(media_to_proto(media)),
            })
        })
        .await
    }

    async fn download(
        &self,
        request: Request<pb::DownloadRequest>,
    ) -> Result<Response<pb::DownloadResponse>, Status> {
        handle(request, |caller, download| async move {
            let id = id("media_id", &download.media_id)?;
            let range = download.range.map(|range| range.start..range.end);
            let (media, content) = self.service.download(caller.actor()?, id, range).await?;
            Ok(pb::DownloadResponse {
                media: Some(media_to_proto(media)),
                content,
            })
        })
        .await
    }
}

// === client ===

/// A `MediaService` that runs in another process.
#[derive(Clone)]
pub struct MediaClient {
    rpc: Connection<MediaServiceClient<Channel>>,
    transfers: Connection<MediaServiceClient<Channel>>,
}

impl MediaClient {
    /// Connects to `endpoint` (such as `http://media:50051`) on first use. Must be called within a runtime.
    pub fn connect_lazy(endpoint: &str, credentials: Credentials) -> Result<Self> {
        let client = MediaServiceClient::new(connection::channel(
            endpoint,
            PeerRole::Media,
            &credentials,
        )?)
        .max_decoding_message_size(MAX_ANSWER);
        let connection = |deadline| {
            Connection::new(
                server::SERVICE_NAME,
                client.clone(),
                credentials.clone(),
                deadline,
            )
        };
        Ok(Self {
            rpc: connection(CALL_DEADLINE),
            transfers: connection(TRANSFER_DEADLINE),
        })
    }
}

#[async_trait]
impl MediaService for MediaClient {
    async fn upload(&self, actor: UserId, media: NewMedia) -> Result<Media> {
        let request = pb::UploadRequest {
            room_id: media.room.to_string(),
            file_name: media.file_name,
            content: media.bytes,
        };
        let stored = self
            .transfers
            .call("Upload", For::User(actor), request, |mut c, r| async move {
                c.upload(r).await
            })
            .await?;
        answer(media_from_proto(stored.media))
    }

    async fn describe(&self, actor: UserId, id: MediaId) -> Result<Media> {
        let request = pb::DescribeRequest {
            media_id: id.to_string(),
        };
        let known = self
            .rpc
            .call(
                "Describe",
                For::User(actor),
                request,
                |mut c, r| async move { c.describe(r).await },
            )
            .await?;
        answer(media_from_proto(known.media))
    }

    async fn download(
        &self,
        actor: UserId,
        id: MediaId,
        range: Option<Range<u64>>,
    ) -> Result<(Media, Bytes)> {
        let request = pb::DownloadRequest {
            media_id: id.to_string(),
            range: range.map(|range| pb::ByteRange {
                start: range.start,
                end: range.end,
            }),
        };
        let got = self
            .transfers
            .call(
                "Download",
                For::User(actor),
                request,
                |mut c, r| async move { c.download(r).await },
            )
            .await?;
        Ok((answer(media_from_proto(got.media))?, got.content))
    }
}

// === values ===

fn media_to_proto(media: Media) -> pb::Media {
    pb::Media {
        id: media.id.to_string(),
        room_id: media.room.to_string(),
        owner_id: media.owner.to_string(),
        file_name: media.file_name,
        content_type: media.content_type,
        size: media.size,
        sha256: media.sha256,
        created_at: Some(timestamp_to_proto(media.created_at)),
    }
}

fn media_from_proto(media: Option<pb::Media>) -> Result<Media> {
    let media = required("media", media)?;
    Ok(Media {
        id: id("media.id", &media.id)?,
        room: id::<RoomId>("media.room_id", &media.room_id)?,
        owner: id("media.owner_id", &media.owner_id)?,
        file_name: media.file_name,
        content_type: media.content_type,
        size: media.size,
        sha256: media.sha256,
        created_at: timestamp("media.created_at", media.created_at)?,
    })
}

#[cfg(test)]
mod tests {
    use carillon_domain::Timestamp;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn media_come_back_as_they_were(
            ids: [u128; 3], file_name in ".*", content_type in ".*", size: u64, sha256 in "[0-9a-f]{64}", time in 0i64..1 << 50,
        ) {
            let [id, room, owner] = ids.map(Uuid::from_u128);
            let given = Media {
                id: MediaId(id),
                room: RoomId(room),
                owner: UserId(owner),
                file_name,
                content_type,
                size,
                sha256,
                created_at: Timestamp(time),
            };
            prop_assert_eq!(media_from_proto(Some(media_to_proto(given.clone()))).unwrap(), given);
        }
    }
}
