//! [`PersonKeys`]: a row per person, and an entry for each part that still has to erase them. A table of its own, so that what was
//! destroyed leaves the disk when it is compacted, which a destruction asks for.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, Result, Timestamp, UserId,
    ports::{ErasurePart, KeyState, PersonKey, PersonKeys},
};
use uuid::Uuid;

use super::{
    at_most,
    codec::{json, last_id, read_json, tagged},
    engine::{Durability, Engine},
    tables::Table,
};

const KEY: u8 = b'k';

/// Keys of people.
pub(super) struct Keys(pub(super) Arc<Engine>);

fn key_of(user: UserId) -> Vec<u8> {
    tagged(KEY, user.0.as_bytes())
}

fn part(part: ErasurePart) -> u8 {
    match part {
        ErasurePart::Account => b'a',
        ErasurePart::Rooms => b'r',
        ErasurePart::Media => b'm',
    }
}

#[async_trait]
impl PersonKeys for Keys {
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, KeyState)>> {
        at_most(users.len(), 1_000)?;
        let view = self.0.view();
        let mut found = Vec::with_capacity(users.len());
        for user in users {
            if let Some(row) = view.get(Table::PersonKeys, key_of(*user))? {
                found.push((*user, read_json(&row)?));
            }
        }
        Ok(found)
    }

    async fn put_if_absent(&self, user: UserId, key: &PersonKey) -> Result<KeyState> {
        let new = KeyState::Held(key.clone());
        self.0
            .commit(Durability::Synced, move |transaction| {
                if let Some(row) = transaction.get(Table::PersonKeys, key_of(user))? {
                    return read_json(&row);
                }
                transaction.put(Table::PersonKeys, key_of(user), json(&new)?);
                Ok(new)
            })
            .await
    }

    async fn begin_erasing(&self, user: UserId, _at: Timestamp) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                for each in ErasurePart::ALL {
                    let key = tagged(part(each), user.0.as_bytes());
                    transaction.put(Table::PersonKeys, key, *b"");
                }
                Ok(())
            })
            .await
    }

    async fn destroy(&self, user: UserId, at: Timestamp) -> Result<()> {
        let destroyed = self
            .0
            .commit(Durability::Synced, move |transaction| {
                let stored = transaction.get(Table::PersonKeys, key_of(user))?;
                let stored = stored.map(|row| read_json(&row)).transpose()?;
                if let Some(KeyState::Destroyed(_)) = stored {
                    // Destroyed by a process that may have died before its files were free of it.
                    let noted = tagged(part(ErasurePart::Account), user.0.as_bytes());
                    return Ok(transaction.get(Table::PersonKeys, noted)?.is_some());
                }
                let row = json(&KeyState::Destroyed(at))?;
                transaction.put(Table::PersonKeys, key_of(user), row);
                Ok(stored.is_some())
            })
            .await?;
        if destroyed {
            self.0.compact(Table::PersonKeys).await?;
        }
        Ok(())
    }

    async fn erasing(&self, of: ErasurePart, limit: usize) -> Result<Vec<UserId>> {
        at_most(limit, 1_000)?;
        self.0
            .read(limit, move |view| {
                view.after(Table::PersonKeys, &[part(of)], None)
                    .take(limit)
                    .map(|row| Ok(UserId(last_id(&row?.0)?)))
                    .collect()
            })
            .await
    }

    async fn erased(&self, of: ErasurePart, user: UserId) -> Result<()> {
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::PersonKeys, tagged(part(of), user.0.as_bytes()));
                Ok(())
            })
            .await
    }

    async fn all(&self, after: Option<UserId>, limit: usize) -> Result<Vec<(UserId, KeyState)>> {
        at_most(limit, 1_000)?;
        self.0
            .read(limit, move |view| {
                let after = after.map(|user| *user.0.as_bytes());
                let after = after.as_ref().map(|id| &id[..]);
                view.after(Table::PersonKeys, &[KEY], after)
                    .take(limit)
                    .map(|row| {
                        let (key, row) = row?;
                        let id = Uuid::from_slice(&key[1..]).map_err(Error::internal)?;
                        Ok((UserId(id), read_json(&row)?))
                    })
                    .collect()
            })
            .await
    }
}
