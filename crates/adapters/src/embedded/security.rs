//! [`SecurityLog`]: an entry per event beside the accounts. Keys hold the id's complement, so that the newest comes first.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Result, Timestamp, UserId,
    ports::SecurityLog,
    security::{SecurityEvent, Trail},
};
use uuid::Uuid;

use super::{
    at_most,
    codec::{json, read_json},
    engine::{Durability, Engine, Transaction, View},
    expiry,
    tables::Table,
};

const HISTORY: u8 = b'h';
/// Entries that a call may leave over the bound, and the next one removes.
const OVER: usize = 100;

/// What happened to accounts.
pub(super) struct Security(pub(super) Arc<Engine>);

fn prefix(trail: Trail, user: UserId) -> Vec<u8> {
    let trail = match trail {
        Trail::Logins => b'l',
        Trail::Failures => b'f',
        Trail::Locks => b'k',
        Trail::Changes => b'c',
    };
    let mut key = vec![HISTORY, trail];
    key.extend_from_slice(user.0.as_bytes());
    key
}

fn newest_first(id: Uuid) -> [u8; 16] {
    id.as_bytes().map(|byte| !byte)
}

/// The keys of a trail after its newest `keep`, with their ends.
fn surplus(view: &View<'_>, prefix: &[u8], keep: usize) -> Result<Vec<(Vec<u8>, Timestamp)>> {
    view.after(Table::Accounts, prefix, None)
        .skip(keep)
        .take(OVER)
        .map(|row| {
            let (key, row) = row?;
            Ok((key.to_vec(), expiry::end_of(&row)?))
        })
        .collect()
}

fn remove(transaction: &mut Transaction<'_>, rows: Vec<(Vec<u8>, Timestamp)>) {
    for (key, end) in rows {
        expiry::cut_short(transaction, Table::Accounts, &key, end);
    }
}

#[async_trait]
impl SecurityLog for Security {
    async fn append(
        &self,
        trail: Trail,
        user: UserId,
        event: &SecurityEvent,
        until: Timestamp,
        keep: usize,
    ) -> Result<()> {
        at_most(keep, 1_000)?;
        let prefix = prefix(trail, user);
        let mut key = prefix.clone();
        key.extend_from_slice(&newest_first(event.id));
        let row = json(event)?;
        self.0
            .commit(Durability::Synced, move |transaction| {
                expiry::put(transaction, Table::Accounts, &key, until, &row);
                Ok(())
            })
            .await?;
        let over = self
            .0
            .read(keep, move |view| surplus(view, &prefix, keep))
            .await?;
        if over.is_empty() {
            return Ok(());
        }
        self.0
            .commit(Durability::Buffered, move |transaction| {
                remove(transaction, over);
                Ok(())
            })
            .await
    }

    async fn list(
        &self,
        trail: Trail,
        user: UserId,
        before: Option<Uuid>,
        limit: usize,
    ) -> Result<Vec<SecurityEvent>> {
        at_most(limit, 1_000)?;
        let (prefix, now) = (prefix(trail, user), self.0.clock.now());
        self.0
            .read(limit, move |view| {
                let before = before.map(newest_first);
                let after = before.as_ref().map(|key| &key[..]);
                let mut found = Vec::new();
                for row in view.after(Table::Accounts, &prefix, after) {
                    if found.len() == limit {
                        break;
                    }
                    if let Some(row) = expiry::live(Some(row?.1), now)? {
                        found.push(read_json(&row)?);
                    }
                }
                Ok(found)
            })
            .await
    }

    async fn forget(&self, user: UserId) -> Result<()> {
        for trail in Trail::ALL {
            let prefix = prefix(trail, user);
            loop {
                let prefix = prefix.clone();
                let rows = self.0.read(OVER, move |view| surplus(view, &prefix, 0));
                let rows = rows.await?;
                if rows.is_empty() {
                    break;
                }
                self.0
                    .commit(Durability::Synced, move |transaction| {
                        remove(transaction, rows);
                        Ok(())
                    })
                    .await?;
            }
        }
        Ok(())
    }
}
