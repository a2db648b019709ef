//! The keys of people beside the chunks of a backup (AUTH-15): what is sealed opens with them only, so that who was erased can be
//! taken out of every backup by changing one small object of it.

use std::{collections::HashMap, sync::Arc};

use carillon_domain::{
    Error, ErrorCode, Result, Timestamp, UserId,
    ports::{BackupStore, KeyState},
    seal::Seal,
};

use serde::{Deserialize, Serialize};

use crate::{
    list,
    manifest::{KeyObject, Manifest, refused, sha256},
};

/// People in one object.
pub(crate) const PEOPLE: usize = 10_000;

pub(crate) type Keys = Vec<(UserId, KeyState)>;

/// Seals of people whose keys are there.
pub(crate) type Seals = HashMap<UserId, Arc<Seal>>;

/// Those of them that aren't destroyed, ready for use.
pub(crate) fn seals(keys: &[(UserId, KeyState)]) -> Result<Seals> {
    keys.iter()
        .filter_map(|(user, state)| match state {
            KeyState::Held(key) => Some(Seal::new(key).map(|seal| (*user, Arc::new(seal)))),
            KeyState::Destroyed(_) => None,
        })
        .collect()
}

pub(crate) fn path(backup: &str, object: &KeyObject) -> String {
    format!("{backup}/{}", object.name)
}

/// Reads an object of keys.
pub(crate) async fn read(
    store: &dyn BackupStore,
    manifest: &Manifest,
    object: &KeyObject,
) -> Result<Keys> {
    let path = path(&manifest.backup, object);
    let changed = |what: &str| refused(format!("{path} {what}: the backup can't be used"));
    let bytes = match store.get(&path).await {
        Err(error) if error.code == ErrorCode::NotFound => return Err(changed("is missing")),
        got => got?,
    };
    let stored: Stored = serde_json::from_slice(&bytes).map_err(|_| changed("can't be read"))?;
    let keys = stored.keys;
    if checksum(&keys)? != stored.sha256 {
        return Err(changed("was changed since it was written"));
    }
    if keys.len() as u64 != object.people {
        return Err(changed("has another number of people than was written"));
    }
    Ok(keys)
}

/// An object of keys. It says itself what it should hold, since the manifest never changes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    keys: Keys,
    /// Of the JSON of the keys, hex.
    sha256: String,
}

fn checksum(keys: &Keys) -> Result<String> {
    serde_json::to_vec(keys)
        .map(|bytes| sha256(&bytes))
        .map_err(Error::internal)
}

pub(crate) fn to_bytes(keys: Keys) -> Result<Vec<u8>> {
    let sha256 = checksum(&keys)?;
    serde_json::to_vec(&Stored { keys, sha256 }).map_err(Error::internal)
}

/// Takes the keys of erased people out of every backup of a cluster: what these hold of them can't be read from then on. Answers how
/// many objects it changed. A backup that can't be read is passed over; the first failure of the store ends it, and it may be done again.
pub async fn forget(
    store: &dyn BackupStore,
    cluster: &str,
    erased: &HashMap<UserId, Timestamp>,
) -> Result<usize> {
    let mut changed = 0;
    if erased.is_empty() {
        return Ok(changed);
    }
    for entry in list(store).await? {
        let Ok(manifest) = entry.manifest else {
            tracing::warn!(backup = %entry.backup, "a backup can't be read: people who were erased stay in it");
            continue;
        };
        if manifest.cluster != cluster {
            continue;
        }
        for object in &manifest.keys {
            let mut keys = match read(store, &manifest, object).await {
                Err(error) if error.code == ErrorCode::FailedPrecondition => {
                    tracing::warn!(%error, "keys of a backup can't be read: nobody can restore it either");
                    continue;
                }
                keys => keys?,
            };
            let mut found = false;
            for (user, state) in &mut keys {
                if let (KeyState::Held(_), Some(at)) = (&*state, erased.get(user)) {
                    *state = KeyState::Destroyed(*at);
                    found = true;
                }
            }
            if found {
                let path = path(&manifest.backup, object);
                store.put(&path, to_bytes(keys)?.into()).await?;
                changed += 1;
            }
        }
    }
    Ok(changed)
}
