//! [`AccountStore`]: users by id, and a claim per name.
//!
//! A creation first claims each name (LWT), in one fixed order so that two creations never wait for each other, then stores the
//! user (LWT). The user's row decides: a claim without it is not yet taken. When a creation crashed in between, its claims are
//! taken over after [`STALE_CLAIM`], but only once a row that says "given up" holds the crashed creation's id: should it go on
//! after all, its last step fails. So the clock decides how long somebody waits, never who owns a name.
//!
//! A change of a name claims the new one, then writes the user's row, then releases the old claim. A claim means nothing unless its
//! user's row has the name. Who takes over the claim of a crashed change first raises the fence in that row, which the change read
//! before it claimed: its last step fails from then on. A claim is taken over or released only as it was seen, by its time.

use std::time::Duration;

use async_trait::async_trait;
use carillon_domain::{
    Error, ErrorCode, Result, Timestamp, UserId,
    account::{About, Account, NameKind, ProfileChange, User},
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
/// How often to begin erasing again that a change of a name came in between of.
const ERASE_TRIES: usize = 10;
/// How often it looks.
const POLL: Duration = Duration::from_millis(25);

pub(super) struct Accounts {
    database: Database,
    claim: PreparedStatement,
    take_over: PreparedStatement,
    release: PreparedStatement,
    release_seen: PreparedStatement,
    claimed_by: PreparedStatement,
    store: PreparedStatement,
    give_up: PreparedStatement,
    fence: PreparedStatement,
    holder: PreparedStatement,
    by_id: PreparedStatement,
    replace_hash: PreparedStatement,
    first_hash: PreparedStatement,
    change_profile: PreparedStatement,
    rename_user: PreparedStatement,
    change_email: PreparedStatement,
    erase: PreparedStatement,
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
    Option<String>,
    Option<String>,
);

/// What claiming a name came to.
enum Claim {
    /// It is ours since then.
    Ours(Timestamp),
    Taken,
}

/// What a user's row says of names. A creation that was given up has none.
struct Holder {
    username: Option<String>,
    email: Option<String>,
    phone: Option<String>,
    display_name: Option<String>,
    fence: Option<Uuid>,
}

impl Holder {
    fn has(&self, kind: &str, text: &str) -> bool {
        match kind {
            "username" => self
                .username
                .as_ref()
                .is_some_and(|username| username.to_lowercase() == text),
            "email" => self.email.as_deref() == Some(text),
            _ => self.phone.as_deref() == Some(text),
        }
    }
}

impl Accounts {
    pub(super) async fn new(database: &Database) -> Result<Self> {
        Ok(Self {
            claim: database
                .prepare_once("INSERT INTO account_names (kind, name, user, claimed_at) VALUES (?, ?, ?, ?) IF NOT EXISTS")
                .await?,
            take_over: database
                .prepare_once("UPDATE account_names SET user = ?, claimed_at = ? WHERE kind = ? AND name = ? IF user = ? AND claimed_at = ?")
                .await?,
            release_seen: database
                .prepare_once("DELETE FROM account_names WHERE kind = ? AND name = ? IF user = ? AND claimed_at = ?")
                .await?,
            release: database
                .prepare_once("DELETE FROM account_names WHERE kind = ? AND name = ? IF user = ?")
                .await?,
            claimed_by: database
                .prepare("SELECT user, claimed_at FROM account_names WHERE kind = ? AND name = ?")
                .await?,
            store: database
                .prepare_once("INSERT INTO users (id, username, display_name, created_at, email, phone, password_hash, bio, status_text) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS")
                .await?,
            give_up: database
                .prepare_once("INSERT INTO users (id, abandoned) VALUES (?, true) IF NOT EXISTS")
                .await?,
            fence: database
                .prepare_once("UPDATE users SET name_fence = ? WHERE id = ? IF name_fence = ?")
                .await?,
            holder: database
                .prepare("SELECT username, email, phone, display_name, name_fence FROM users WHERE id = ?")
                .await?,
            first_hash: database
                .prepare_once("UPDATE users SET password_hash = ? WHERE id = ? IF password_hash = null AND username != null")
                .await?,
            change_profile: database
                .prepare_once("UPDATE users SET display_name = ?, bio = ?, status_text = ? WHERE id = ? IF username != null")
                .await?,
            rename_user: database
                .prepare_once("UPDATE users SET username = ?, display_name = ? WHERE id = ? IF username = ? AND display_name = ? AND name_fence = ?")
                .await?,
            change_email: database
                .prepare_once("UPDATE users SET email = ? WHERE id = ? IF email = ? AND username = ? AND name_fence = ?")
                .await?,
            erase: database
                .prepare_once("UPDATE users SET username = null, display_name = null, created_at = null, email = null, phone = null, password_hash = null, bio = null, status_text = null, abandoned = true WHERE id = ? IF username = ? AND email = ? AND phone = ?")
                .await?,
            by_id: database
                .prepare("SELECT id, username, display_name, created_at, email, phone, password_hash, bio, status_text FROM users WHERE id = ?")
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
                Ok(Claim::Ours(_)) => continue,
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
            MaybeUnset::from_option(some_text(&account.user.about.bio)),
            MaybeUnset::from_option(some_text(&account.user.about.status)),
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

    /// Claims a name for a user, waiting a little for somebody else who has claimed it but isn't done.
    async fn claim(&self, name: Name<'_>, user: UserId) -> Result<Claim> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // A plain read first: of many that want one name, only those that find it free compete for it.
            let Some((other, seen)) = self.claim_of(name).await? else {
                let now = SystemClock.now();
                let values = (name.kind, name.text, user.0, cql_time(now));
                let claimed = self
                    .database
                    .conditional("claim_name", &self.claim, values)
                    .await?;
                if matches!(claimed, Conditional::Applied) {
                    return Ok(Claim::Ours(now));
                }
                continue;
            };
            let now = Timestamp(SystemClock.now().0.max(seen.0 + 1));
            if other == user.0 {
                // Of an earlier try. Made anew, so that nobody who saw it stale takes it over.
                if self.replace_claim(name, (other, seen), (user, now)).await? {
                    return Ok(Claim::Ours(now));
                }
                continue;
            }
            let holder = self.holder(other).await?;
            if holder
                .as_ref()
                .is_some_and(|holder| holder.has(name.kind, name.text))
            {
                return Ok(Claim::Taken);
            }
            if now.since(seen) >= STALE_CLAIM {
                if self.shut_out(name, other, holder).await? {
                    self.replace_claim(name, (other, seen), (user, now)).await?;
                }
                continue;
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    "another account is about to have this name, try again",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Replaces a claim that is still as it was seen; whether it did.
    async fn replace_claim(
        &self,
        name: Name<'_>,
        (other, seen): (Uuid, Timestamp),
        (user, now): (UserId, Timestamp),
    ) -> Result<bool> {
        let values = (
            user.0,
            cql_time(now),
            name.kind,
            name.text,
            other,
            cql_time(seen),
        );
        let replaced = self
            .database
            .conditional("take_over_name", &self.take_over, values)
            .await?;
        Ok(matches!(replaced, Conditional::Applied))
    }

    async fn claim_of(&self, name: Name<'_>) -> Result<Option<(Uuid, Timestamp)>> {
        let row = self
            .database
            .row::<(Uuid, CqlTimestamp)>("claim_of_name", &self.claimed_by, (name.kind, name.text))
            .await?;
        Ok(row.map(|(user, claimed_at)| (user, Timestamp(claimed_at.0))))
    }

    /// Keeps whoever claimed a name and doesn't have it from getting it by that claim; whether they are kept from it.
    async fn shut_out(&self, name: Name<'_>, other: Uuid, holder: Option<Holder>) -> Result<bool> {
        match holder {
            // A creation: it can't store its row any more.
            None => {
                self.database
                    .conditional("give_up_user", &self.give_up, (other,))
                    .await?;
            }
            Some(holder) if holder.username.is_none() => {}
            // A change of a name, or one that didn't come to releasing its old name.
            Some(holder) => {
                let values = (Uuid::new_v4(), other, holder.fence);
                let fenced = self
                    .database
                    .conditional("fence_names", &self.fence, values)
                    .await?;
                if matches!(fenced, Conditional::Refused(_)) {
                    return Ok(false);
                }
            }
        }
        let now = self.holder(other).await?;
        Ok(!now.is_some_and(|holder| holder.has(name.kind, name.text)))
    }

    async fn holder(&self, id: Uuid) -> Result<Option<Holder>> {
        type Row = (
            Option<String>,
            Option<String>,
            Option<String>,
            Option<String>,
            Option<Uuid>,
        );
        let row = self
            .database
            .row::<Row>("names_of_user", &self.holder, (id,))
            .await?;
        Ok(
            row.map(|(username, email, phone, display_name, fence)| Holder {
                username,
                email,
                phone,
                display_name,
                fence,
            }),
        )
    }

    /// Writes the new name into the user's row, if all is as it was read.
    async fn write_name(
        &self,
        user: UserId,
        kind: NameKind,
        before: &Holder,
        new: &str,
    ) -> Result<Conditional> {
        match kind {
            NameKind::Username => {
                let display_name = match before.display_name == before.username {
                    true => Some(new),
                    false => before.display_name.as_deref(),
                };
                let values = (
                    new,
                    display_name,
                    user.0,
                    &before.username,
                    &before.display_name,
                    before.fence,
                );
                self.database
                    .conditional("rename_user", &self.rename_user, values)
                    .await
            }
            NameKind::Email => {
                let values = (new, user.0, &before.email, &before.username, before.fence);
                self.database
                    .conditional("change_email", &self.change_email, values)
                    .await
            }
        }
    }

    /// Gives a claim back that is still as it was seen. A failure only means that the name is free when somebody wants it.
    async fn release_seen(&self, name: Name<'_>, user: UserId, seen: Timestamp) {
        let values = (name.kind, name.text, user.0, cql_time(seen));
        let released = self
            .database
            .conditional("release_name", &self.release_seen, values)
            .await;
        if let Err(error) = released {
            tracing::warn!(%error, "a name was not given back; it is free again when somebody wants it");
        }
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
        let Some((id, _)) = claimed else {
            return Ok(None);
        };
        let account = self.by_id(id).await?;
        // A claim of a name that the account doesn't have yet, or no longer.
        Ok(account.filter(|account| match kind {
            "username" => account.user.username.to_lowercase() == name,
            "email" => account.email.as_deref() == Some(name),
            _ => account.phone.as_deref() == Some(name),
        }))
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

    async fn replace_password_hash(
        &self,
        user: UserId,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool> {
        let operation = "replace_password_hash";
        let outcome = match old {
            Some(old) => {
                let values = (new, user.0, old);
                self.database
                    .conditional(operation, &self.replace_hash, values)
                    .await?
            }
            None => {
                let values = (new, user.0);
                self.database
                    .conditional(operation, &self.first_hash, values)
                    .await?
            }
        };
        Ok(match outcome {
            Conditional::Applied => true,
            // Hashes are salted: nobody else stores this one.
            Conditional::Refused(row) => {
                old != Some(new)
                    && matches!(column(&row, "password_hash"), Some(CqlValue::Text(stored)) if stored == new)
            }
        })
    }

    async fn change_profile(&self, user: UserId, change: &ProfileChange) -> Result<bool> {
        if *change == ProfileChange::default() {
            return Ok(self.by_id(user.0).await?.is_some());
        }
        let values = (
            MaybeUnset::from_option(change.display_name.as_deref()),
            MaybeUnset::from_option(change.bio.as_deref()),
            MaybeUnset::from_option(change.status.as_deref()),
            user.0,
        );
        let changed = self
            .database
            .conditional("change_profile", &self.change_profile, values)
            .await?;
        Ok(matches!(changed, Conditional::Applied))
    }

    async fn rename(
        &self,
        user: UserId,
        kind: NameKind,
        old: Option<&str>,
        new: &str,
    ) -> Result<bool> {
        // Before the claim: see the module's documentation.
        let Some(before) = self.holder(user.0).await? else {
            return Ok(false);
        };
        if before.username.is_none() || name_in(&before, kind) != old {
            return Ok(false);
        }
        let field = kind.field();
        let name = |text| Name {
            kind: field,
            field,
            text,
        };
        let (old_text, new_text) = (old.map(|old| claimed(kind, old)), claimed(kind, new));
        let is_same_claim = old_text.as_deref() == Some(new_text.as_str());
        // Also of the same name: an old claim might be taken over by somebody who sees the account without it.
        let old_claim = match &old_text {
            Some(text) if !is_same_claim => self.claim_of(name(text)).await?,
            _ => None,
        };
        let ours = match self.claim(name(&new_text), user).await? {
            Claim::Ours(since) => since,
            Claim::Taken => {
                return Err(Error::new(ErrorCode::AlreadyExists, "this name is taken")
                    .with_field(field, "is taken"));
            }
        };
        let written = self.write_name(user, kind, &before, new).await?;
        if let Conditional::Refused(row) = written
            // The same write, after an answer that was lost.
            && !matches!(column(&row, field), Some(CqlValue::Text(stored)) if stored == new)
        {
            if !is_same_claim {
                self.release_seen(name(&new_text), user, ours).await;
            }
            return Ok(false);
        }
        if let (Some(text), Some((owner, seen))) = (&old_text, old_claim)
            && owner == user.0
        {
            self.release_seen(name(text), user, seen).await;
        }
        Ok(true)
    }

    async fn erase(&self, user: UserId) -> Result<bool> {
        // A change of a name may come in between: then what is there now is erased.
        for _ in 0..ERASE_TRIES {
            let Some(before) = self.holder(user.0).await? else {
                return Ok(false);
            };
            let Some(username) = &before.username else {
                return Ok(false);
            };
            let values = (user.0, username, &before.email, &before.phone);
            let erased = self
                .database
                .conditional("erase_user", &self.erase, values)
                .await?;
            if matches!(erased, Conditional::Refused(_)) {
                continue;
            }
            // What is not given back here belongs to nobody: whoever wants it takes it over.
            let folded = username.to_lowercase();
            let claims = [
                ("username", Some(&folded)),
                ("email", before.email.as_ref()),
                ("phone", before.phone.as_ref()),
            ];
            for (kind, text) in claims {
                let Some(text) = text else { continue };
                let name = Name {
                    kind,
                    field: kind,
                    text,
                };
                self.release(&[name], user).await;
            }
            return Ok(true);
        }
        Err(Error::new(
            ErrorCode::Unavailable,
            "the account's names are being changed, try again",
        ))
    }
}

/// Only columns that hold something are written.
fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// A name as it is claimed.
fn claimed(kind: NameKind, text: &str) -> String {
    match kind {
        NameKind::Username => text.to_lowercase(),
        NameKind::Email => text.to_owned(),
    }
}

fn name_in(holder: &Holder, kind: NameKind) -> Option<&str> {
    match kind {
        NameKind::Username => holder.username.as_deref(),
        NameKind::Email => holder.email.as_deref(),
    }
}

/// `None` for a creation that was given up.
fn account(
    (id, username, display_name, created_at, email, phone, password_hash, bio, status): Columns,
) -> Option<Account> {
    Some(Account {
        user: User {
            id: UserId(id),
            username: username?,
            display_name: display_name?,
            created_at: Timestamp(created_at?.0),
            about: About {
                bio: bio.unwrap_or_default(),
                status: status.unwrap_or_default(),
            },
        },
        email,
        phone,
        password_hash,
    })
}
