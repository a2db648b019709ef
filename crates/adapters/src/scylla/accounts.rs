//! [`AccountStore`]: users by id, and a claim per name.
//!
//! A creation first claims each name (LWT), in one fixed order so that two creations never wait for each other, then stores the
//! user (LWT). The user's row decides: a claim without it is not yet taken. When a creation crashed in between, its claims are
//! taken over after [`STALE_CLAIM`], but only once a row that says "given up" holds the crashed creation's id: should it go on
//! after all, its last step fails. So the clock decides how long somebody waits, never who owns a name.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result, Timestamp, UserId,
    account::{Account, User},
    ports::AccountStore,
    time::{Clock, SystemClock},
};
use scylla::{
    statement::prepared::PreparedStatement,
    value::{CqlTimestamp, CqlValue, MaybeUnset},
};
use uuid::Uuid;

use super::database::{Conditional, Database, column, cql_time};

/// A claim of a creation that hasn't finished for so long belongs to a crashed one.
const STALE_CLAIM: Duration = Duration::from_secs(60);
/// How long a creation waits for another one that claimed the same name to succeed or give up.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often it looks.
const POLL: Duration = Duration::from_millis(25);

pub(super) struct Accounts {
    database: Database,
    claim: PreparedStatement,
    take_over: PreparedStatement,
    release: PreparedStatement,
    claimed_by: PreparedStatement,
    store: PreparedStatement,
    give_up: PreparedStatement,
    by_id: PreparedStatement,
    replace_hash: PreparedStatement,
}

/// A unique name of an account.
#[derive(Clone, Copy)]
struct Name<'a> {
    kind: &'static str,
    /// As the API calls it.
    field: &'static str,
    text: &'a str,
}

/// A row of `users`.
type Columns = (
    Uuid,
    Option<String>,
    Option<String>,
    Option<CqlTimestamp>,
    Option<String>,
    Option<String>,
    Option<String>,
);

/// What claiming a name came to.
enum Claim {
    Ours,
    Taken,
}

impl Accounts {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            claim: database
                .prepare_once("INSERT INTO account_names (kind, name, user, claimed_at) VALUES (?, ?, ?, ?) IF NOT EXISTS")
                .await?,
            take_over: database
                .prepare_once("UPDATE account_names SET user = ?, claimed_at = ? WHERE kind = ? AND name = ? IF user = ?")
                .await?,
            release: database
                .prepare_once("DELETE FROM account_names WHERE kind = ? AND name = ? IF user = ?")
                .await?,
            claimed_by: database
                .prepare("SELECT user, claimed_at FROM account_names WHERE kind = ? AND name = ?")
                .await?,
            store: database
                .prepare_once("INSERT INTO users (id, username, display_name, created_at, email, phone, password_hash) VALUES (?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS")
                .await?,
            give_up: database
                .prepare_once("INSERT INTO users (id, abandoned) VALUES (?, true) IF NOT EXISTS")
                .await?,
            by_id: database
                .prepare("SELECT id, username, display_name, created_at, email, phone, password_hash FROM users WHERE id = ?")
                .await?,
            replace_hash: database
                .prepare_once("UPDATE users SET password_hash = ? WHERE id = ? IF password_hash = ?")
                .await?,
            database: database.clone(),
        })
    }

    async fn create_with_names(&self, account: &Account, names: &[Name<'_>]) -> Result<()> {
        for (claimed, name) in names.iter().enumerate() {
            let refused = match self.claim(*name, account.user.id).await {
                Ok(Claim::Ours) => continue,
                Ok(Claim::Taken) => {
                    Error::new(ErrorCode::AlreadyExists, "this account exists already")
                        .with_field(name.field, "is taken")
                }
                Err(error) => error,
            };
            self.release(&names[..claimed], account.user.id).await;
            return Err(refused);
        }
        let values = (
            account.user.id.0,
            &account.user.username,
            &account.user.display_name,
            cql_time(account.user.created_at),
            MaybeUnset::from_option(account.email.as_deref()),
            MaybeUnset::from_option(account.phone.as_deref()),
            MaybeUnset::from_option(account.password_hash.as_deref()),
        );
        match self
            .database
            .conditional("store_user", &self.store, values)
            .await?
        {
            Conditional::Applied => Ok(()),
            // The same creation again, after an answer that was lost.
            Conditional::Refused(_)
                if self.by_id(account.user.id.0).await?.as_ref() == Some(account) =>
            {
                Ok(())
            }
            // Somebody took this creation for crashed; what is still claimed for it is given back.
            Conditional::Refused(_) => {
                self.release(names, account.user.id).await;
                Err(Error::new(
                    ErrorCode::Unavailable,
                    "creating the account took too long, try again",
                ))
            }
        }
    }

    /// Claims a name for a user, waiting a little for another creation that has claimed it but isn't done.
    async fn claim(&self, name: Name<'_>, user: UserId) -> Result<Claim> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // A plain read first: of many that want one name, only those that find it free compete for it.
            let Some((other, claimed_at)) = self.claim_of(name).await? else {
                let now = cql_time(SystemClock.now());
                let values = (name.kind, name.text, user.0, now);
                self.database
                    .conditional("claim_name", &self.claim, values)
                    .await?;
                continue;
            };
            if other == user.0 {
                return Ok(Claim::Ours);
            }
            if self.by_id(other).await?.is_some() {
                return Ok(Claim::Taken);
            }
            if SystemClock.now().since(claimed_at) >= STALE_CLAIM {
                self.take_over(name, other, user).await?;
                continue;
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    "another account with this name is being created, try again",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn claim_of(&self, name: Name<'_>) -> Result<Option<(Uuid, Timestamp)>> {
        let row = self
            .database
            .row::<(Uuid, CqlTimestamp)>("claim_of_name", &self.claimed_by, (name.kind, name.text))
            .await?;
        Ok(row.map(|(user, claimed_at)| (user, Timestamp(claimed_at.0))))
    }

    /// Takes a claim from a creation that crashed, unless it finishes in this moment.
    async fn take_over(&self, name: Name<'_>, crashed: Uuid, user: UserId) -> Result<()> {
        self.database
            .conditional("give_up_user", &self.give_up, (crashed,))
            .await?;
        if self.by_id(crashed).await?.is_some() {
            return Ok(());
        }
        let now = cql_time(SystemClock.now());
        let values = (user.0, now, name.kind, name.text, crashed);
        self.database
            .conditional("take_over_name", &self.take_over, values)
            .await
            .map(drop)
    }

    /// Gives claims back. A failure only means that the names are free a little later.
    async fn release(&self, names: &[Name<'_>], user: UserId) {
        for name in names {
            let values = (name.kind, name.text, user.0);
            if let Err(error) = self
                .database
                .conditional("release_name", &self.release, values)
                .await
            {
                tracing::warn!(%error, "a claimed name was not given back; it is free again later");
            }
        }
    }

    async fn by_id(&self, id: Uuid) -> Result<Option<Account>> {
        let row = self
            .database
            .row::<Columns>("user_by_id", &self.by_id, (id,))
            .await?;
        Ok(row.and_then(account))
    }

    async fn by_name(&self, kind: &str, name: &str) -> Result<Option<Account>> {
        let claimed = self
            .database
            .row::<(Uuid, CqlTimestamp)>("user_by_name", &self.claimed_by, (kind, name))
            .await?;
        match claimed {
            Some((id, _)) => self.by_id(id).await,
            None => Ok(None),
        }
    }
}

#[async_trait]
impl AccountStore for Accounts {
    async fn create(&self, account: &Account) -> Result<()> {
        let username = account.user.username.to_lowercase();
        let mut names = vec![Name {
            kind: "username",
            field: "username",
            text: &username,
        }];
        names.extend(account.email.as_deref().map(|text| Name {
            kind: "email",
            field: "email",
            text,
        }));
        names.extend(account.phone.as_deref().map(|text| Name {
            kind: "phone",
            field: "phone_number",
            text,
        }));
        self.create_with_names(account, &names).await
    }

    async fn by_ids(&self, ids: &[UserId]) -> Result<Vec<Account>> {
        let rows = self
            .database
            .rows_by_key::<Columns>("users_by_ids", &self.by_id, ids.iter().map(|id| id.0))
            .await?;
        Ok(rows.into_iter().filter_map(account).collect())
    }

    async fn by_username(&self, username: &str) -> Result<Option<Account>> {
        self.by_name("username", &username.to_lowercase()).await
    }

    async fn by_email(&self, email: &str) -> Result<Option<Account>> {
        self.by_name("email", email).await
    }

    async fn by_phone(&self, phone: &str) -> Result<Option<Account>> {
        self.by_name("phone", phone).await
    }

    async fn replace_password_hash(&self, user: UserId, old: &str, new: &str) -> Result<bool> {
        let values = (new, user.0, old);
        let outcome = self
            .database
            .conditional("replace_password_hash", &self.replace_hash, values)
            .await?;
        Ok(match outcome {
            Conditional::Applied => true,
            // Hashes are salted: nobody else stores this one.
            Conditional::Refused(row) => {
                old != new
                    && matches!(column(&row, "password_hash"), Some(CqlValue::Text(stored)) if stored == new)
            }
        })
    }
}

/// `None` for a creation that was given up.
fn account(
    (id, username, display_name, created_at, email, phone, password_hash): Columns,
) -> Option<Account> {
    Some(Account {
        user: User {
            id: UserId(id),
            username: username?,
            display_name: display_name?,
            created_at: Timestamp(created_at?.0),
        },
        email,
        phone,
        password_hash,
    })
}
