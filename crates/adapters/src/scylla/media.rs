//! [`MediaIndex`]: one row per upload.

use async_trait::async_trait;
use carillon_domain::{
    MediaId, Result, RoomId, Timestamp, UserId, media::Media as Upload, ports::MediaIndex,
};
use scylla::{statement::prepared::PreparedStatement, value::CqlTimestamp};
use uuid::Uuid;

use super::database::{Database, cql_time, signed, unsigned};

pub(super) struct Media {
    database: Database,
    put: PreparedStatement,
    get: PreparedStatement,
}

impl Media {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            put: database
                .prepare("INSERT INTO media (id, room, owner, file_name, content_type, size, sha256, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)")
                .await?,
            get: database
                .prepare("SELECT room, owner, file_name, content_type, size, sha256, created_at FROM media WHERE id = ?")
                .await?,
            database: database.clone(),
        })
    }
}

#[async_trait]
impl MediaIndex for Media {
    async fn put(&self, media: &Upload) -> Result<()> {
        let values = (
            media.id.0,
            media.room.0,
            media.owner.0,
            &media.file_name,
            &media.content_type,
            signed(media.size),
            &media.sha256,
            cql_time(media.created_at),
        );
        self.database.write("put_media", &self.put, values).await
    }

    async fn get(&self, id: MediaId) -> Result<Option<Upload>> {
        type Columns = (Uuid, Uuid, String, String, i64, String, CqlTimestamp);
        let Some((room, owner, file_name, content_type, size, sha256, created_at)) = self
            .database
            .row::<Columns>("get_media", &self.get, (id.0,))
            .await?
        else {
            return Ok(None);
        };
        Ok(Some(Upload {
            id,
            room: RoomId(room),
            owner: UserId(owner),
            file_name,
            content_type,
            size: unsigned(size)?,
            sha256,
            created_at: Timestamp(created_at.0),
        }))
    }
}
