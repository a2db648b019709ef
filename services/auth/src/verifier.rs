//! The check of access tokens, done locally by every process that serves requests.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use carillon_domain::{
    Clock, Error, Result, account::Identity, ports::SessionStore, services::TokenVerifier,
};
use moka::sync::Cache;
use parking_lot::RwLock;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    keys::VerifyingKeys,
    token::{Claims, TokenKind},
};

/// Remembered signatures per process: at about 300 bytes each, 6 MB.
const REMEMBERED: u64 = 20_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(300);

/// Checks access tokens against public keys and the deny-list.
///
/// Signatures that held are remembered (a bounded number, by the token's SHA-256); time and the deny-list are asked at every
/// call, so that a revocation counts at once everywhere. When the deny-list can't be asked, no token is accepted: `Unavailable`.
pub struct Verifier {
    trusted: RwLock<Arc<Trusted>>,
    issuer: String,
    sessions: Arc<dyn SessionStore>,
    clock: Arc<dyn Clock>,
}

/// Keys together with what they verified: replaced as one, so that a removed key leaves nothing behind.
struct Trusted {
    keys: VerifyingKeys,
    remembered: Cache<[u8; 32], Arc<Claims>>,
}

impl Trusted {
    fn new(keys: VerifyingKeys) -> Arc<Self> {
        Arc::new(Self {
            keys,
            remembered: Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_live(REMEMBERED_FOR)
                .build(),
        })
    }
}

// === impl Verifier ===

impl Verifier {
    /// `issuer` must be the one in [`crate::AuthOptions`].
    pub fn new(
        keys: VerifyingKeys,
        issuer: impl Into<String>,
        sessions: Arc<dyn SessionStore>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            trusted: RwLock::new(Trusted::new(keys)),
            issuer: issuer.into(),
            sessions,
            clock,
        }
    }

    /// Trusts these keys from now on, and no others (rotation).
    pub fn replace_keys(&self, keys: VerifyingKeys) {
        *self.trusted.write() = Trusted::new(keys);
    }

    fn claims(&self, token: &str) -> Result<Arc<Claims>> {
        let trusted = self.trusted.read().clone();
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(claims) = trusted.remembered.get(&digest) {
            return Ok(claims);
        }
        let claims = Arc::new(Claims::verify(
            token,
            &trusted.keys,
            TokenKind::Access,
            &self.issuer,
        )?);
        trusted.remembered.insert(digest, claims.clone());
        Ok(claims)
    }
}

#[async_trait]
impl TokenVerifier for Verifier {
    async fn verify_access(&self, token: &str) -> Result<Identity> {
        let claims = self.claims(token)?;
        claims.check_time(self.clock.now())?;
        let identity = Identity {
            user: claims.sub,
            device: claims.did,
            token_id: claims.jti,
            expires_at: claims.expires_at(),
        };
        refuse_revoked(self.sessions.as_ref(), &identity).await?;
        Ok(identity)
    }

    async fn check_revocation(&self, who: &Identity) -> Result<()> {
        refuse_revoked(self.sessions.as_ref(), who).await
    }
}

/// Asks the deny-list. It holds token ids and, since a device may have more than one live access token (one from before its
/// last refresh), also ids of devices whose session was ended.
pub(crate) async fn refuse_revoked(sessions: &dyn SessionStore, who: &Identity) -> Result<()> {
    let device: Uuid = who.device.0;
    let (token, device) = futures::try_join!(
        sessions.is_revoked(who.token_id),
        sessions.is_revoked(device)
    )?;
    if token || device {
        return Err(Error::unauthenticated("the token was revoked"));
    }
    Ok(())
}
