//! Web Push: encrypted payloads (RFC 8291 over RFC 8188) and the application server's identification (RFC 8292).
//!
//! The elliptic curve is from `p256`, since the keys of the RFC's example must be usable; HMAC and AES-GCM are ring's, which is
//! in the program for TLS anyway.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use carillon_domain::Timestamp;
use p256::{
    PublicKey, SecretKey,
    ecdh::diffie_hellman,
    ecdsa::{Signature, SigningKey, signature::Signer},
    elliptic_curve::sec1::ToEncodedPoint,
    pkcs8::DecodePrivateKey,
};
use ring::{aead, hmac};
use url::Url;

use crate::options::OptionsError;

/// Longest plaintext that every push service takes: a body of 4096 bytes less header (86), delimiter (1) and tag (16).
pub(crate) const MAX_PLAINTEXT: usize = 3993;

const RECORD_SIZE: u32 = 4096;

/// How long an identification is valid; RFC 8292 allows a day.
const IDENTIFICATION_SECONDS: i64 = 12 * 3600;

/// The application server's key pair (RFC 8292).
#[derive(Clone)]
pub struct VapidKey {
    secret: SecretKey,
}

impl std::fmt::Debug for VapidKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VapidKey")
            .field("public", &self.public_key())
            .finish_non_exhaustive()
    }
}

/// The keys of a browser's subscription.
#[derive(Clone, Debug)]
pub(crate) struct Subscription {
    public: PublicKey,
    auth: [u8; 16],
}

/// Something is wrong with a key; nothing more is said about it.
#[derive(Debug, thiserror::Error)]
#[error("the payload can't be encrypted")]
pub(crate) struct EncryptError;

// === impl VapidKey ===

impl VapidKey {
    /// A new key.
    pub fn generate() -> Self {
        Self {
            secret: random_secret(),
        }
    }

    /// Reads PKCS#8 PEM, or the 32 bytes of the private key in base64url, as most tools for Web Push print them.
    pub fn parse(text: &str) -> Result<Self, OptionsError> {
        let text = text.trim();
        let secret = if text.starts_with("-----BEGIN") {
            SecretKey::from_pkcs8_pem(text).ok()
        } else {
            decode(text).and_then(|bytes| SecretKey::from_slice(&bytes).ok())
        };
        secret
            .map(|secret| Self { secret })
            .ok_or(OptionsError::VapidKey)
    }

    /// The private key in base64url: a secret, in the form that [`VapidKey::parse`] reads.
    pub fn private_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.secret.to_bytes())
    }

    /// The public key in base64url, uncompressed: a browser's `applicationServerKey`.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(uncompressed(&self.secret.public_key()))
    }

    /// The value of `Authorization` for an endpoint.
    pub(crate) fn authorization(&self, endpoint: &Url, subject: &str, now: Timestamp) -> String {
        let header = r#"{"typ":"JWT","alg":"ES256"}"#;
        let claims = serde_json::json!({
            "aud": endpoint.origin().ascii_serialization(),
            "exp": now.seconds() + IDENTIFICATION_SECONDS,
            "sub": subject,
        });
        let signed = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(claims.to_string())
        );
        let signature: Signature = SigningKey::from(&self.secret).sign(signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature.to_bytes());
        format!("vapid t={signed}.{signature}, k={}", self.public_key())
    }
}

// === impl Subscription ===

impl Subscription {
    /// Reads `p256dh` and `auth`; the error names the field that is wrong.
    pub fn parse(p256dh: &str, auth: &str) -> Result<Self, &'static str> {
        let public = decode(p256dh)
            .filter(|bytes| bytes.len() == 65)
            .and_then(|bytes| PublicKey::from_sec1_bytes(&bytes).ok())
            .ok_or("p256dh")?;
        let auth = decode(auth)
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or("auth")?;
        Ok(Self { public, auth })
    }

    /// Encrypts a payload of at most [`MAX_PLAINTEXT`] bytes for this subscription: the body of the request.
    pub fn encrypt(&self, plaintext: &[u8]) -> Result<Vec<u8>, EncryptError> {
        self.encrypt_with(plaintext, &random_secret(), rand::random())
    }

    /// RFC 8291, section 3.4, with the given key and salt: each may be used for one message only.
    fn encrypt_with(
        &self,
        plaintext: &[u8],
        secret: &SecretKey,
        salt: [u8; 16],
    ) -> Result<Vec<u8>, EncryptError> {
        if plaintext.len() > MAX_PLAINTEXT {
            return Err(EncryptError);
        }
        let ours = uncompressed(&secret.public_key());
        let theirs = uncompressed(&self.public);
        let shared = diffie_hellman(secret.to_nonzero_scalar(), self.public.as_affine());
        let shared = shared.raw_secret_bytes();

        let info = [b"WebPush: info\0".as_slice(), &theirs, &ours].concat();
        let input = expand(&extract(&self.auth, shared), &info);
        let key = extract(&salt, input.as_ref());
        let content_key = expand(&key, b"Content-Encoding: aes128gcm\0");
        let nonce = expand(&key, b"Content-Encoding: nonce\0");

        let cipher = aead::UnboundKey::new(&aead::AES_128_GCM, &content_key.as_ref()[..16])
            .map_err(|_| EncryptError)?;
        let nonce = aead::Nonce::try_assume_unique_for_key(&nonce.as_ref()[..12])
            .map_err(|_| EncryptError)?;
        // 2 delimits the last record from its padding, of which there is none.
        let mut record = [plaintext, &[2]].concat();
        aead::LessSafeKey::new(cipher)
            .seal_in_place_append_tag(nonce, aead::Aad::empty(), &mut record)
            .map_err(|_| EncryptError)?;

        let mut body = Vec::with_capacity(16 + 4 + 1 + ours.len() + record.len());
        body.extend_from_slice(&salt);
        body.extend_from_slice(&RECORD_SIZE.to_be_bytes());
        body.push(65);
        body.extend_from_slice(&ours);
        body.extend_from_slice(&record);
        Ok(body)
    }
}

/// HKDF-Extract with SHA-256 (RFC 5869).
fn extract(salt: &[u8], input: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), input)
}

/// The first block of HKDF-Expand, 32 bytes: no output here is longer.
fn expand(key: &hmac::Tag, info: &[u8]) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_ref());
    hmac::sign(&key, &[info, &[1]].concat())
}

fn uncompressed(key: &PublicKey) -> [u8; 65] {
    let mut bytes = [0; 65];
    bytes.copy_from_slice(key.to_encoded_point(false).as_bytes());
    bytes
}

/// One of 2^32 random texts is no key: then another is tried.
fn random_secret() -> SecretKey {
    loop {
        if let Ok(secret) = SecretKey::from_slice(&rand::random::<[u8; 32]>()) {
            return secret;
        }
    }
}

/// Browsers send base64url, some libraries with padding.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    (text.len() <= 128).then(|| URL_SAFE_NO_PAD.decode(text).ok())?
}

#[cfg(test)]
mod tests {
    use p256::ecdsa::{VerifyingKey, signature::Verifier};

    use super::*;

    /// NOTIF-01: the example of RFC 8291, appendix A, byte for byte.
    #[test]
    fn the_example_of_rfc_8291() {
        let subscription = Subscription::parse(
            "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4",
            "BTBZMqHH6r4Tts7J_aSIgg",
        )
        .unwrap();
        let secret = decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw").unwrap();
        let salt = decode("DGv6ra1nlYgDCS1FRnbzlw").unwrap();
        let body = subscription
            .encrypt_with(
                b"When I grow up, I want to be a watermelon",
                &SecretKey::from_slice(&secret).unwrap(),
                salt.try_into().unwrap(),
            )
            .unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27ml\
             mlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPT\
             pK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    /// NOTIF-01: the largest payload makes a body of 4096 bytes; a larger one is refused.
    #[test]
    fn the_largest_payload() {
        let browser = random_secret();
        let subscription = Subscription {
            public: browser.public_key(),
            auth: [7; 16],
        };
        let body = subscription.encrypt(&[b'x'; MAX_PLAINTEXT]).unwrap();
        assert_eq!(body.len(), 4096);
        assert!(subscription.encrypt(&[b'x'; MAX_PLAINTEXT + 1]).is_err());
        let again = subscription.encrypt(&[b'x'; MAX_PLAINTEXT]).unwrap();
        assert_ne!(body, again, "key and salt are new for each message");
    }

    #[test]
    fn wrong_keys_of_a_subscription_are_named() {
        let public = VapidKey::generate().public_key();
        let auth = URL_SAFE_NO_PAD.encode([1; 16]);
        assert!(Subscription::parse(&public, &auth).is_ok());
        assert!(Subscription::parse(&format!("{public}="), &format!("{auth}==")).is_ok());
        let off_curve = URL_SAFE_NO_PAD.encode([&[4u8][..], &[1; 64]].concat());
        for bad in ["", "AAAA", &off_curve, &"A".repeat(500)] {
            assert_eq!(
                Subscription::parse(bad, &auth).err(),
                Some("p256dh"),
                "{bad}"
            );
        }
        for bad in ["", "AAAA", &public] {
            assert_eq!(
                Subscription::parse(&public, bad).err(),
                Some("auth"),
                "{bad}"
            );
        }
    }

    /// NOTIF-01: RFC 8292: signed for the origin of the endpoint, by the key that is named.
    #[test]
    fn identification_verifies() {
        let key = VapidKey::parse(&VapidKey::generate().private_key()).unwrap();
        let endpoint = Url::parse("https://push.example.com:8443/abc?d=e").unwrap();
        let value = key.authorization(&endpoint, "mailto:ops@example.com", Timestamp(1_000_000));
        let (token, public) = value
            .strip_prefix("vapid t=")
            .unwrap()
            .split_once(", k=")
            .unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let public = VerifyingKey::from_sec1_bytes(&decode(public).unwrap()).unwrap();
        let signature = Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        public.verify(signed.as_bytes(), &signature).unwrap();
        let claims = signed.split_once('.').unwrap().1;
        let claims: serde_json::Value =
            serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        assert_eq!(claims["aud"], "https://push.example.com:8443");
        assert_eq!(claims["exp"], 1000 + IDENTIFICATION_SECONDS);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in [
            "",
            "nonsense!",
            "AAAA",
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        ] {
            assert!(VapidKey::parse(bad).is_err(), "{bad}");
        }
    }
}
