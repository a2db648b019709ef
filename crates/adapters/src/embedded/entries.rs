//! [`PushTargetStore`] and [`MediaIndex`]: rows by id.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, MediaId, Result, UserId,
    media::Media,
    ports::{MediaIndex, PushTargetStore},
    push::PushTarget,
};

use super::{
    at_most,
    codec::{json, last_id, pair, read_json, tagged},
    engine::{Durability, Engine},
    tables::Table,
};

/// Push targets.
pub(super) struct PushTargets(pub(super) Arc<Engine>);

#[async_trait]
impl PushTargetStore for PushTargets {
    async fn put(&self, target: &PushTarget) -> Result<()> {
        let key = pair(target.user.0, target.device.0);
        let row = json(target)?;
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.put(Table::PushTargets, key, row);
                Ok(())
            })
            .await
    }

    async fn remove(&self, user: UserId, device: DeviceId) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::PushTargets, pair(user.0, device.0));
                Ok(())
            })
            .await
    }

    async fn of_users(&self, users: &[UserId]) -> Result<Vec<PushTarget>> {
        at_most(users.len(), 200)?;
        let users = users.to_vec();
        // A few devices each.
        self.0
            .read(4 * users.len(), move |view| {
                let mut targets = Vec::new();
                for user in users {
                    for row in view.after(Table::PushTargets, user.0.as_bytes(), None) {
                        targets.push(read_json(&row?.1)?);
                    }
                }
                Ok(targets)
            })
            .await
    }
}

/// Tag of the entries by owner in [`Table::PersonKeys`].
const UPLOAD: u8 = b'u';

pub(super) fn upload_key(owner: UserId, id: MediaId) -> Vec<u8> {
    let mut key = tagged(UPLOAD, owner.0.as_bytes());
    key.extend_from_slice(id.0.as_bytes());
    key
}

/// What is known of uploads.
pub(super) struct MediaEntries(pub(super) Arc<Engine>);

#[async_trait]
impl MediaIndex for MediaEntries {
    async fn put(&self, media: &Media) -> Result<()> {
        let (id, owner) = (media.id, media.owner);
        let row = json(media)?;
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.put(Table::Media, *id.0.as_bytes(), row);
                transaction.put(Table::PersonKeys, upload_key(owner, id), *b"");
                Ok(())
            })
            .await
    }

    async fn remove(&self, owner: UserId, id: MediaId) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::Media, *id.0.as_bytes());
                transaction.remove(Table::PersonKeys, upload_key(owner, id));
                Ok(())
            })
            .await
    }

    async fn of_owner(
        &self,
        owner: UserId,
        after: Option<MediaId>,
        limit: usize,
    ) -> Result<Vec<MediaId>> {
        at_most(limit, 1_000)?;
        self.0
            .read(limit, move |view| {
                let after = after.map(|id| *id.0.as_bytes());
                let after = after.as_ref().map(|id| &id[..]);
                let prefix = tagged(UPLOAD, owner.0.as_bytes());
                view.after(Table::PersonKeys, &prefix, after)
                    .take(limit)
                    .map(|row| Ok(MediaId(last_id(&row?.0)?)))
                    .collect()
            })
            .await
    }

    async fn get(&self, id: MediaId) -> Result<Option<Media>> {
        self.0
            .view()
            .get(Table::Media, id.0.as_bytes())?
            .map(|row| read_json(&row))
            .transpose()
    }
}
