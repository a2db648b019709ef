//! What is done behind a caller's back because somebody may have to be written to (AUTH-10): whether there is such an account is looked up
//! here, so that neither an answer nor its time tells it. Bounded in waiting errands, in mails to an address and of a person.
//!
//! Errands are lost with the process: whoever waits for a mail asks again.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::{
    Error, Result, UserId,
    account::Account,
    ports::{AccountStore, Ephemeral},
};
use carillon_telemetry::metrics::{IntCounterVec, int_counter};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::{
    letters,
    limits::{self, Limit},
    mail::{Mail, MailOptions},
};

/// Errands that may wait; more are dropped.
const WAITING: usize = 1024;
/// Errands under way at once.
const AT_ONCE: usize = 8;
/// Pauses before a mail is tried again.
const PAUSES: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(15)];
/// How long an address can be confirmed.
const CONFIRM_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long a password can be set anew.
const RESET_FOR: Duration = Duration::from_secs(30 * 60);
/// Mails to one address.
const TO_ADDRESS: Limit = Limit {
    count: 5,
    window: Duration::from_secs(3600),
};
/// Mails that one person causes.
const OF_PERSON: Limit = Limit {
    count: 10,
    window: Duration::from_secs(24 * 3600),
};

static MAILS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    int_counter(
        "carillon_auth_mails_total",
        "Mails to people, by outcome: sent, failed, limited (too many to an address or of a person), dropped (too many waited).",
        &["outcome"],
    )
});

/// What to do.
pub(crate) enum Errand {
    /// Somebody wants this address for their account.
    Confirm { user: UserId, address: String },
    /// Somebody forgot the password of the account with this address.
    Reset { address: String },
    /// An account doesn't have this address any more.
    Moved { address: String },
}

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    Confirm,
    Reset,
}

impl Purpose {
    /// All, to forget them.
    pub const ALL: [Self; 2] = [Self::Confirm, Self::Reset];
}

/// What is kept of the last token of a person for a purpose.
#[derive(Serialize, Deserialize)]
pub(crate) struct Pending {
    /// SHA-256 of the token, in hex.
    hash: String,
    /// The address that it went to, if it isn't the account's yet.
    pub address: Option<String>,
    /// [`state_of`] the account, for a token that holds only as long as that.
    pub state: Option<String>,
}

/// Takes errands. Cheap to call, whatever they come to.
pub(crate) struct Post(mpsc::Sender<Errand>);

struct Clerk {
    accounts: Arc<dyn AccountStore>,
    ephemeral: Arc<dyn Ephemeral>,
    mail: MailOptions,
}

// === impl Post ===

impl Post {
    /// Must be called within a runtime: the errands are done there, until the post is dropped.
    pub fn open(
        accounts: Arc<dyn AccountStore>,
        ephemeral: Arc<dyn Ephemeral>,
        mail: MailOptions,
    ) -> Self {
        for outcome in ["sent", "failed", "limited", "dropped"] {
            MAILS.with_label_values(&[outcome]);
        }
        let clerk = Clerk {
            accounts,
            ephemeral,
            mail,
        };
        let (errands, waiting) = mpsc::channel(WAITING);
        tokio::spawn(async move {
            let clerk = &clerk;
            ReceiverStream::new(waiting)
                .for_each_concurrent(AT_ONCE, |errand| clerk.run(errand))
                .await;
        });
        Self(errands)
    }

    /// Has it done later.
    pub fn ask(&self, errand: Errand) {
        if self.0.try_send(errand).is_err() {
            MAILS.with_label_values(&["dropped"]).inc();
            tracing::warn!("a mail was not sent: too many wait");
        }
    }
}

// === impl Clerk ===

impl Clerk {
    async fn run(&self, errand: Errand) {
        let written = match errand {
            Errand::Confirm { user, address } => self.confirm(user, address).await,
            Errand::Reset { address } => self.reset(address).await,
            Errand::Moved { address } => Ok(Some(letters::moved(
                address,
                &self.mail.name,
                &self.mail.public_url,
            ))),
        };
        match written {
            Ok(Some(mail)) => self.send(mail).await,
            Ok(None) => {}
            Err(error) => {
                MAILS.with_label_values(&["failed"]).inc();
                tracing::warn!(%error, cause = error.cause_chain(), "a mail was not written");
            }
        }
    }

    async fn confirm(&self, user: UserId, address: String) -> Result<Option<Mail>> {
        // Whatever comes of this, an address that was wanted before isn't any more.
        self.ephemeral.remove(&key(Purpose::Confirm, user)).await?;
        let owner = self.accounts.by_email(&address).await?;
        if owner.as_ref().is_some_and(|owner| owner.user.id == user)
            || !self.may_write(&address, Some(user)).await?
        {
            return Ok(None);
        }
        let (name, url) = (&self.mail.name, &self.mail.public_url);
        if owner.is_some() {
            return Ok(Some(letters::has_account(address, name, url)));
        }
        let accounts = self.accounts.by_ids(&[user]).await?;
        let Some(account) = accounts.first() else {
            return Ok(None);
        };
        // Who wanted it and lost the account since, to a new password, doesn't get it.
        let kept = (Some(address.clone()), Some(state_of(account)));
        let token = self.token(Purpose::Confirm, user, kept).await?;
        Ok(Some(letters::confirm(address, name, url, &token)))
    }

    async fn reset(&self, address: String) -> Result<Option<Mail>> {
        let Some(account) = self.accounts.by_email(&address).await? else {
            return Ok(None);
        };
        if !self.may_write(&address, None).await? {
            return Ok(None);
        }
        let kept = (None, Some(state_of(&account)));
        let token = self.token(Purpose::Reset, account.user.id, kept).await?;
        let (name, url) = (&self.mail.name, &self.mail.public_url);
        Ok(Some(letters::reset(address, name, url, &token)))
    }

    /// Counts a mail; whether it may be sent.
    async fn may_write(&self, address: &str, user: Option<UserId>) -> Result<bool> {
        let mut limits = vec![(limits::key("mails-to", &[address]), TO_ADDRESS)];
        if let Some(user) = user {
            let key = limits::key("mails-of", &[&user.to_string()]);
            limits.insert(0, (key, OF_PERSON));
        }
        for (key, limit) in limits {
            if self.ephemeral.increment(&key, limit.window).await? > limit.count {
                MAILS.with_label_values(&["limited"]).inc();
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A new token in the place of the one before.
    async fn token(
        &self,
        purpose: Purpose,
        user: UserId,
        (address, state): (Option<String>, Option<String>),
    ) -> Result<String> {
        let mut bytes = user.0.as_bytes().to_vec();
        bytes.extend_from_slice(&rand::random::<[u8; 32]>());
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let pending = Pending {
            hash: hash_of(&token),
            address,
            state,
        };
        let value = serde_json::to_vec(&pending).map_err(Error::internal)?;
        let ttl = match purpose {
            Purpose::Confirm => CONFIRM_FOR,
            Purpose::Reset => RESET_FOR,
        };
        self.ephemeral.put(&key(purpose, user), &value, ttl).await?;
        Ok(token)
    }

    async fn send(&self, mail: Mail) {
        let mut pauses = PAUSES.iter();
        loop {
            let Err(error) = self.mail.mailer.send(&mail).await else {
                MAILS.with_label_values(&["sent"]).inc();
                return;
            };
            match pauses.next() {
                Some(pause) if !error.is_final => tokio::time::sleep(*pause).await,
                _ => {
                    MAILS.with_label_values(&["failed"]).inc();
                    tracing::warn!(%error, "a mail was not sent");
                    return;
                }
            }
        }
    }
}

/// Whose token it is and what is kept of it, if it is their last one for this purpose.
pub(crate) async fn pending(
    ephemeral: &dyn Ephemeral,
    purpose: Purpose,
    token: &str,
) -> Result<(UserId, Pending)> {
    let user = owner_of(token).ok_or_else(bad_token)?;
    let value = ephemeral.get(&key(purpose, user)).await?;
    let value = value.ok_or_else(bad_token)?;
    let pending: Pending = serde_json::from_slice(&value).map_err(Error::internal)?;
    let is_it = pending.hash.as_bytes().ct_eq(hash_of(token).as_bytes());
    match is_it.into() {
        true => Ok((user, pending)),
        false => Err(bad_token()),
    }
}

/// Forgets the token of a person for a purpose.
pub(crate) async fn spend(ephemeral: &dyn Ephemeral, purpose: Purpose, user: UserId) -> Result<()> {
    ephemeral.remove(&key(purpose, user)).await
}

/// The same for every token that is of no use.
pub(crate) fn bad_token() -> Error {
    Error::invalid(
        "token",
        "is wrong, was used, has ended, or isn't the last one that was mailed",
    )
}

/// Tells an account's password and address from what they are after a change, without saying what they are.
pub(crate) fn state_of(account: &Account) -> String {
    let mut hash = Sha256::new();
    for part in [&account.email, &account.password_hash] {
        let text = part.as_deref().unwrap_or_default();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hex::encode(hash.finalize())
}

/// The first 16 bytes of a token say whose it is.
fn owner_of(token: &str) -> Option<UserId> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (user, secret) = bytes.split_at_checked(16)?;
    let user = Uuid::from_slice(user).ok()?;
    (secret.len() == 32).then_some(UserId(user))
}

fn hash_of(token: &str) -> String {
    hex::encode(Sha256::digest(token))
}

fn key(purpose: Purpose, user: UserId) -> String {
    let purpose = match purpose {
        Purpose::Confirm => "mail-confirm",
        Purpose::Reset => "mail-reset",
    };
    limits::key(purpose, &[&user.to_string()])
}
