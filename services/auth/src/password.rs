//! Password hashes: Argon2id for new ones; bcrypt and scrypt of imported accounts are verified and then replaced (AUTH-11).
//!
//! Hashing is slow and takes memory on purpose, so it runs on a bounded number of threads with a bounded queue before them.
//! Times of imported hashes differ from ours until they are replaced: that an account was imported isn't hidden.

use std::{sync::Arc, time::Duration};

use argon2::{
    Algorithm, Argon2, Params, PasswordHasher as _, PasswordVerifier as _, Version,
    password_hash::phc::{Output, ParamsString, PasswordHash, Salt},
};
use carillon_domain::{Error, ErrorCode, Result, validate::MAX_PASSWORD_BYTES};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

/// Longest time that a hash of an imported account may take, as its cost: 2^16 rounds are seconds.
const MAX_BCRYPT_COST: u32 = 16;

/// How long a request waits for a worker: shorter than callers wait for the answer, so that it hears that it should try again.
const PATIENCE: Duration = Duration::from_secs(3);

/// What hashing may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswordOptions {
    /// Argon2id memory per hash, in KiB.
    pub memory_kib: u32,
    /// Argon2id passes.
    pub iterations: u32,
    /// Argon2id lanes.
    pub lanes: u32,
    /// Hashes computed at once: `workers * memory_kib` bounds the memory.
    pub workers: usize,
    /// Requests that may wait for a worker; more are refused with `Unavailable` and a time to try again.
    pub waiting: usize,
}

impl Default for PasswordOptions {
    /// 64 MiB, t=3, p=2; a worker per core.
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            memory_kib: 64 * 1024,
            iterations: 3,
            lanes: 2,
            workers,
            waiting: 32 * workers,
        }
    }
}

/// What a password is to a hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Not the password, or the hash can't be read.
    Wrong,
    /// The password.
    Right,
    /// The password; the hash should be replaced by a new one.
    RightButOutdated,
}

/// Hashes and verifies, at most so much at once.
pub(crate) struct Passwords {
    argon: Argon2<'static>,
    /// A hash of nothing, with our parameters: verifying against it takes as long as against a real one.
    dummy: String,
    workers: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

// === impl Passwords ===

impl Passwords {
    /// `Err` says which parameter is out of range.
    pub fn new(options: &PasswordOptions) -> std::result::Result<Self, String> {
        let params = Params::new(
            options.memory_kib,
            options.iterations,
            options.lanes,
            Some(Params::DEFAULT_OUTPUT_LEN),
        )
        .map_err(|error| format!("password hashing: {error}"))?;
        if options.workers == 0 {
            return Err("password hashing: needs at least one worker".to_owned());
        }
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        Ok(Self {
            dummy: dummy(argon.params()).map_err(|error| format!("password hashing: {error}"))?,
            argon,
            workers: Arc::new(Semaphore::new(options.workers)),
            admitted: Arc::new(Semaphore::new(options.workers + options.waiting)),
        })
    }

    /// A PHC string of the password with a new salt.
    pub async fn hash(&self, password: Zeroizing<String>) -> Result<String> {
        let argon = self.argon.clone();
        self.work(move || {
            argon
                .hash_password(password.as_bytes())
                .map(|hash| hash.to_string())
        })
        .await?
        .map_err(|error| Error::defect(format!("argon2: {error}")))
    }

    /// Verifies a password. Without a stored hash it takes as long as with one of ours, and answers `Wrong`.
    pub async fn verify(
        &self,
        password: Zeroizing<String>,
        stored: Option<&str>,
    ) -> Result<Verdict> {
        let argon = self.argon.clone();
        let known = stored.is_some();
        let stored = stored.unwrap_or(&self.dummy).to_owned();
        let verdict = self
            .work(move || verify(&argon, password.as_bytes(), &stored))
            .await?;
        Ok(if known { verdict } else { Verdict::Wrong })
    }

    /// Takes every place, until what is answered is dropped.
    #[cfg(test)]
    pub fn occupy(&self) -> tokio::sync::OwnedSemaphorePermit {
        let places = u32::try_from(self.admitted.available_permits()).unwrap_or(u32::MAX);
        self.admitted
            .clone()
            .try_acquire_many_owned(places)
            .unwrap()
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let closed = |_| Error::defect("the password workers are gone");
        let Ok(admitted) = self.admitted.clone().try_acquire_owned() else {
            return Err(overloaded());
        };
        let worker = self.workers.clone().acquire_owned();
        let Ok(worker) = tokio::time::timeout(PATIENCE, worker).await else {
            return Err(overloaded());
        };
        let worker = worker.map_err(closed)?;
        tokio::task::spawn_blocking(move || {
            // Held by the thread itself: a caller who goes away doesn't free the place before the work is done.
            let _held = (admitted, worker);
            work()
        })
        .await
        .map_err(Error::internal)
    }
}

fn overloaded() -> Error {
    Error::new(ErrorCode::Unavailable, "too many logins at once, try again")
        .retry_after(Duration::from_secs(2))
}

fn verify(argon: &Argon2<'_>, password: &[u8], stored: &str) -> Verdict {
    if password.len() > MAX_PASSWORD_BYTES {
        return Verdict::Wrong;
    }
    if ["$2a$", "$2b$", "$2y$"]
        .iter()
        .any(|p| stored.starts_with(p))
    {
        return imported(is_bcrypt(password, stored));
    }
    let Ok(hash) = PasswordHash::new(stored) else {
        return Verdict::Wrong;
    };
    match hash.algorithm.as_str() {
        "scrypt" => imported(
            scrypt::Scrypt::new()
                .verify_password(password, &hash)
                .is_ok(),
        ),
        name if name.starts_with("argon2") => {
            if argon.verify_password(password, &hash).is_err() {
                return Verdict::Wrong;
            }
            if is_current(argon.params(), &hash) {
                Verdict::Right
            } else {
                Verdict::RightButOutdated
            }
        }
        _ => Verdict::Wrong,
    }
}

fn imported(right: bool) -> Verdict {
    if right {
        Verdict::RightButOutdated
    } else {
        Verdict::Wrong
    }
}

/// bcrypt uses the first 72 bytes only, as the systems did that these hashes come from.
fn is_bcrypt(password: &[u8], stored: &str) -> bool {
    stored
        .parse::<bcrypt::HashParts>()
        .is_ok_and(|parts| parts.get_cost() <= MAX_BCRYPT_COST)
        && bcrypt::verify(password, stored).unwrap_or(false)
}

fn is_current(params: &Params, hash: &PasswordHash) -> bool {
    hash.algorithm == Algorithm::Argon2id.ident()
        && hash.version == Some(Version::V0x13.into())
        && Params::try_from(hash).is_ok_and(|theirs| {
            (theirs.m_cost(), theirs.t_cost(), theirs.p_cost())
                == (params.m_cost(), params.t_cost(), params.p_cost())
        })
}

fn dummy(params: &Params) -> argon2::password_hash::Result<String> {
    let random: [u8; 48] = rand::random();
    let hash = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(params)?,
        salt: Some(Salt::new(&random[..16])?),
        hash: Some(Output::new(&random[16..])?),
    };
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cheap() -> PasswordOptions {
        PasswordOptions {
            memory_kib: 64,
            iterations: 1,
            lanes: 1,
            workers: 1,
            waiting: 1,
        }
    }

    fn password(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.to_owned())
    }

    /// AUTH-11: 64 MiB, t=3, p=2, and a PHC string that says so.
    #[tokio::test]
    async fn defaults_are_as_documented() {
        let passwords = Passwords::new(&PasswordOptions::default()).unwrap();
        let hash = passwords.hash(password("correct horse")).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=65536,t=3,p=2$"),
            "{hash}"
        );
        let verdict = passwords
            .verify(password("correct horse"), Some(&hash))
            .await;
        assert_eq!(verdict.unwrap(), Verdict::Right);
    }

    /// AUTH-11: hashes made elsewhere, by other programs.
    #[tokio::test]
    async fn imported_hashes_verify_and_ask_for_an_upgrade() {
        let passwords = Passwords::new(&cheap()).unwrap();
        let known = [
            // Published vectors: crypt_blowfish's test program, and passlib's documentation of scrypt.
            (
                "U*U",
                "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            ),
            (
                "U*U",
                "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            ),
            (
                "U*U",
                "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW",
            ),
            (
                "password",
                "$scrypt$ln=16,r=8,p=1$aM15713r3Xsvxbi31lqr1Q$nFNh2CVHVjNldFVKDHDlm4CbdRSCdEBsjjJxD+iCs5E",
            ),
        ];
        for (text, hash) in known {
            let right = passwords.verify(password(text), Some(hash)).await.unwrap();
            assert_eq!(right, Verdict::RightButOutdated, "{hash}");
            let wrong = passwords.verify(password("U*V"), Some(hash)).await.unwrap();
            assert_eq!(wrong, Verdict::Wrong, "{hash}");
        }
    }

    /// AUTH-11: a hash with other parameters is replaced at the next login.
    #[tokio::test]
    async fn other_parameters_ask_for_an_upgrade() {
        let old = Passwords::new(&cheap()).unwrap();
        let hash = old.hash(password("correct horse")).await.unwrap();
        let new = Passwords::new(&PasswordOptions {
            iterations: 2,
            ..cheap()
        })
        .unwrap();
        let verdict = new.verify(password("correct horse"), Some(&hash)).await;
        assert_eq!(verdict.unwrap(), Verdict::RightButOutdated);
    }

    /// AUTH-02: without an account, and with a hash that nobody can read, the answer is "wrong".
    #[tokio::test]
    async fn nothing_verifies_against_nothing() {
        let passwords = Passwords::new(&cheap()).unwrap();
        for stored in [
            None,
            Some(""),
            Some("plain"),
            Some("$2a$99$xx"),
            Some("$md5$abc"),
        ] {
            let verdict = passwords.verify(password("plain"), stored).await.unwrap();
            assert_eq!(verdict, Verdict::Wrong, "{stored:?}");
        }
    }

    /// AUTH-11: a storm of logins is refused, not queued without end; and places come back.
    #[tokio::test]
    async fn over_capacity_is_refused_with_a_time_to_try_again() {
        let passwords = Passwords::new(&cheap()).unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let passwords = Arc::new(passwords);
        let busy = tokio::spawn({
            let passwords = passwords.clone();
            async move { passwords.work(move || held.recv().is_ok()).await }
        });
        let waiting = tokio::spawn({
            let passwords = passwords.clone();
            async move { passwords.work(|| true).await }
        });
        while passwords.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let error = passwords.hash(password("correct horse")).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.retry_after.is_some());
        release.send(()).unwrap();
        assert!(busy.await.unwrap().unwrap() && waiting.await.unwrap().unwrap());
        passwords.hash(password("correct horse")).await.unwrap();
    }

    #[test]
    fn impossible_parameters_are_refused() {
        for bad in [
            PasswordOptions {
                memory_kib: 1,
                ..cheap()
            },
            PasswordOptions {
                iterations: 0,
                ..cheap()
            },
            PasswordOptions {
                workers: 0,
                ..cheap()
            },
        ] {
            assert!(Passwords::new(&bad).is_err(), "{bad:?}");
        }
    }
}
