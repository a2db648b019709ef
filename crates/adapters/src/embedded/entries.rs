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
    codec::{json, pair, read_json},
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

/// What is known of uploads.
pub(super) struct MediaEntries(pub(super) Arc<Engine>);

#[async_trait]
impl MediaIndex for MediaEntries {
    async fn put(&self, media: &Media) -> Result<()> {
        let id = media.id;
        let row = json(media)?;
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.put(Table::Media, *id.0.as_bytes(), row);
                Ok(())
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
