//! What happened to an account that its owner should be able to see (AUTH-12). No secrets, and nothing that anybody wrote.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{DeviceId, Timestamp, account::ClientInfo};

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityEventKind {
    /// A device was logged in.
    LoggedIn,
    /// A device logged itself out.
    LoggedOut,
    /// Somebody tried to log in with a wrong password.
    LoginFailed,
    /// So many logins failed that, for a while, only networks that logged in before may try.
    Locked,
    /// A refresh token was used a second time: its device's session was ended.
    TokenReused,
    /// A device's session was ended by another device.
    SessionEnded,
    /// All sessions were ended at once.
    AllSessionsEnded,
    /// The username was changed.
    UsernameChanged,
    /// The e-mail address was changed.
    EmailChanged,
    /// The password was changed, or set for the first time.
    PasswordChanged,
    /// The password was set anew by somebody who gets the account's mail; every session was ended.
    PasswordReset,
}

impl SecurityEventKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 11] = [
        Self::LoggedIn,
        Self::LoggedOut,
        Self::LoginFailed,
        Self::Locked,
        Self::TokenReused,
        Self::SessionEnded,
        Self::AllSessionsEnded,
        Self::UsernameChanged,
        Self::EmailChanged,
        Self::PasswordChanged,
        Self::PasswordReset,
    ];

    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoggedIn => "logged_in",
            Self::LoggedOut => "logged_out",
            Self::LoginFailed => "login_failed",
            Self::Locked => "locked",
            Self::TokenReused => "token_reused",
            Self::SessionEnded => "session_ended",
            Self::AllSessionsEnded => "all_sessions_ended",
            Self::UsernameChanged => "username_changed",
            Self::EmailChanged => "email_changed",
            Self::PasswordChanged => "password_changed",
            Self::PasswordReset => "password_reset",
        }
    }

    /// The reverse of [`SecurityEventKind::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text)
    }

    /// Where events of this kind are kept.
    pub fn trail(self) -> Trail {
        match self {
            Self::LoggedIn | Self::LoggedOut => Trail::Logins,
            Self::LoginFailed => Trail::Failures,
            Self::Locked => Trail::Locks,
            _ => Trail::Changes,
        }
    }
}

/// A bounded list of events of one person. What a stranger can cause has a list of its own, so that it can't push out the rest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Trail {
    /// Logins and logouts.
    Logins,
    /// Logins that failed.
    Failures,
    /// Locks after too many of them.
    Locks,
    /// Everything else.
    Changes,
}

impl Trail {
    /// All, for tables and tests.
    pub const ALL: [Self; 4] = [Self::Logins, Self::Failures, Self::Locks, Self::Changes];

    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Logins => "logins",
            Self::Failures => "failures",
            Self::Locks => "locks",
            Self::Changes => "changes",
        }
    }
}

/// Something that happened to an account.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecurityEvent {
    /// Ascending with time (UUIDv7).
    pub id: Uuid,
    /// When.
    pub time: Timestamp,
    /// What.
    pub kind: SecurityEventKind,
    /// The device that it is about, if it is about one.
    pub device: Option<DeviceId>,
    /// Who caused it, as far as it is known.
    pub client: ClientInfo,
}

/// Which events are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum History {
    /// Logins, logouts and failed logins.
    Logins,
    /// What was done to the account.
    Security,
}

impl History {
    /// The trails that it is made of.
    pub fn trails(self) -> &'static [Trail] {
        match self {
            Self::Logins => &[Trail::Logins, Trail::Failures],
            Self::Security => &[Trail::Changes, Trail::Locks],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AUTH-12: texts are stored, so each must be read back as what it was.
    #[test]
    fn kinds_have_distinct_texts_that_parse_back() {
        for kind in SecurityEventKind::ALL {
            assert_eq!(SecurityEventKind::parse(kind.as_str()), Some(kind));
        }
    }
}
