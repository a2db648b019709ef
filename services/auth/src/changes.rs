//! Changes of usernames, e-mail addresses and passwords (AUTH-09). Whoever holds a token for a moment must not get the account for good:
//! each change needs the password, and tries of it are limited.

use std::time::Duration;

use carillon_domain::{
    Error, ErrorCode, Result,
    account::{Account, Identity, NameKind, User},
    security::SecurityEventKind,
    validate,
};
use zeroize::Zeroizing;

use crate::{
    limits::{self, Limit},
    names,
    password::Verdict,
    post::{self, Errand, Purpose},
    service::{Auth, check_email, check_new_password, check_username},
};

/// For how long a login stands for the password of somebody who has none.
const RECENT: Duration = Duration::from_secs(10 * 60);
/// Changes of one account within a day.
const CHANGES: Limit = Limit {
    count: 20,
    window: Duration::from_secs(24 * 3600),
};

impl Auth {
    pub(crate) async fn rename_user(
        &self,
        who: &Identity,
        username: &str,
        password: Option<String>,
    ) -> Result<User> {
        let mut problems = validate::Problems::default();
        check_username(&mut problems, username);
        problems.into_result()?;
        let mut account = self.admit(who, password, "password").await?;
        self.rename(&mut account, NameKind::Username, username)
            .await?;
        self.note_change(who, SecurityEventKind::UsernameChanged)
            .await;
        Ok(account.user)
    }

    pub(crate) async fn replace_email(
        &self,
        who: &Identity,
        email: &str,
        password: Option<String>,
    ) -> Result<()> {
        let email = names::email(email);
        let mut problems = validate::Problems::default();
        check_email(&mut problems, &email);
        problems.into_result()?;
        let mut account = self.admit(who, password, "password").await?;
        if let Some(post) = &self.post {
            // Changed once it is confirmed: see `recovery`.
            let (user, address) = (who.user, email);
            post.ask(Errand::Confirm { user, address });
            return self.end_others(who).await.map(drop);
        }
        self.rename(&mut account, NameKind::Email, &email).await?;
        self.note_change(who, SecurityEventKind::EmailChanged).await;
        self.end_others(who).await.map(drop)
    }

    pub(crate) async fn replace_password(
        &self,
        who: &Identity,
        current: Option<String>,
        new: String,
    ) -> Result<()> {
        let new = Zeroizing::new(new);
        let mut problems = validate::Problems::default();
        check_new_password(&mut problems, "new_password", &new);
        problems.into_result()?;
        let account = self.admit(who, current, "current_password").await?;
        let hash = self.passwords.hash(new).await?;
        let old = account.password_hash.as_deref();
        let accounts = &self.ports.accounts;
        if !accounts.replace_password_hash(who.user, old, &hash).await? {
            return Err(overtaken());
        }
        for purpose in Purpose::ALL {
            post::spend(self.ports.ephemeral.as_ref(), purpose, who.user).await?;
        }
        self.note_change(who, SecurityEventKind::PasswordChanged)
            .await;
        self.end_others(who).await.map(drop)
    }

    /// The caller's account, if they know its password, or have logged in just now where there is none.
    pub(crate) async fn admit(
        &self,
        who: &Identity,
        password: Option<String>,
        field: &str,
    ) -> Result<Account> {
        let password = password.map(Zeroizing::new);
        let gone = || Error::unauthenticated("the account is gone");
        let accounts = self.ports.accounts.by_ids(&[who.user]).await?;
        let account = accounts.into_iter().next().ok_or_else(gone)?;
        let ephemeral = self.ports.ephemeral.as_ref();
        let user = who.user.to_string();
        let Some(stored) = account.password_hash.as_deref() else {
            let session = self.ports.sessions.get(who.user, who.device).await?;
            let now = self.ports.clock.now();
            if session.is_none_or(|session| now.since(session.created_at) >= RECENT) {
                return Err(Error::new(
                    ErrorCode::FailedPrecondition,
                    "this account has no password: log in again, and try within ten minutes",
                ));
            }
            self.count_change(&user).await?;
            return Ok(account);
        };
        let Some(password) = password else {
            return Err(Error::invalid(field, "is required"));
        };
        if password.len() > validate::MAX_PASSWORD_BYTES {
            return Err(wrong_password(field));
        }
        let mut tries = limits::Tries::new(ephemeral, self.options.failed_login_window);
        tries
            .count(
                limits::key("failed-checks-of", &[&user]),
                self.options.max_failed_logins,
            )
            .await?;
        let verdict = self.passwords.verify(password, Some(stored)).await;
        if !matches!(verdict, Ok(Verdict::Wrong)) {
            tries.take_back().await;
        }
        if verdict? == Verdict::Wrong {
            let client = self.client_of(who).await.unwrap_or_default();
            let (kind, device) = (SecurityEventKind::LoginFailed, Some(who.device));
            self.notes.note(who.user, kind, device, client).await;
            return Err(wrong_password(field));
        }
        self.count_change(&user).await?;
        Ok(account)
    }

    async fn count_change(&self, user: &str) -> Result<()> {
        let key = limits::key("changes-of", &[user]);
        let detail = "too many changes of this account, try again tomorrow";
        limits::count(self.ports.ephemeral.as_ref(), &key, CHANGES, detail).await
    }

    pub(crate) async fn rename(
        &self,
        account: &mut Account,
        kind: NameKind,
        new: &str,
    ) -> Result<()> {
        let old = account.name(kind).map(str::to_owned);
        if old.as_deref() == Some(new) {
            return Ok(());
        }
        let id = account.user.id;
        let accounts = &self.ports.accounts;
        let before = account.user.clone();
        account.set_name(kind, new);
        self.file(&account.user).await?;
        let renamed = accounts.rename(id, kind, old.as_deref(), new).await;
        // Whichever names they don't have now.
        let unwanted = match renamed {
            Ok(true) => &before,
            _ => &account.user,
        };
        self.unfile(unwanted).await;
        match renamed? {
            true => Ok(()),
            false => Err(overtaken()),
        }
    }

    async fn note_change(&self, who: &Identity, kind: SecurityEventKind) {
        let client = self.client_of(who).await.unwrap_or_default();
        self.notes
            .note(who.user, kind, Some(who.device), client)
            .await;
    }
}

fn wrong_password(field: &str) -> Error {
    Error::new(ErrorCode::PermissionDenied, "the password is wrong").with_field(field, "is wrong")
}

fn overtaken() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the account was changed at the same time, try again",
    )
}
