//! Sealing what a person wrote or said of themselves with their key: AES-256-GCM (NIST SP 800-38D) with a random nonce.
//!
//! It knows nothing of where keys are kept, see [`crate::ports::PersonKeys`].

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::{Error, Result, ports::PersonKey};

/// A person's key, ready for use.
pub struct Seal(LessSafeKey);

impl PersonKey {
    /// A new random key.
    pub fn generate() -> Result<Self> {
        let mut key = [0; 32];
        fill(&mut key)?;
        Ok(Self(key))
    }
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    SystemRandom::new()
        .fill(bytes)
        .map_err(|_| Error::defect("the machine gives no random numbers"))
}

impl Seal {
    /// Makes a key ready.
    pub fn new(key: &PersonKey) -> Result<Self> {
        let key = UnboundKey::new(&AES_256_GCM, &key.0)
            .map_err(|_| Error::defect("a person's key has another length"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Seals bytes; opened only with the same `bound`, so that what is sealed can't be put elsewhere. 28 bytes longer than `plain`.
    pub fn seal(&self, bound: &[u8], plain: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        fill(&mut nonce)?;
        let mut sealed = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len() + NONCE_LEN);
        sealed.extend_from_slice(plain);
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(bound),
                &mut sealed,
            )
            .map_err(|_| Error::defect("too much to be sealed at once"))?;
        sealed.extend_from_slice(tag.as_ref());
        sealed.extend_from_slice(&nonce);
        Ok(sealed)
    }

    /// The reverse; `Internal` for what was sealed with another key, bound to something else, or changed.
    pub fn open(&self, bound: &[u8], mut sealed: Vec<u8>) -> Result<Vec<u8>> {
        let damaged = || Error::defect("what was sealed doesn't open with its person's key");
        let end = sealed.len().checked_sub(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed[end..]).map_err(|_| damaged())?;
        sealed.truncate(end);
        let length = self
            .0
            .open_in_place(nonce, Aad::from(bound), &mut sealed)
            .map_err(|_| damaged())?
            .len();
        sealed.truncate(length);
        Ok(sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_where_it_belongs() {
        let key = PersonKey::generate().unwrap();
        let seal = Seal::new(&key).unwrap();
        for plain in [&b""[..], b"hello", &[7; 70_000]] {
            let sealed = seal.seal(b"here", plain).unwrap();
            assert_eq!(sealed.len(), plain.len() + 28);
            assert_eq!(seal.open(b"here", sealed.clone()).unwrap(), plain);
            assert!(seal.open(b"there", sealed.clone()).is_err());
            let other = Seal::new(&PersonKey::generate().unwrap()).unwrap();
            assert!(other.open(b"here", sealed.clone()).is_err());
            let mut changed = sealed.clone();
            changed[0] ^= 1;
            assert!(seal.open(b"here", changed).is_err());
            assert!(seal.open(b"here", sealed[1..].to_vec()).is_err());
        }
        assert!(seal.open(b"", Vec::new()).is_err());
        assert_ne!(seal.seal(b"", b"x").unwrap(), seal.seal(b"", b"x").unwrap());
    }
}
