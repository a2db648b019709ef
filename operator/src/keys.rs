//! Keys that the operator makes for a cluster, once: the Ed25519 key that signs access tokens, and the token by which
//! the roles know each other; and the one access token it signs itself, the probe's. Rotation is not here.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use carillon_crds::PROBE_USER;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use ed25519_dalek::{SECRET_KEY_LENGTH, Signer, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

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

/// 32 random bytes in hex.
pub fn new_internal_token() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// The JWK set with the public half of `signing_key_pem`, the same text for the same key.
pub fn jwks_of(signing_key_pem: &str) -> Result<String, UnusableKey> {
    let key = SigningKey::from_pkcs8_pem(signing_key_pem).map_err(|_| UnusableKey)?;
    Ok(json!({ "keys": [jwk(&key.verifying_key())] }).to_string())
}

/// An access token (RFC 7519, EdDSA) of the probe's person, good from `now` for `ttl`, both in seconds.
pub fn probe_token(
    signing_key_pem: &str,
    issuer: &str,
    now: i64,
    ttl: i64,
) -> Result<String, UnusableKey> {
    let key = SigningKey::from_pkcs8_pem(signing_key_pem).map_err(|_| UnusableKey)?;
    let x = URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes());
    let header = json!({ "typ": "JWT", "alg": "EdDSA", "kid": thumbprint(&x) });
    let claims = json!({
        "iss": issuer,
        "aud": "carillon-api",
        "type": "access",
        "sub": PROBE_USER,
        // One device: its lease of presence is always the same one.
        "did": PROBE_USER,
        "jti": random_uuid(),
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

/// A random UUID in the usual form (RFC 9562, version 4).
pub fn random_uuid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let digits = hex::encode(bytes);
    format!(
        "{}-{}-{}-{}-{}",
        &digits[..8],
        &digits[8..12],
        &digits[12..16],
        &digits[16..20],
        &digits[20..]
    )
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

    #[test]
    fn a_new_key_is_read_back_and_has_one_public_jwk() {
        let pem = new_signing_key_pem();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----"));
        let jwks = jwks_of(&pem).unwrap();
        assert_eq!(jwks, jwks_of(&pem).unwrap());
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
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ] {
            assert!(jwks_of(text).is_err());
        }
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
        let jwks: Value = serde_json::from_str(&jwks_of(&pem).unwrap()).unwrap();
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
    fn internal_tokens_are_64_hex_digits_and_differ() {
        let token = new_internal_token();
        assert_eq!(token.len(), 64);
        assert!(token.chars().all(|c| c.is_ascii_hexdigit()));
        assert_ne!(token, new_internal_token());
    }
}
