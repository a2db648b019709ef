//! [`PeopleIndex`]: an entry per term and person beside the accounts.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{Error, Result, UserId, ports::PeopleIndex};
use uuid::Uuid;

use super::{
    at_most,
    engine::{Durability, Engine},
    tables::Table,
};

const TERM: u8 = b's';
/// Between a term and a person; terms have no control characters.
const END: u8 = 0;

/// People by the beginnings of their names.
pub(super) struct Index(pub(super) Arc<Engine>);

fn prefix_key(prefix: &str) -> Vec<u8> {
    let mut key = vec![TERM];
    key.extend_from_slice(prefix.as_bytes());
    key
}

fn key(term: &str, user: UserId) -> Vec<u8> {
    let mut key = prefix_key(term);
    key.push(END);
    key.extend_from_slice(user.0.as_bytes());
    key
}

fn read(key: &[u8]) -> Result<(String, UserId)> {
    let malformed = || Error::defect("an entry of the people's index is malformed");
    let (rest, user) = key.split_last_chunk::<16>().ok_or_else(malformed)?;
    let term = rest.get(1..rest.len().saturating_sub(1));
    let term = std::str::from_utf8(term.ok_or_else(malformed)?).map_err(Error::internal)?;
    Ok((term.to_owned(), UserId(Uuid::from_bytes(*user))))
}

#[async_trait]
impl PeopleIndex for Index {
    async fn put(&self, term: &str, user: UserId) -> Result<()> {
        let key = key(term, user);
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.put(Table::Accounts, key, *b"");
                Ok(())
            })
            .await
    }

    async fn remove(&self, term: &str, user: UserId) -> Result<()> {
        let key = key(term, user);
        self.0
            .commit(Durability::Synced, move |transaction| {
                transaction.remove(Table::Accounts, key);
                Ok(())
            })
            .await
    }

    async fn find(
        &self,
        prefix: &str,
        after: Option<(&str, UserId)>,
        limit: usize,
    ) -> Result<Vec<(String, UserId)>> {
        at_most(limit, 1_000)?;
        let prefix = prefix_key(prefix);
        let after = match after.map(|(term, user)| key(term, user)) {
            Some(key) if key.starts_with(&prefix) => Some(key[prefix.len()..].to_vec()),
            Some(_) => return Err(Error::defect("a page continues after another prefix")),
            None => None,
        };
        self.0
            .read(limit, move |view| {
                view.after(Table::Accounts, &prefix, after.as_deref())
                    .take(limit)
                    .map(|row| read(&row?.0))
                    .collect()
            })
            .await
    }
}
