//! Accounts, sessions and identities.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{DeviceId, Timestamp, UserId};

/// What somebody writes of themselves; empty unless they did.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct About {
    /// A few sentences.
    pub bio: String,
    /// What they are up to.
    pub status: String,
}

/// What to change of a profile; what is `None` stays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ProfileChange {
    /// The shown name.
    pub display_name: Option<String>,
    /// See [`About::bio`].
    pub bio: Option<String>,
    /// See [`About::status`].
    pub status: Option<String>,
}

impl ProfileChange {
    /// Makes the change.
    pub fn apply(&self, user: &mut User) {
        for (change, field) in [
            (&self.display_name, &mut user.display_name),
            (&self.bio, &mut user.about.bio),
            (&self.status, &mut user.about.status),
        ] {
            if let Some(text) = change {
                text.clone_into(field);
            }
        }
    }
}

/// What other people may see of an account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    /// Stable id.
    pub id: UserId,
    /// Unique, compared without case.
    pub username: String,
    /// Shown name; the username when none was given.
    pub display_name: String,
    /// When the account was made.
    pub created_at: Timestamp,
    /// What they write of themselves.
    #[serde(default)]
    pub about: About,
}

/// An account with what only its owner and the auth role may see.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The public part.
    pub user: User,
    /// Lower-cased address, unique.
    pub email: Option<String>,
    /// E.164 number, unique; for accounts made by one-time password.
    pub phone: Option<String>,
    /// PHC string (Argon2id, scrypt) or a bcrypt string of an imported account.
    pub password_hash: Option<String>,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Addresses, numbers and hashes stay out of logs.
        f.debug_struct("Account")
            .field("id", &self.user.id)
            .finish_non_exhaustive()
    }
}

/// A unique name of an account that its owner can change.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NameKind {
    /// The username; compared without case.
    Username,
    /// The lower-cased e-mail address.
    Email,
}

impl NameKind {
    /// All, for tables and tests.
    pub const ALL: [Self; 2] = [Self::Username, Self::Email];

    /// The field of the API.
    pub fn field(self) -> &'static str {
        match self {
            Self::Username => "username",
            Self::Email => "email",
        }
    }
}

impl Account {
    /// The name of this kind, as it is written.
    pub fn name(&self, kind: NameKind) -> Option<&str> {
        match kind {
            NameKind::Username => Some(&self.user.username),
            NameKind::Email => self.email.as_deref(),
        }
    }

    /// Gives it another name. A shown name that was only the username changes with it.
    pub fn set_name(&mut self, kind: NameKind, name: &str) {
        match kind {
            NameKind::Username => {
                if self.user.display_name == self.user.username {
                    name.clone_into(&mut self.user.display_name);
                }
                name.clone_into(&mut self.user.username);
            }
            NameKind::Email => self.email = Some(name.to_owned()),
        }
    }
}

/// Who makes a request: the verified content of an access token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// The person.
    pub user: UserId,
    /// The device the token was given to.
    pub device: DeviceId,
    /// The token's own id (`jti`), to revoke it.
    pub token_id: Uuid,
    /// When the token ends.
    pub expires_at: Timestamp,
}

/// What kind of thing a device is, as its client says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceType {
    /// A telephone.
    Phone,
    /// A tablet.
    Tablet,
    /// A program on a computer.
    Desktop,
    /// A browser.
    Web,
    /// Anything else: a server, a watch.
    Other,
}

impl DeviceType {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 5] = [
        Self::Phone,
        Self::Tablet,
        Self::Desktop,
        Self::Web,
        Self::Other,
    ];

    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Phone => "phone",
            Self::Tablet => "tablet",
            Self::Desktop => "desktop",
            Self::Web => "web",
            Self::Other => "other",
        }
    }

    /// The reverse of [`DeviceType::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }
}

/// What a client says of itself at login, for the session list. Every field is bounded by validation.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ClientInfo {
    /// Name given by the client, such as "Ann's phone".
    pub device_name: Option<String>,
    /// `User-Agent`, cut to 256 characters.
    pub user_agent: Option<String>,
    /// Address that the request came from.
    pub ip: Option<String>,
    /// What kind of thing it runs on.
    #[serde(default)]
    pub device_type: Option<DeviceType>,
    /// Operating system or browser given by the client, such as "Android 16".
    #[serde(default)]
    pub platform: Option<String>,
}

/// A device's login: one refresh token is valid at a time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Whose it is.
    pub user: UserId,
    /// Which device.
    pub device: DeviceId,
    /// SHA-256 of the refresh token that is valid now.
    pub refresh_hash: [u8; 32],
    /// `jti` and end of the access token given last, revoked together with the session.
    pub access_token_id: Uuid,
    /// When that access token ends.
    pub access_expires_at: Timestamp,
    /// When the refresh token ends.
    pub expires_at: Timestamp,
    /// First login.
    pub created_at: Timestamp,
    /// Last login or refresh.
    pub last_seen_at: Timestamp,
    /// What the client said of itself.
    pub client: ClientInfo,
}

/// A session as its owner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionView {
    /// The session.
    pub session: Session,
    /// Whether the device has registered for pushes.
    pub has_push: bool,
}

/// A pair of tokens as given to a client.
#[derive(Clone, Serialize, Deserialize)]
pub struct Tokens {
    /// JWT, audience of the API.
    pub access_token: String,
    /// JWT, audience of the refresh endpoint, valid once.
    pub refresh_token: String,
    /// Seconds until the access token ends.
    pub expires_in: u64,
    /// Whose tokens these are.
    pub user: User,
    /// The device they belong to.
    pub device: DeviceId,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens")
            .field("user", &self.user.id)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
