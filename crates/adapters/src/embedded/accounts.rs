//! [`AccountStore`]: accounts by id, and an entry per name. A creation or change checks and writes all of them as one
//! change.

use std::sync::Arc;

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result, UserId,
    account::{Account, NameKind, ProfileChange},
    ports::AccountStore,
};
use uuid::Uuid;

use super::{
    at_most,
    codec::{json, read_json, tagged},
    engine::{Durability, Engine, View},
    tables::Table,
};

pub(super) const ACCOUNT: u8 = b'a';
const USERNAME: u8 = b'u';
const EMAIL: u8 = b'e';
const PHONE: u8 = b'p';

/// Accounts.
pub(super) struct Accounts(pub(super) Arc<Engine>);

#[async_trait]
impl AccountStore for Accounts {
    async fn create(&self, account: &Account) -> Result<()> {
        let id = account.user.id;
        let row = json(account)?;
        let names: Vec<_> = names(account).collect();
        self.0
            .commit(Durability::Synced, move |transaction| {
                let mut taken = Vec::new();
                for (field, key) in &names {
                    if transaction.get(Table::Accounts, key.as_slice())?.is_some() {
                        taken.push(*field);
                    }
                }
                if !taken.is_empty() {
                    let error = Error::new(ErrorCode::AlreadyExists, "this name is taken");
                    return Err(taken.into_iter().fold(error, |error, field| {
                        error.with_field(field, "is taken already")
                    }));
                }
                for (_, key) in names {
                    transaction.put(Table::Accounts, key, *id.0.as_bytes());
                }
                transaction.put(Table::Accounts, tagged(ACCOUNT, id.0.as_bytes()), row);
                Ok(())
            })
            .await
    }

    async fn by_ids(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        at_most(ids.len(), 1_000)?;
        let ids = ids.to_vec();
        self.0
            .read(ids.len(), move |view| {
                ids.into_iter()
                    .filter_map(|id| by_id(view, id).transpose())
                    .collect()
            })
            .await
    }

    async fn by_username(&self, username: &str) -> Result<Option<Account>> {
        by_name(&self.0.view(), &username_key(username))
    }

    async fn by_email(&self, email: &str) -> Result<Option<Account>> {
        by_name(&self.0.view(), &tagged(EMAIL, email.as_bytes()))
    }

    async fn by_phone(&self, phone: &str) -> Result<Option<Account>> {
        by_name(&self.0.view(), &tagged(PHONE, phone.as_bytes()))
    }

    async fn replace_password_hash(
        &self,
        user: UserId,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool> {
        let key = tagged(ACCOUNT, user.0.as_bytes());
        let (old, new) = (old.map(str::to_owned), new.to_owned());
        self.0
            .commit(Durability::Synced, move |transaction| {
                let Some(row) = transaction.get(Table::Accounts, key.as_slice())? else {
                    return Ok(false);
                };
                let mut account: Account = read_json(&row)?;
                if account.password_hash != old {
                    return Ok(false);
                }
                account.password_hash = Some(new);
                transaction.put(Table::Accounts, key, json(&account)?);
                Ok(true)
            })
            .await
    }

    async fn change_profile(&self, user: UserId, change: &ProfileChange) -> Result<bool> {
        let key = tagged(ACCOUNT, user.0.as_bytes());
        let change = change.clone();
        self.0
            .commit(Durability::Synced, move |transaction| {
                let Some(row) = transaction.get(Table::Accounts, key.as_slice())? else {
                    return Ok(false);
                };
                let mut account: Account = read_json(&row)?;
                change.apply(&mut account.user);
                transaction.put(Table::Accounts, key, json(&account)?);
                Ok(true)
            })
            .await
    }

    async fn rename(
        &self,
        user: UserId,
        kind: NameKind,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool> {
        let key = tagged(ACCOUNT, user.0.as_bytes());
        let (old, new) = (old.map(str::to_owned), new.to_owned());
        self.0
            .commit(Durability::Synced, move |transaction| {
                let Some(row) = transaction.get(Table::Accounts, key.as_slice())? else {
                    return Ok(false);
                };
                let mut account: Account = read_json(&row)?;
                if account.name(kind) != old.as_deref() {
                    return Ok(false);
                }
                let name = name_key(kind, &new);
                if let Some(owner) = transaction.get(Table::Accounts, name.as_slice())?
                    && *owner != *user.0.as_bytes()
                {
                    return Err(Error::new(ErrorCode::AlreadyExists, "this name is taken")
                        .with_field(kind.field(), "is taken already"));
                }
                if let Some(old) = &old {
                    transaction.remove(Table::Accounts, name_key(kind, old));
                }
                transaction.put(Table::Accounts, name, *user.0.as_bytes());
                account.set_name(kind, &new);
                transaction.put(Table::Accounts, key, json(&account)?);
                Ok(true)
            })
            .await
    }

    async fn erase(&self, user: UserId) -> Result<bool> {
        let key = tagged(ACCOUNT, user.0.as_bytes());
        self.0
            .commit(Durability::Synced, move |transaction| {
                let Some(row) = transaction.get(Table::Accounts, key.as_slice())? else {
                    return Ok(false);
                };
                let account: Account = read_json(&row)?;
                for (_, name) in names(&account) {
                    transaction.remove(Table::Accounts, name);
                }
                transaction.remove(Table::Accounts, key);
                Ok(true)
            })
            .await
    }
}

/// The names of an account, each with its field in the API.
fn names(account: &Account) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let email = account.email.as_ref();
    let phone = account.phone.as_ref();
    std::iter::once(("username", username_key(&account.user.username)))
        .chain(email.map(|email| ("email", tagged(EMAIL, email.as_bytes()))))
        .chain(phone.map(|phone| ("phone_number", tagged(PHONE, phone.as_bytes()))))
}

fn name_key(kind: NameKind, name: &str) -> Vec<u8> {
    match kind {
        NameKind::Username => username_key(name),
        NameKind::Email => tagged(EMAIL, name.as_bytes()),
    }
}

fn username_key(username: &str) -> Vec<u8> {
    tagged(USERNAME, username.to_lowercase().as_bytes())
}

fn by_id(view: &View<'_>, id: UserId) -> Result<Option<Account>> {
    view.get(Table::Accounts, tagged(ACCOUNT, id.0.as_bytes()))?
        .map(|row| read_json(&row))
        .transpose()
}

fn by_name(view: &View<'_>, key: &[u8]) -> Result<Option<Account>> {
    let Some(id) = view.get(Table::Accounts, key)? else {
        return Ok(None);
    };
    by_id(
        view,
        UserId(Uuid::from_slice(&id).map_err(Error::internal)?),
    )
}
