//! [`SettingsStore`]: one row for all that a person set.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Result, UserId,
    ports::SettingsStore,
    settings::{Settings, SettingsChange},
};

use super::{
    at_most,
    codec::{json, read_json, tagged},
    engine::{Durability, Engine},
    tables::Table,
};

const SETTINGS: u8 = b's';

/// What people set.
pub(super) struct SettingsRows(pub(super) Arc<Engine>);

fn key(user: UserId) -> Vec<u8> {
    tagged(SETTINGS, user.0.as_bytes())
}

#[async_trait]
impl SettingsStore for SettingsRows {
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, Settings)>> {
        at_most(users.len(), 1_000)?;
        let users = users.to_vec();
        self.0
            .read(users.len(), move |view| {
                let mut found = Vec::new();
                for user in users {
                    if let Some(row) = view.get(Table::People, key(user))? {
                        found.push((user, read_json(&row)?));
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn change(&self, user: UserId, change: &SettingsChange) -> Result<()> {
        let (key, change) = (key(user), change.clone());
        self.0
            .commit(Durability::Synced, move |transaction| {
                let row = transaction.get(Table::People, key.as_slice())?;
                let mut settings: Settings = row
                    .map(|row| read_json(&row))
                    .transpose()?
                    .unwrap_or_default();
                change.apply(&mut settings);
                transaction.put(Table::People, key, json(&settings)?);
                Ok(())
            })
            .await
    }

    async fn remove(&self, user: UserId) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::People, key(user));
                Ok(())
            })
            .await
    }
}
