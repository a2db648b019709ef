//! What somebody does who gets an account's mail: confirming an address, and setting a forgotten password anew (AUTH-10).

use carillon_domain::{
    Error, ErrorCode, Result, UserId,
    account::{ClientInfo, NameKind},
    security::SecurityEventKind,
    validate,
};
use zeroize::Zeroizing;

use crate::{
    limits, names,
    post::{self, Errand, Post, Purpose, bad_token, state_of},
    service::{Auth, bounded, check_email, check_new_password},
};

impl Auth {
    fn post(&self) -> Result<&Post> {
        self.post.as_ref().ok_or_else(|| {
            Error::new(
                ErrorCode::FailedPrecondition,
                "mail is not configured: ask whoever runs this server",
            )
        })
    }

    pub(crate) async fn confirm_email(&self, token: &str, client: ClientInfo) -> Result<()> {
        let post = self.post()?;
        let ephemeral = self.ports.ephemeral.as_ref();
        let (user, pending) = post::pending(ephemeral, Purpose::Confirm, token).await?;
        let address = pending.address.ok_or_else(bad_token)?;
        let accounts = self.ports.accounts.by_ids(&[user]).await?;
        let mut account = accounts.into_iter().next().ok_or_else(bad_token)?;
        let before = account.email.clone();
        // A second time, after an answer that was lost, it has the address.
        let is_done = before.as_ref() == Some(&address);
        if !is_done && pending.state != Some(state_of(&account)) {
            return Err(bad_token());
        }
        self.rename(&mut account, NameKind::Email, &address).await?;
        // Last: what failed can be tried again, and doing it twice changes nothing.
        post::spend(ephemeral, Purpose::Confirm, user).await?;
        if before.as_ref() != Some(&address) {
            let kind = SecurityEventKind::EmailChanged;
            self.notes.note(user, kind, None, bounded(client)).await;
            if let Some(address) = before {
                post.ask(Errand::Moved { address });
            }
        }
        Ok(())
    }

    pub(crate) async fn mail_reset(&self, email: &str) -> Result<()> {
        let post = self.post()?;
        let address = names::email(email);
        let mut problems = validate::Problems::default();
        check_email(&mut problems, &address);
        problems.into_result()?;
        post.ask(Errand::Reset { address });
        Ok(())
    }

    pub(crate) async fn set_forgotten_password(
        &self,
        token: &str,
        new: String,
        client: ClientInfo,
    ) -> Result<()> {
        self.post()?;
        let new = Zeroizing::new(new);
        let mut problems = validate::Problems::default();
        check_new_password(&mut problems, "new_password", &new);
        problems.into_result()?;
        let ephemeral = self.ports.ephemeral.as_ref();
        let (user, pending) = post::pending(ephemeral, Purpose::Reset, token).await?;
        let accounts = self.ports.accounts.by_ids(&[user]).await?;
        let account = accounts.into_iter().next().ok_or_else(bad_token)?;
        // After a change of password or address the token is for another account, so to say; after its own as well.
        if pending.state != Some(state_of(&account)) {
            return Err(bad_token());
        }
        let hash = self.passwords.hash(new).await?;
        // Before too: should it fail afterwards, nobody is left who could have been there for long.
        self.end_all(user).await?;
        let old = account.password_hash.as_deref();
        let accounts = &self.ports.accounts;
        if !accounts.replace_password_hash(user, old, &hash).await? {
            return Err(bad_token());
        }
        self.end_all(user).await?;
        for purpose in Purpose::ALL {
            post::spend(ephemeral, purpose, user).await?;
        }
        let locked = limits::key("failed-logins-of", &[&user.to_string()]);
        ephemeral.remove(&locked).await?;
        let kind = SecurityEventKind::PasswordReset;
        self.notes.note(user, kind, None, bounded(client)).await;
        Ok(())
    }

    async fn end_all(&self, user: UserId) -> Result<()> {
        for session in self.ports.sessions.list(user).await? {
            self.end_other(user, session.device).await?;
        }
        Ok(())
    }
}
