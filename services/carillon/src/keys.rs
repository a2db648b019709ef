//! Keys of a platform on one machine: made once under the data directory, readable by their owner only. In Kubernetes the
//! operator makes them.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use carillon_auth::SigningKeys;
use carillon_crds::config::KeysConfig;
use rand::RngCore as _;

use crate::failure::Failure;

/// Makes the keys that aren't there yet.
pub fn ensure(config: &KeysConfig) -> Result<(), Failure> {
    if !config.signing_key_file.exists() {
        let (pem, _) = SigningKeys::generate()
            .map_err(|error| Failure::software(format!("can't make a signing key: {error}")))?;
        write_once(&config.signing_key_file, &pem)?;
    }
    if let Some(file) = &config.internal_token_file
        && !file.exists()
    {
        let mut bytes = [0; 32];
        rand::rng().fill_bytes(&mut bytes);
        write_once(file, &hex::encode(bytes))?;
    }
    Ok(())
}

/// Whole or not at all: a key file that a crash cut off would lock everybody out.
fn write_once(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        Failure::unavailable(format!("can't write {}: {error}", path.display()))
    };
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
    }
    let draft = path.with_extension("new");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .map_err(failed)?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// The operator and the roles mean the same person.
    #[test]
    fn the_probe_is_one_person() {
        let probe = carillon_domain::UserId::PROBE.to_string();
        assert_eq!(probe, carillon_crds::PROBE_USER);
    }

    #[test]
    fn keys_are_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let config = KeysConfig {
            signing_key_file: directory.path().join("keys/jwt.pem"),
            jwks_file: directory.path().join("keys/jwks.json"),
            internal_token_file: Some(directory.path().join("keys/token")),
        };
        ensure(&config).unwrap();
        let first = fs::read_to_string(&config.signing_key_file).unwrap();
        ensure(&config).unwrap();
        assert_eq!(fs::read_to_string(&config.signing_key_file).unwrap(), first);
        assert_eq!(
            fs::metadata(&config.signing_key_file)
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o600
        );
        assert!(SigningKeys::from_pem([first]).is_ok());
    }
}
