//! Keys that sign and verify tokens: Ed25519, named by their RFC 7638 thumbprint.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes, spki::der::pem::LineEnding},
};
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Why keys can't be used. Never shows key material.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No key was given.
    #[error("there is no signing key: expected at least one Ed25519 private key as PKCS#8 PEM")]
    NoKey,
    /// A block is no Ed25519 private key.
    #[error("signing key {0} is no Ed25519 private key in PKCS#8 PEM (\"BEGIN PRIVATE KEY\")")]
    NotEd25519(usize),
    /// Encoding failed.
    #[error("the key can't be written as PKCS#8")]
    Encode,
    /// A key set is not JSON, or not of the form of RFC 7517.
    #[error("the key set is no JWK set (RFC 7517)")]
    KeySet(#[source] serde_json::Error),
    /// A key set has no Ed25519 key.
    #[error("the key set has no usable Ed25519 key")]
    EmptyKeySet,
}

/// One public key as a JWK (RFC 7517, 8037).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct PublicJwk {
    kty: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    kid: String,
    #[serde(default)]
    alg: String,
    #[serde(default, rename = "use")]
    usage: String,
}

#[derive(Serialize, Deserialize)]
struct KeySet {
    keys: Vec<PublicJwk>,
}

/// Public keys by their `kid`.
#[derive(Clone)]
pub struct VerifyingKeys {
    keys: BTreeMap<String, [u8; 32]>,
}

/// Private keys. The first one signs; every one verifies, so that a new key can be spread before it is used, and an old one
/// kept until its last token has ended.
pub struct SigningKeys {
    encoding: EncodingKey,
    kid: String,
    /// In the order given, without repeats.
    public: Vec<[u8; 32]>,
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKeys")
            .field("kid", &self.kid)
            .field("keys", &self.public.len())
            .finish_non_exhaustive()
    }
}

// === impl SigningKeys ===

impl SigningKeys {
    /// A new key: its PKCS#8 PEM text, and the JWK set with its public part.
    pub fn generate() -> Result<(String, String), KeyError> {
        let secret: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
        let pem = private_der(&SigningKey::from_bytes(&secret))?
            .to_pem("PRIVATE KEY", LineEnding::LF)
            .map_err(|_| KeyError::Encode)?
            .to_string();
        let set = jwks(&Self::from_pem([&pem])?);
        Ok((pem, set))
    }

    /// Loads keys. Each text may hold several PEM blocks. The first key of all signs.
    pub fn from_pem<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Self, KeyError> {
        let mut first = None;
        let mut public = Vec::new();
        let mut count = 0;
        for text in texts {
            for block in pem_blocks(text.as_ref()) {
                count += 1;
                let key =
                    SigningKey::from_pkcs8_pem(block).map_err(|_| KeyError::NotEd25519(count))?;
                let bytes = key.verifying_key().to_bytes();
                if !public.contains(&bytes) {
                    public.push(bytes);
                }
                if first.is_none() {
                    let der = private_der(&key)?;
                    first = Some((EncodingKey::from_ed_der(der.as_bytes()), thumbprint(&bytes)));
                }
            }
        }
        let (encoding, kid) = first.ok_or(KeyError::NoKey)?;
        Ok(Self {
            encoding,
            kid,
            public,
        })
    }

    /// The public parts.
    pub fn verifying_keys(&self) -> VerifyingKeys {
        VerifyingKeys {
            keys: self
                .public
                .iter()
                .map(|bytes| (thumbprint(bytes), *bytes))
                .collect(),
        }
    }

    /// The name of the key that signs.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub(crate) fn encoding_key(&self) -> &EncodingKey {
        &self.encoding
    }
}

/// The public keys as a JWK set, for `/.well-known/jwks.json`. The signing key comes first.
pub fn jwks(keys: &SigningKeys) -> String {
    let keys = keys
        .public
        .iter()
        .map(|bytes| PublicJwk {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: URL_SAFE_NO_PAD.encode(bytes),
            kid: thumbprint(bytes),
            alg: "EdDSA".to_owned(),
            usage: "sig".to_owned(),
        })
        .collect();
    // Strings in a struct can't fail to serialise.
    serde_json::to_string(&KeySet { keys }).unwrap_or_default()
}

// === impl VerifyingKeys ===

impl VerifyingKeys {
    /// Reads a JWK set. Keys of other types are skipped; the `kid` is computed, not believed, so that a set can't give one key
    /// another's name.
    pub fn from_jwks(json: &str) -> Result<Self, KeyError> {
        let set: KeySet = serde_json::from_str(json).map_err(KeyError::KeySet)?;
        let keys: BTreeMap<_, _> = set
            .keys
            .iter()
            .filter(|key| key.kty == "OKP" && key.crv == "Ed25519")
            .filter_map(|key| {
                let bytes = URL_SAFE_NO_PAD.decode(&key.x).ok()?;
                <[u8; 32]>::try_from(bytes).ok()
            })
            .map(|bytes| (thumbprint(&bytes), bytes))
            .collect();
        if keys.is_empty() {
            return Err(KeyError::EmptyKeySet);
        }
        Ok(Self { keys })
    }

    pub(crate) fn find(&self, kid: &str) -> Option<DecodingKey> {
        self.keys
            .get(kid)
            .map(|bytes| DecodingKey::from_ed_der(bytes))
    }
}

/// RFC 7638: SHA-256 of the required members in lexical order.
fn thumbprint(public: &[u8; 32]) -> String {
    let canonical = format!(
        r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#,
        URL_SAFE_NO_PAD.encode(public)
    );
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}

/// PKCS#8 version 1, without the public key: the form that `openssl genpkey` writes and every reader takes.
fn private_der(key: &SigningKey) -> Result<ed25519_dalek::pkcs8::SecretDocument, KeyError> {
    KeypairBytes {
        secret_key: key.to_bytes(),
        public_key: None,
    }
    .to_pkcs8_der()
    .map_err(|_| KeyError::Encode)
}

/// Splits a text into its PEM blocks; what isn't one is left to the parser to refuse.
fn pem_blocks(text: &str) -> Vec<&str> {
    let mut blocks = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = match rest.find("-----END ") {
            Some(start) => match rest[start + 9..].find("-----") {
                Some(length) => start + 9 + length + 5,
                None => rest.len(),
            },
            None => rest.len(),
        };
        blocks.push(rest[..end].trim());
        rest = rest[end..].trim_start();
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8037, appendix A.3: the thumbprint of its example key.
    #[test]
    fn thumbprint_of_the_rfc_example() {
        let x = URL_SAFE_NO_PAD
            .decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
            .unwrap();
        assert_eq!(
            thumbprint(&x.try_into().unwrap()),
            "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
        );
    }

    /// AUTH-04: a generated key loads again, and its JWK set is what `jwks` says.
    #[test]
    fn generated_keys_load_again() {
        let (pem, set) = SigningKeys::generate().unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        let keys = SigningKeys::from_pem([&pem]).unwrap();
        assert_eq!(jwks(&keys), set);
        let public = VerifyingKeys::from_jwks(&set).unwrap();
        assert!(public.find(keys.kid()).is_some());
        assert!(!set.contains("\"d\""), "the private part must not show");
    }

    /// AUTH-04: several keys in one file; the first signs, all verify.
    #[test]
    fn several_keys_in_one_text() {
        let (new, _) = SigningKeys::generate().unwrap();
        let (old, _) = SigningKeys::generate().unwrap();
        let both = SigningKeys::from_pem([format!("{new}\n{old}")]).unwrap();
        let alone = SigningKeys::from_pem([&new]).unwrap();
        assert_eq!(both.kid(), alone.kid());
        assert_eq!(both.verifying_keys().keys.len(), 2);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        assert!(matches!(
            SigningKeys::from_pem(Vec::<String>::new()),
            Err(KeyError::NoKey)
        ));
        let (pem, set) = SigningKeys::generate().unwrap();
        for bad in ["nonsense", &set, &format!("{pem}\ntrailing")] {
            assert!(matches!(
                SigningKeys::from_pem([bad]),
                Err(KeyError::NotEd25519(_))
            ));
        }
        for bad in [
            r#"{"keys":[]}"#,
            r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}"#,
            r#"{"keys":[{"kty":"RSA","n":"AAAA","e":"AQAB"}]}"#,
        ] {
            assert!(matches!(
                VerifyingKeys::from_jwks(bad),
                Err(KeyError::EmptyKeySet)
            ));
        }
    }
}
