//! [`MediaIndex`]: one row per upload.

use async_trait::async_trait;
use carillon_domain::{
    MediaId, Result, RoomId, Timestamp, UserId, media::Media as Upload, ports::MediaIndex,
};
use scylla::{statement::prepared::PreparedStatement, value::CqlTimestamp};
use uuid::Uuid;

use super::{
    database::{Database, cql_time, signed, unsigned},
    rooms::row_limit,
};

pub(super) struct Media {
    database: Database,
    put: PreparedStatement,
    get: PreparedStatement,
    put_owned: PreparedStatement,
    remove: PreparedStatement,
    remove_owned: PreparedStatement,
    owned: PreparedStatement,
    owned_after: PreparedStatement,
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
            put_owned: database
                .prepare("INSERT INTO media_by_owner (owner, id) VALUES (?, ?)")
                .await?,
            remove: database.prepare("DELETE FROM media WHERE id = ?").await?,
            remove_owned: database
                .prepare("DELETE FROM media_by_owner WHERE owner = ? AND id = ?")
                .await?,
            owned: database
                .prepare("SELECT id FROM media_by_owner WHERE owner = ? LIMIT ?")
                .await?,
            owned_after: database
                .prepare("SELECT id FROM media_by_owner WHERE owner = ? AND id > ? LIMIT ?")
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
        // First where its owner's are: what isn't there when they are erased would stay for ever.
        let owned = (media.owner.0, media.id.0);
        self.database
            .write("put_media_of_owner", &self.put_owned, owned)
            .await?;
        self.database.write("put_media", &self.put, values).await
    }

    async fn remove(&self, owner: UserId, id: MediaId) -> Result<()> {
        self.database
            .write("remove_media", &self.remove, (id.0,))
            .await?;
        self.database
            .write("remove_media_of_owner", &self.remove_owned, (owner.0, id.0))
            .await
    }

    async fn of_owner(
        &self,
        owner: UserId,
        after: Option<MediaId>,
        limit: usize,
    ) -> Result<Vec<MediaId>> {
        let limit = row_limit(limit);
        let rows: Vec<(Uuid,)> = match after {
            None => {
                self.database
                    .rows("media_of_owner", &self.owned, (owner.0, limit))
                    .await?
            }
            Some(after) => {
                let values = (owner.0, after.0, limit);
                self.database
                    .rows("media_of_owner", &self.owned_after, values)
                    .await?
            }
        };
        Ok(rows.into_iter().map(|(id,)| MediaId(id)).collect())
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
