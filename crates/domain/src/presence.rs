//! Presence of people over all their devices.

use serde::{Deserialize, Serialize};

use crate::{DeviceId, Timestamp, UserId};

/// Whether somebody can be reached now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PresenceState {
    /// No device holds a lease.
    Offline,
    /// Every device with a lease says away.
    Away,
    /// At least one device is online.
    Online,
}

impl PresenceState {
    /// The stable text form, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Away => "away",
            Self::Online => "online",
        }
    }

    /// The reverse of [`PresenceState::as_str`].
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Offline, Self::Away, Self::Online]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// A device's claim to be connected, renewed by its gateway before it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    /// Whose device.
    pub user: UserId,
    /// Which device, under a name of the gateway's own: a device may be connected to several gateways, and each ends only its own
    /// lease. Nobody else takes a meaning from it.
    pub device: DeviceId,
    /// `Online` or `Away`.
    pub state: PresenceState,
}

/// A person's presence over all devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Presence {
    /// Who.
    pub user: UserId,
    /// Now.
    pub state: PresenceState,
    /// When a device of theirs was last connected; `None` if never seen.
    pub last_seen: Option<Timestamp>,
}
