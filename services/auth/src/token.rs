//! The tokens: JWTs (RFC 7519) signed with Ed25519.
//!
//! One place makes them and one place checks them. Whether a token was revoked isn't known here.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::{DeviceId, Error, Result, Timestamp, UserId};
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use uuid::Uuid;

use crate::keys::{SigningKeys, VerifyingKeys};

/// Audience of access tokens.
pub const ACCESS_AUDIENCE: &str = "carillon-api";
/// Audience of refresh tokens.
pub const REFRESH_AUDIENCE: &str = "carillon-refresh";

/// Longer texts are no tokens of ours; bounds the parsing that a stranger can ask for.
const MAX_TOKEN_BYTES: usize = 2048;

/// How far the clocks of two machines may differ before a fresh token looks like one from the future.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What a token is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenKind {
    /// Presented with every request.
    Access,
    /// Presented once, for new tokens.
    Refresh,
}

impl TokenKind {
    fn audience(self) -> &'static str {
        match self {
            Self::Access => ACCESS_AUDIENCE,
            Self::Refresh => REFRESH_AUDIENCE,
        }
    }
}

/// What is read of a token's header (RFC 7515); a name that stands there twice is refused. Keys and places of keys that a token names
/// (`jwk`, `jku`, `x5c`, `x5u`) aren't read: its own word on who signed it is worth nothing.
#[derive(Deserialize)]
struct Protected {
    alg: String,
    kid: String,
    #[serde(default)]
    typ: Option<String>,
    /// Extensions that must be understood: we know none.
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

impl Protected {
    fn read(token: &str) -> Option<Self> {
        let (header, _) = token.split_once('.')?;
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        serde_json::from_slice(&header).ok()
    }

    /// The algorithm is ours to say, never the token's: no `none`, no HMAC with a public key as its secret.
    fn is_ours(&self) -> bool {
        let is_jwt = |typ: &String| typ.eq_ignore_ascii_case("JWT");
        self.alg == "EdDSA" && self.typ.as_ref().is_none_or(is_jwt) && self.crit.is_none()
    }
}

/// The claims of both kinds (AUTH-04).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub sub: UserId,
    pub jti: Uuid,
    pub iss: String,
    pub aud: String,
    pub iat: i64,
    pub exp: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<i64>,
    #[serde(rename = "type")]
    pub kind: TokenKind,
    pub did: DeviceId,
}

impl Claims {
    pub fn new(
        kind: TokenKind,
        issuer: &str,
        user: UserId,
        device: DeviceId,
        now: Timestamp,
        ttl: Duration,
    ) -> Self {
        Self {
            sub: user,
            jti: Uuid::now_v7(),
            iss: issuer.to_owned(),
            aud: kind.audience().to_owned(),
            iat: now.seconds(),
            exp: now.plus(ttl).seconds(),
            nbf: None,
            kind,
            did: device,
        }
    }

    pub fn expires_at(&self) -> Timestamp {
        Timestamp(self.exp.saturating_mul(1000))
    }

    /// Refuses a token that has ended or not begun. Asked at every use, also of remembered tokens.
    pub fn check_time(&self, now: Timestamp) -> Result<()> {
        if now >= self.expires_at() {
            return Err(Error::unauthenticated("the token has expired"));
        }
        let begins = self.nbf.unwrap_or(self.iat).max(self.iat);
        if begins > now.plus(CLOCK_SKEW).seconds() {
            return Err(invalid());
        }
        Ok(())
    }

    pub fn sign(&self, keys: &SigningKeys) -> Result<String> {
        let header = Header {
            kid: Some(keys.kid().to_owned()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, self, keys.encoding_key()).map_err(Error::internal)
    }

    /// Checks everything about a token but its time: algorithm, key, signature, issuer, kind and audience.
    pub fn verify(
        token: &str,
        keys: &VerifyingKeys,
        kind: TokenKind,
        issuer: &str,
    ) -> Result<Self> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(invalid());
        }
        let header = Protected::read(token).ok_or_else(invalid)?;
        if !header.is_ours() {
            return Err(invalid());
        }
        let key = keys.find(&header.kid).ok_or_else(invalid)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        // Time is checked against the port, see `check_time`; the audience below, for a clear answer once the signature holds.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_issuer(&[issuer]);
        validation.set_required_spec_claims(&["iss", "sub", "aud"]);
        let claims = jsonwebtoken::decode::<Self>(token, &key, &validation)
            .map_err(|_| invalid())?
            .claims;
        if claims.kind != kind || claims.aud != kind.audience() {
            return Err(Error::unauthenticated(match kind {
                TokenKind::Access => "an access token is needed",
                TokenKind::Refresh => "a refresh token is needed",
            }));
        }
        Ok(claims)
    }
}

/// One answer for all that is malformed or forged: which check failed is nobody's business.
pub(crate) fn invalid() -> Error {
    Error::unauthenticated("the token is not valid")
}

#[cfg(test)]
mod attacks;

#[cfg(test)]
mod tests {
    use carillon_domain::ErrorCode;
    use jsonwebtoken::EncodingKey;
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp(1_700_000_000_000);

    fn keys() -> SigningKeys {
        let (pem, _) = SigningKeys::generate().unwrap();
        SigningKeys::from_pem([pem]).unwrap()
    }

    fn claims(kind: TokenKind) -> Claims {
        let ttl = Duration::from_secs(900);
        Claims::new(kind, "town", UserId::new(), DeviceId::new(), NOW, ttl)
    }

    fn refused(token: &str, keys: &SigningKeys) -> String {
        let error = Claims::verify(token, &keys.verifying_keys(), TokenKind::Access, "town")
            .expect_err("must be refused");
        assert_eq!(error.code, ErrorCode::Unauthenticated);
        error.detail.into_owned()
    }

    fn part(json: &serde_json::Value) -> String {
        URL_SAFE_NO_PAD.encode(json.to_string())
    }

    /// AUTH-04: what was signed is read back, with every claim.
    #[test]
    fn a_signed_token_verifies() {
        let keys = keys();
        let claims = claims(TokenKind::Access);
        let token = claims.sign(&keys).unwrap();
        let read = Claims::verify(&token, &keys.verifying_keys(), TokenKind::Access, "town");
        assert_eq!(read.unwrap(), claims);
        let payload = token.split('.').nth(1).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        for claim in ["sub", "jti", "iss", "aud", "iat", "exp", "type", "did"] {
            assert!(json.get(claim).is_some(), "{claim}");
        }
        assert_eq!(
            json["exp"].as_i64().unwrap() - json["iat"].as_i64().unwrap(),
            900
        );
    }

    /// AUTH-04: `alg: none`, with and without a signature.
    #[test]
    fn alg_none_is_refused() {
        let keys = keys();
        let claims = part(&serde_json::to_value(claims(TokenKind::Access)).unwrap());
        for alg in ["none", "None", "NONE"] {
            let header = part(&serde_json::json!({"alg": alg, "typ": "JWT", "kid": keys.kid()}));
            assert_eq!(
                refused(&format!("{header}.{claims}."), &keys),
                "the token is not valid"
            );
            assert_eq!(
                refused(&format!("{header}.{claims}.AAAA"), &keys),
                "the token is not valid"
            );
        }
    }

    /// AUTH-04: an HMAC whose secret is the public key.
    #[test]
    fn key_confusion_is_refused() {
        let keys = keys();
        let set = crate::jwks(&keys);
        let json: serde_json::Value = serde_json::from_str(&set).unwrap();
        let x = json["keys"][0]["x"].as_str().unwrap();
        let raw = URL_SAFE_NO_PAD.decode(x).unwrap();
        for secret in [raw.as_slice(), x.as_bytes(), set.as_bytes()] {
            let header = Header {
                kid: Some(keys.kid().to_owned()),
                ..Header::new(Algorithm::HS256)
            };
            let token = jsonwebtoken::encode(
                &header,
                &claims(TokenKind::Access),
                &EncodingKey::from_secret(secret),
            )
            .unwrap();
            assert_eq!(refused(&token, &keys), "the token is not valid");
        }
    }

    /// AUTH-04: unknown key, known `kid` with another key's signature, no `kid`, another issuer.
    #[test]
    fn forged_tokens_are_refused() {
        let (ours, theirs) = (keys(), keys());
        let token = claims(TokenKind::Access).sign(&theirs).unwrap();
        assert_eq!(refused(&token, &ours), "the token is not valid");
        for kid in [Some(ours.kid().to_owned()), None] {
            let header = Header {
                kid,
                ..Header::new(Algorithm::EdDSA)
            };
            let token =
                jsonwebtoken::encode(&header, &claims(TokenKind::Access), theirs.encoding_key())
                    .unwrap();
            assert_eq!(refused(&token, &ours), "the token is not valid");
        }
        let mut other = claims(TokenKind::Access);
        other.iss = "village".to_owned();
        assert_eq!(
            refused(&other.sign(&ours).unwrap(), &ours),
            "the token is not valid"
        );
    }

    /// AUTH-04: a refresh token where an access token is asked for, the reverse, and mixed claims.
    #[test]
    fn kinds_and_audiences_are_kept_apart() {
        let keys = keys();
        let public = keys.verifying_keys();
        let refresh = claims(TokenKind::Refresh).sign(&keys).unwrap();
        assert_eq!(refused(&refresh, &keys), "an access token is needed");
        let access = claims(TokenKind::Access).sign(&keys).unwrap();
        assert!(Claims::verify(&access, &public, TokenKind::Refresh, "town").is_err());
        let mut mixed = claims(TokenKind::Access);
        mixed.aud = REFRESH_AUDIENCE.to_owned();
        refused(&mixed.sign(&keys).unwrap(), &keys);
        let mut mixed = claims(TokenKind::Refresh);
        mixed.aud = ACCESS_AUDIENCE.to_owned();
        refused(&mixed.sign(&keys).unwrap(), &keys);
    }

    /// AUTH-04: time, exactly.
    #[test]
    fn time_is_checked_by_the_given_clock() {
        let claims = claims(TokenKind::Access);
        let end = NOW.plus(Duration::from_secs(900));
        assert!(claims.check_time(NOW).is_ok());
        assert!(claims.check_time(Timestamp(end.0 - 1)).is_ok());
        assert_eq!(
            claims.check_time(end).unwrap_err().detail,
            "the token has expired"
        );
        assert!(claims.check_time(Timestamp(NOW.0 - 60_000)).is_ok());
        assert!(claims.check_time(Timestamp(NOW.0 - 61_000)).is_err());
        let mut later = claims;
        later.nbf = Some(NOW.seconds() + 300);
        assert!(later.check_time(NOW).is_err());
    }

    proptest! {
        /// AUTH-04: no text makes the check panic or pass.
        #[test]
        fn arbitrary_text_is_refused(text in "[ -~]{0,200}(\\.[A-Za-z0-9_-]{0,80}){0,4}") {
            refused(&text, &keys());
        }

        /// AUTH-04: any changed byte of a token makes it invalid.
        #[test]
        fn a_changed_token_is_refused(place in 0usize..1000, by in 1u8..60) {
            let keys = keys();
            let mut bytes = claims(TokenKind::Access).sign(&keys).unwrap().into_bytes();
            let place = place % bytes.len();
            // The last digit of a base64url text carries unused bits, which a strict decoder refuses too.
            let old = bytes[place];
            bytes[place] = b'A' + (old.wrapping_add(by) % 57);
            prop_assume!(bytes[place] != old);
            refused(&String::from_utf8(bytes).unwrap(), &keys);
        }
    }
}
