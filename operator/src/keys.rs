//! The Ed25519 keys that sign access tokens, and how one follows another without anybody being logged out. Pure.
//!
//! A new key is published first; it signs when every pod verifies by it and caches of the key set have expired; and the one before it is
//! published until the last token that it signed has ended. What is to be done next follows from what is stored and from what the pods say they
//! have in use. Also the one access token that the operator signs itself, the probe's. Storing, and asking pods, is not here.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carillon_crds::config::{fingerprint, in_use};
use carillon_crds::{PROBE_USER, Role};
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{SECRET_KEY_LENGTH, Signer, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::pods::PodsInUse;

/// Why a stored key can't be used.
#[derive(Debug, thiserror::Error)]
#[error("not an Ed25519 private key in PKCS#8 PEM")]
pub struct UnusableKey;

/// A new Ed25519 private key, PKCS#8 PEM.
pub fn new_signing_key_pem() -> String {
    let secret: [u8; SECRET_KEY_LENGTH] = rand::random();
    SigningKey::from_bytes(&secret)
        .to_pkcs8_pem(LineEnding::LF)
        .expect("a 32-byte key always encodes")
        .to_string()
}

/// What is stored of the keys.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SigningKeys {
    /// What the auth role is given: the key that signs, then those before it, PKCS#8 PEM.
    pub signing: String,
    /// The key that will sign; published already.
    pub next: Option<String>,
    /// When `next` may sign, or when the keys before the one that signs may go; RFC 3339. None while pods have to follow first.
    pub due: Option<String>,
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys")
            .field("next", &self.next.is_some())
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

/// What was done about the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A new key is published.
    Published,
    /// Every pod knows it; what else may have the key set in a cache is waited for.
    Known,
    /// It signs.
    Signing,
    /// Every auth pod signs with it; tokens of the one before it are waited for.
    Ending,
    /// The one before it is forgotten.
    Forgotten,
}

/// How long others may keep the key set: twice the `max-age` that gateways give it.
const CACHED: Duration = Duration::from_secs(2 * 60);
/// Added to a token's life, so that clocks may differ.
const SKEW: Duration = Duration::from_secs(120);

impl SigningKeys {
    /// Whether no rotation is under way.
    pub fn is_settled(&self) -> bool {
        self.next.is_none() && self.due.is_none() && blocks(&self.signing).len() < 2
    }

    /// Whether the next step is the pods' and not only time's.
    pub fn waits_for_pods(&self) -> bool {
        self.next.is_some() || (self.due.is_none() && !self.is_settled())
    }

    /// The JWK set with the public halves of all keys, the same text for the same keys.
    pub fn jwks(&self) -> Result<String, UnusableKey> {
        let mut keys = Vec::new();
        for text in [Some(&self.signing), self.next.as_ref()]
            .into_iter()
            .flatten()
        {
            for block in blocks(text) {
                let key = SigningKey::from_pkcs8_pem(block).map_err(|_| UnusableKey)?;
                keys.push(jwk(&key.verifying_key()));
            }
        }
        if blocks(&self.signing).is_empty() {
            return Err(UnusableKey);
        }
        Ok(json!({ "keys": keys }).to_string())
    }

    /// Name of the key that signs.
    fn kid(&self) -> Option<String> {
        let key = SigningKey::from_pkcs8_pem(blocks(&self.signing).first()?).ok()?;
        Some(kid(&key.verifying_key()))
    }

    /// What is to be stored next and why; `None` when it is what is stored, or when pods or time must follow first. `refresh_ttl` is how
    /// long the longest token lives.
    pub fn advance(
        &self,
        rotate: bool,
        pods: &PodsInUse,
        refresh_ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<Option<(Self, Step)>, UnusableKey> {
        let at = |moment: OffsetDateTime| moment.format(&Rfc3339).ok();
        let due = self
            .due
            .as_deref()
            .and_then(|due| OffsetDateTime::parse(due, &Rfc3339).ok());
        let is_over = due.is_some_and(|due| now >= due);
        let is_known = || -> Result<bool, UnusableKey> {
            let expected = fingerprint(&self.jwks()?);
            Ok(pods.all_use(in_use::PUBLIC_KEYS, |_| Some(expected.clone())))
        };
        if self.is_settled() {
            return Ok(rotate.then(|| {
                let next = SigningKeys {
                    next: Some(new_signing_key_pem()),
                    ..self.clone()
                };
                (next, Step::Published)
            }));
        }
        if let Some(next) = &self.next {
            if due.is_none() {
                let known = is_known()?.then(|| SigningKeys {
                    due: at(now + CACHED),
                    ..self.clone()
                });
                return Ok(known.map(|known| (known, Step::Known)));
            }
            // Asked again: a pod may have come back with what it was given earlier.
            return Ok((is_over && is_known()?).then(|| {
                let keys = SigningKeys {
                    signing: format!("{}\n{}", next.trim(), self.signing.trim()),
                    next: None,
                    due: None,
                };
                (keys, Step::Signing)
            }));
        }
        if due.is_none() {
            let signs = pods.all_use(in_use::SIGNING_KEY, |role| {
                (role == Role::Auth).then(|| self.kid().unwrap_or_default())
            });
            return Ok(signs.then(|| {
                let keys = SigningKeys {
                    due: at(now + refresh_ttl + SKEW),
                    ..self.clone()
                };
                (keys, Step::Ending)
            }));
        }
        Ok(is_over.then(|| {
            let signing = blocks(&self.signing)
                .first()
                .map(|block| format!("{block}\n"));
            let keys = SigningKeys {
                signing: signing.unwrap_or_default(),
                next: None,
                due: None,
            };
            (keys, Step::Forgotten)
        }))
    }
}

/// The PEM blocks of a text.
fn blocks(text: &str) -> Vec<&str> {
    const END: &str = "-----END PRIVATE KEY-----";
    text.split_inclusive(END)
        .map(str::trim)
        .filter(|block| !block.is_empty())
        .collect()
}

fn kid(key: &VerifyingKey) -> String {
    thumbprint(&URL_SAFE_NO_PAD.encode(key.as_bytes()))
}

/// An access token (RFC 7519, EdDSA) of the probe's person, good from `now` for `ttl`, both in seconds.
pub fn probe_token(
    signing_key_pem: &str,
    issuer: &str,
    now: i64,
    ttl: i64,
) -> Result<String, UnusableKey> {
    // The first one signs.
    let block = blocks(signing_key_pem);
    let key = block.first().ok_or(UnusableKey)?;
    let key = SigningKey::from_pkcs8_pem(key).map_err(|_| UnusableKey)?;
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": thumbprint(&x) });
    let claims = json!({
        "iss": issuer,
        "aud": "carillon-api",
        "type": "access",
        "sub": PROBE_USER,
        // One device: its lease of presence is always the same one.
        "did": PROBE_USER,
        "jti": Uuid::new_v4().to_string(),
        "iat": now,
        "exp": now + ttl,
    });
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header.to_string()),
        URL_SAFE_NO_PAD.encode(claims.to_string())
    );
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).to_bytes());
    Ok(format!("{signed}.{signature}"))
}

fn jwk(key: &VerifyingKey) -> Value {
    let x = URL_SAFE_NO_PAD.encode(key.as_bytes());
    json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": thumbprint(&x), "x": x })
}

/// RFC 7638: SHA-256 over the required members in lexicographic order, without white space.
fn thumbprint(x: &str) -> String {
    let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(Sha256::digest(members.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and thumbprint of RFC 8037, appendix A.
    #[test]
    fn the_published_key_has_the_published_thumbprint() {
        assert_eq!(
            thumbprint("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }

    fn one(pem: String) -> SigningKeys {
        SigningKeys {
            signing: pem,
            ..SigningKeys::default()
        }
    }

    #[test]
    fn a_new_key_is_read_back_and_has_one_public_jwk() {
        let pem = new_signing_key_pem();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        let keys = one(pem.clone());
        let jwks = keys.jwks().unwrap();
        assert_eq!(jwks, keys.jwks().unwrap());
        let set: Value = serde_json::from_str(&jwks).unwrap();
        let key = &set["keys"][0];
        assert_eq!(
            (&key["kty"], &key["crv"], &key["alg"], &key["use"]),
            (
                &json!("OKP"),
                &json!("Ed25519"),
                &json!("EdDSA"),
                &json!("sig")
            )
        );
        assert!(
            key.get("d").is_none(),
            "the private half must not be published"
        );
        assert_eq!(key["kid"].as_str().unwrap().len(), 43);
        assert_ne!(new_signing_key_pem(), pem);
        assert!(!format!("{keys:?}").contains("PRIVATE"));
    }

    /// What the roles take is tested where the roles are (`tests/it/probe.rs`); here, that the signature holds for the public key.
    #[test]
    fn the_probes_token_is_signed_by_the_clusters_key() {
        let pem = new_signing_key_pem();
        let token = probe_token(&pem, "town", 1_700_000_000, 60).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let read = |part: &str| -> Value {
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let jwks: Value = serde_json::from_str(&one(pem.clone()).jwks().unwrap()).unwrap();
        assert_eq!(read(header)["kid"], jwks["keys"][0]["kid"]);
        let claims = read(claims);
        assert_eq!(claims["sub"], PROBE_USER);
        assert_eq!(claims["exp"].as_i64(), Some(1_700_000_060));
        let signature: [u8; 64] = URL_SAFE_NO_PAD
            .decode(signature)
            .unwrap()
            .try_into()
            .unwrap();
        let key = SigningKey::from_pkcs8_pem(&pem).unwrap().verifying_key();
        key.verify_strict(signed.as_bytes(), &signature.into())
            .unwrap();
        let other = probe_token(&pem, "town", 1_700_000_000, 60).unwrap();
        assert_ne!(token, other, "each token has an id of its own");
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(one(text.to_owned()).jwks().is_err());
        }
    }

    /// Each step waits for what it needs; at every moment pods that are a step behind verify what pods that are ahead sign.
    #[test]
    fn a_key_follows_another_without_a_token_being_refused() {
        let start = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let ttl = Duration::from_secs(7 * 24 * 3600);
        let pods = |keys: &SigningKeys, fresh: bool| {
            let of = |name: &str, value: String| {
                let value = if fresh { value } else { "old".to_owned() };
                (name.to_owned(), value)
            };
            let everybody = Role::ALL.iter().map(|role| {
                let mut used = crate::pods::InUse::from([of(
                    in_use::PUBLIC_KEYS,
                    fingerprint(&keys.jwks().unwrap()),
                )]);
                if *role == Role::Auth {
                    used.extend([of(in_use::SIGNING_KEY, keys.kid().unwrap())]);
                }
                (*role, "pod".to_owned(), Some(used))
            });
            PodsInUse::new(everybody.collect())
        };
        let mut keys = one(new_signing_key_pem());
        let first = keys.kid().unwrap();
        let advance = |keys: &SigningKeys, rotate: bool, fresh: bool, now: OffsetDateTime| {
            keys.advance(rotate, &pods(keys, fresh), ttl, now).unwrap()
        };
        assert_eq!(advance(&keys, false, true, start), None);
        let mut now = start;
        let mut published = Vec::new();
        for (expected, needs_pods, needs_time) in [
            (Step::Published, false, None),
            (Step::Known, true, None),
            (Step::Signing, true, Some(CACHED)),
            (Step::Ending, true, None),
            (Step::Forgotten, false, Some(ttl + SKEW)),
        ] {
            if needs_pods {
                let later = now + Duration::from_secs(3600);
                assert_eq!(advance(&keys, false, false, later), None, "{expected:?}");
            }
            if let Some(time) = needs_time {
                let early = now + time - Duration::from_secs(1);
                assert_eq!(advance(&keys, false, true, early), None, "{expected:?}");
                now += time;
            }
            let signer = keys.kid().unwrap();
            let (next, step) = advance(&keys, true, true, now).unwrap();
            assert_eq!(step, expected);
            // Whoever signs now or next is in both key sets.
            for set in [keys.jwks().unwrap(), next.jwks().unwrap()] {
                assert!(set.contains(&next.kid().unwrap()) || step == Step::Published);
                assert!(set.contains(&signer));
            }
            published.push(
                serde_json::from_str::<Value>(&next.jwks().unwrap()).unwrap()["keys"]
                    .as_array()
                    .unwrap()
                    .len(),
            );
            keys = next;
        }
        assert_eq!(published, [2, 2, 2, 2, 1]);
        assert_ne!(keys.kid().unwrap(), first);
        assert!(keys.is_settled());
        assert!(!keys.jwks().unwrap().contains(&first));
    }
}
