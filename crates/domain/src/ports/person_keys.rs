use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Result, Timestamp, UserId};

/// What one person's content is sealed with. Never shown, never logged.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PersonKey(pub [u8; 32]);

impl fmt::Debug for PersonKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PersonKey")
    }
}

/// What there is of a person's key.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyState {
    /// It.
    Held(PersonKey),
    /// It was destroyed then: what was sealed with it can't be read by anybody, and nothing is sealed for this person again.
    Destroyed(Timestamp),
}

/// A part of the platform that holds data of people, and removes them when somebody is erased.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErasurePart {
    /// The account and everything that the auth role keeps beside it.
    Account,
    /// Memberships and invitations.
    Rooms,
    /// Uploads.
    Media,
}

impl ErasurePart {
    /// Every part.
    pub const ALL: [Self; 3] = [Self::Account, Self::Rooms, Self::Media];

    /// The stable text form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Account => "account",
            Self::Rooms => "rooms",
            Self::Media => "media",
        }
    }
}

/// A key for each person, and who is being erased. Destroying the key is what makes content unreadable wherever it lies (crypto
/// erasure, NIST SP 800-88): in every store, and in every backup that keeps keys apart from what they open. Linearizable per person.
#[async_trait]
pub trait PersonKeys: Send + Sync {
    /// The keys of these people, in any order; who has none yet is left out. At most 1,000.
    async fn of(&self, users: &[UserId]) -> Result<Vec<(UserId, KeyState)>>;

    /// Stores `key` unless the person has one, or had; what stands then. Of concurrent calls all answer the same.
    async fn put_if_absent(&self, user: UserId, key: &PersonKey) -> Result<KeyState>;

    /// Begins to erase a person: from then on each part names them in [`PersonKeys::erasing`]. Again: fine.
    async fn begin_erasing(&self, user: UserId, at: Timestamp) -> Result<()>;

    /// Destroys a person's key, whether or not there was one. Again: the first time stands.
    async fn destroy(&self, user: UserId, at: Timestamp) -> Result<()>;

    /// People of whom a part still has to remove what it holds, at most `limit` (1 to 1,000), in any order.
    async fn erasing(&self, part: ErasurePart, limit: usize) -> Result<Vec<UserId>>;

    /// Says that a part holds nothing of a person any more.
    async fn erased(&self, part: ErasurePart, user: UserId) -> Result<()>;

    /// All keys, after `after` in an order of the store's own, at most `limit` (1 to 1,000); fewer only at the end.
    async fn all(&self, after: Option<UserId>, limit: usize) -> Result<Vec<(UserId, KeyState)>>;
}
