use async_trait::async_trait;
use uuid::Uuid;

use crate::{DeviceId, Result, Timestamp, UserId, account::Session};

/// What came of presenting a refresh token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rotation {
    /// The session has the new hash now.
    Rotated,
    /// The session exists with another hash: an old token was used again.
    Reused,
    /// There is no such session.
    Unknown,
}

/// Sessions of devices, and access tokens revoked before their end. Atomic per user.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Stores a session until its `expires_at`, replacing one of the same device.
    async fn put(&self, session: &Session) -> Result<()>;

    /// One session, if it hasn't expired.
    async fn get(&self, user: UserId, device: DeviceId) -> Result<Option<Session>>;

    /// Stores `next` (same user and device) if the session's refresh hash is still `old_hash`. Of two concurrent calls with one
    /// `old_hash`, exactly one answers `Rotated`.
    async fn rotate(&self, old_hash: &[u8; 32], next: &Session) -> Result<Rotation>;

    /// Removes a session; what it was.
    async fn remove(&self, user: UserId, device: DeviceId) -> Result<Option<Session>>;

    /// Every session of a user that hasn't expired, newest login first.
    async fn list(&self, user: UserId) -> Result<Vec<Session>>;

    /// Refuses an access token from now until `until` (its own end).
    async fn revoke_token(&self, token_id: Uuid, until: Timestamp) -> Result<()>;

    /// Whether an access token was revoked.
    async fn is_revoked(&self, token_id: Uuid) -> Result<bool>;
}
