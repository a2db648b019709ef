//! [`SessionStore`]: sessions by user and device, and the access tokens that were revoked before their end.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    DeviceId, Result, Timestamp, UserId,
    account::Session,
    ports::{Rotation, SessionStore},
};
use uuid::Uuid;

use super::{
    codec::{json, pair, read_json},
    engine::{Durability, Engine, Transaction},
    expiry,
    tables::Table,
};

/// Sessions.
pub(super) struct Sessions(pub(super) Arc<Engine>);

#[async_trait]
impl SessionStore for Sessions {
    async fn put(&self, session: &Session) -> Result<()> {
        let session = session.clone();
        self.0
            .commit(Durability::Synced, move |transaction| {
                store(transaction, &session)
            })
            .await
    }

    async fn get(&self, user: UserId, device: DeviceId) -> Result<Option<Session>> {
        let row = self.0.view().get(Table::Sessions, pair(user.0, device.0))?;
        expiry::live(row, self.0.clock.now())?
            .map(|row| read_json(&row))
            .transpose()
    }

    async fn rotate(&self, old_hash: &[u8; 32], next: &Session) -> Result<Rotation> {
        let (old_hash, next) = (*old_hash, next.clone());
        let now = self.0.clock.now();
        self.0
            .commit(Durability::Synced, move |transaction| {
                let Some(session) = load(transaction, next.user, next.device, now)? else {
                    return Ok(Rotation::Unknown);
                };
                if session.refresh_hash != old_hash {
                    return Ok(Rotation::Reused);
                }
                store(transaction, &next)?;
                Ok(Rotation::Rotated)
            })
            .await
    }

    async fn remove(&self, user: UserId, device: DeviceId) -> Result<Option<Session>> {
        let now = self.0.clock.now();
        self.0
            .commit(Durability::Synced, move |transaction| {
                let session = load(transaction, user, device, now)?;
                if session.is_some() {
                    transaction.remove(Table::Sessions, pair(user.0, device.0));
                }
                Ok(session)
            })
            .await
    }

    async fn list(&self, user: UserId) -> Result<Vec<Session>> {
        let now = self.0.clock.now();
        let mut sessions = Vec::new();
        for row in self
            .0
            .view()
            .after(Table::Sessions, user.0.as_bytes(), None)
        {
            if let Some(row) = expiry::live(Some(row?.1), now)? {
                sessions.push(read_json::<Session>(&row)?);
            }
        }
        sessions.sort_by_key(|session| (std::cmp::Reverse(session.created_at), session.device));
        Ok(sessions)
    }

    async fn revoke_token(&self, token_id: Uuid, until: Timestamp) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                expiry::put(
                    transaction,
                    Table::RevokedTokens,
                    token_id.as_bytes(),
                    until,
                    &[],
                );
                Ok(())
            })
            .await
    }

    async fn is_revoked(&self, token_id: Uuid) -> Result<bool> {
        let row = self
            .0
            .view()
            .get(Table::RevokedTokens, token_id.as_bytes())?;
        Ok(expiry::live(row, self.0.clock.now())?.is_some())
    }
}

fn store(transaction: &mut Transaction<'_>, session: &Session) -> Result<()> {
    let key = pair(session.user.0, session.device.0);
    let row = json(session)?;
    expiry::put(transaction, Table::Sessions, &key, session.expires_at, &row);
    Ok(())
}

fn load(
    transaction: &Transaction<'_>,
    user: UserId,
    device: DeviceId,
    now: Timestamp,
) -> Result<Option<Session>> {
    let row = transaction.get(Table::Sessions, pair(user.0, device.0))?;
    expiry::live(row, now)?
        .map(|row| read_json(&row))
        .transpose()
}
