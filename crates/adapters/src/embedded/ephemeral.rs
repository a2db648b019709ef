//! [`Ephemeral`]: values, counters and claims that end. They survive a restart of the process, but are not synced: losing the
//! last moments of them with the machine is allowed, and limits are counted on every request.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{Error, Result, ports::Ephemeral};

use super::{
    engine::{Durability, Engine, Transaction},
    expiry,
    tables::Table,
};

const MAX_KEY: usize = 256;
const MAX_VALUE: usize = 4096;

/// Ephemeral values. One name space: a counter's name doesn't serve as a value's.
pub(super) struct EphemeralValues(pub(super) Arc<Engine>);

impl EphemeralValues {
    async fn change<T: Send + 'static>(
        &self,
        key: &str,
        change: impl FnOnce(&mut Transaction<'_>, &[u8]) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if key.len() > MAX_KEY {
            return Err(Error::defect("an ephemeral key is too long"));
        }
        let key = key.as_bytes().to_vec();
        self.0
            .commit(Durability::Buffered, move |transaction| {
                change(transaction, &key)
            })
            .await
    }
}

#[async_trait]
impl Ephemeral for EphemeralValues {
    async fn put(&self, key: &str, value: &[u8], ttl: Duration) -> Result<()> {
        if value.len() > MAX_VALUE {
            return Err(Error::defect("an ephemeral value is too long"));
        }
        let end = self.0.clock.now().plus(ttl);
        let value = value.to_vec();
        self.change(key, move |transaction, key| {
            expiry::put(transaction, Table::Ephemeral, key, end, &value);
            Ok(())
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let row = self.0.view().get(Table::Ephemeral, key)?;
        Ok(expiry::live(row, self.0.clock.now())?.map(|value| value.to_vec()))
    }

    async fn take(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let now = self.0.clock.now();
        self.change(key, move |transaction, key| {
            let row = transaction.get(Table::Ephemeral, key)?;
            let value = expiry::live(row, now)?;
            if value.is_some() {
                transaction.remove(Table::Ephemeral, key);
            }
            Ok(value.map(|value| value.to_vec()))
        })
        .await
    }

    async fn increment(&self, key: &str, window: Duration) -> Result<u64> {
        let now = self.0.clock.now();
        self.change(key, move |transaction, key| {
            let row = transaction.get(Table::Ephemeral, key)?;
            let end = row.as_deref().map(expiry::end_of).transpose()?;
            match (expiry::live(row, now)?, end) {
                (Some(count), Some(end)) => {
                    let count = number(&count)?.saturating_add(1);
                    expiry::replace(
                        transaction,
                        Table::Ephemeral,
                        key,
                        end,
                        &count.to_be_bytes(),
                    );
                    Ok(count)
                }
                _ => {
                    let end = now.plus(window);
                    expiry::put(transaction, Table::Ephemeral, key, end, &1u64.to_be_bytes());
                    Ok(1)
                }
            }
        })
        .await
    }

    async fn decrement(&self, key: &str) -> Result<()> {
        let now = self.0.clock.now();
        self.change(key, move |transaction, key| {
            let row = transaction.get(Table::Ephemeral, key)?;
            let end = row.as_deref().map(expiry::end_of).transpose()?;
            if let (Some(count), Some(end)) = (expiry::live(row, now)?, end) {
                let count = number(&count)?.saturating_sub(1).to_be_bytes();
                expiry::replace(transaction, Table::Ephemeral, key, end, &count);
            }
            Ok(())
        })
        .await
    }

    async fn claim(&self, key: &str, ttl: Duration) -> Result<bool> {
        let now = self.0.clock.now();
        self.change(key, move |transaction, key| {
            let row = transaction.get(Table::Ephemeral, key)?;
            if expiry::live(row, now)?.is_some() {
                return Ok(false);
            }
            expiry::put(transaction, Table::Ephemeral, key, now.plus(ttl), &[]);
            Ok(true)
        })
        .await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        self.change(key, move |transaction, key| {
            transaction.remove(Table::Ephemeral, key);
            Ok(())
        })
        .await
    }
}

fn number(value: &[u8]) -> Result<u64> {
    <[u8; 8]>::try_from(value)
        .map(u64::from_be_bytes)
        .map_err(|_| Error::defect("an ephemeral value was counted"))
}
