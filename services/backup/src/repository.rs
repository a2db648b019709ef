//! A place with backups: which there are, whether they are whole, and which may go.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use carillon_domain::{
    Error, ErrorCode, MediaId, Result, Timestamp, media::Media, ports::BackupStore, seal::Seal,
};

use crate::{
    keys,
    manifest::{Chunk, Counts, MAX_CHUNK, Manifest, NAME, refused, sha256},
    record::{Record, SealedMedia, Section},
    write::{check_media, count, media_path},
};

/// A folder of a place.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub backup: String,
    /// What it has; an error for one that is damaged or of a newer format.
    pub manifest: Result<Manifest>,
}

/// Which backups to keep. One that fits any of them stays; without any all do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// The newest ones.
    pub last: Option<usize>,
    /// Those that aren't older.
    pub age: Option<Duration>,
}

/// The backups of a place, oldest first. Folders without a manifest are none.
pub async fn list(store: &dyn BackupStore) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for backup in store.folders().await? {
        match manifest(store, &backup).await {
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) if error.code == ErrorCode::Unavailable => return Err(error),
            manifest => entries.push(Entry { backup, manifest }),
        }
    }
    Ok(entries)
}

/// One backup, or the newest one. `NotFound` that says what there is.
pub async fn find(store: &dyn BackupStore, backup: Option<&str>) -> Result<Manifest> {
    let missing = |detail: String| Error::new(ErrorCode::NotFound, detail);
    let Some(backup) = backup else {
        let newest = list(store).await?.pop();
        return newest
            .ok_or_else(|| missing("there is no backup here".to_owned()))?
            .manifest;
    };
    match manifest(store, backup).await {
        Err(error) if error.code == ErrorCode::NotFound => Err(missing(format!(
            "there is no backup {backup} here: it has no {NAME}"
        ))),
        found => found,
    }
}

async fn manifest(store: &dyn BackupStore, backup: &str) -> Result<Manifest> {
    // It becomes a part of paths.
    let harmless = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if backup.is_empty() || !backup.chars().all(harmless) {
        return Err(Error::not_found("backup"));
    }
    let bytes = store.get(&format!("{backup}/{NAME}")).await?;
    Manifest::from_bytes(backup, &bytes)
}

/// Reads all of a backup and checks it: every chunk by its checksum, every record, every upload by that which was noted when it came,
/// and the counts. The error names the object that is missing or was changed. `progress` is called after each chunk.
pub async fn verify(
    store: &dyn BackupStore,
    manifest: &Manifest,
    mut progress: impl FnMut(usize),
) -> Result<()> {
    let mut counts = Counts {
        media_missing: manifest.counts.media_missing,
        ..Counts::default()
    };
    for (done, chunk) in manifest.chunks.iter().enumerate() {
        counts.bytes += chunk.bytes;
        for record in read(store, manifest, chunk).await? {
            count(&mut counts, &record);
            match &record {
                Record::Media { media, bytes: true } => {
                    let bytes = media_bytes(store, manifest, media, None).await?;
                    counts.bytes += bytes.len() as u64;
                }
                Record::Sealed {
                    media: Some(media), ..
                } => {
                    sealed_bytes(store, manifest, media).await?;
                    counts.bytes += media.bytes;
                }
                _ => {}
            }
        }
        progress(done + 1);
    }
    for object in &manifest.keys {
        keys::read(store, manifest, object).await?;
    }
    if counts != manifest.counts {
        return Err(refused(format!(
            "backup {} doesn't hold what its manifest counts",
            manifest.backup
        )));
    }
    Ok(())
}

/// The records of a chunk, if it is what was written.
pub(crate) async fn read(
    store: &dyn BackupStore,
    manifest: &Manifest,
    chunk: &Chunk,
) -> Result<Vec<Record>> {
    let path = format!("{}/{}", manifest.backup, chunk.name);
    let changed = |what: &str| refused(format!("{path} {what}: the backup can't be used"));
    let bytes = match store.get(&path).await {
        Err(error) if error.code == ErrorCode::NotFound => return Err(changed("is missing")),
        got => got?,
    };
    if bytes.len() as u64 != chunk.bytes || sha256(&bytes) != chunk.sha256 {
        return Err(changed("was changed since it was written"));
    }
    if chunk.raw_bytes > MAX_CHUNK {
        return Err(changed("is larger than any chunk may be"));
    }
    let raw = usize::try_from(chunk.raw_bytes).map_err(Error::internal)?;
    let records = tokio::task::spawn_blocking(move || {
        let lines = zstd::bulk::decompress(&bytes, raw).map_err(Error::internal)?;
        lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).map_err(Error::internal))
            .collect::<Result<Vec<Record>>>()
    })
    .await
    .map_err(Error::internal)?
    .map_err(|error| changed("can't be read").caused_by(error))?;
    if records.len() as u64 != chunk.records {
        return Err(changed("has another number of records than was written"));
    }
    Ok(records)
}

/// An upload's bytes as they are in the backup, if they are what was written.
async fn sealed_bytes(
    store: &dyn BackupStore,
    manifest: &Manifest,
    media: &SealedMedia,
) -> Result<Bytes> {
    let bytes = stored_bytes(store, manifest, media.id).await?;
    match bytes.len() as u64 == media.bytes && sha256(&bytes) == media.sha256 {
        true => Ok(bytes),
        false => Err(changed_bytes(manifest, media.id)),
    }
}

async fn stored_bytes(store: &dyn BackupStore, manifest: &Manifest, id: MediaId) -> Result<Bytes> {
    let path = media_path(&manifest.backup, id);
    match store.get(&path).await {
        Err(error) if error.code == ErrorCode::NotFound => Err(refused(format!(
            "{path} is missing: the backup can't be used"
        ))),
        got => got,
    }
}

fn changed_bytes(manifest: &Manifest, id: MediaId) -> Error {
    let path = media_path(&manifest.backup, id);
    refused(format!(
        "{path} was changed since it was written: the backup can't be used"
    ))
}

/// An upload's bytes, if they are what was uploaded; `seal` opens them where they are sealed.
pub(crate) async fn media_bytes(
    store: &dyn BackupStore,
    manifest: &Manifest,
    media: &Media,
    seal: Option<&Seal>,
) -> Result<Bytes> {
    let mut bytes = stored_bytes(store, manifest, media.id).await?;
    let changed = || changed_bytes(manifest, media.id);
    if let Some(seal) = seal {
        let opened = seal.open(media.id.0.as_bytes(), bytes.into());
        bytes = opened.map_err(|_| changed())?.into();
    }
    check_media(media, &bytes).map_err(|()| changed())?;
    Ok(bytes)
}

/// Removes the backups of a cluster that needn't be kept, and answers their names. The newest one always stays; so does what can't be
/// read, since nobody knows whose it is, and what others put beside.
pub async fn prune(
    store: &dyn BackupStore,
    cluster: &str,
    keep: Keep,
    now: Timestamp,
) -> Result<Vec<String>> {
    let manifests: Vec<Manifest> = list(store)
        .await?
        .into_iter()
        .filter_map(|entry| entry.manifest.ok())
        .filter(|manifest| manifest.cluster == cluster)
        .collect();
    let gone = outlived(&manifests, keep, now);
    for backup in &gone {
        // First the manifest: what is left of it then is no backup, whenever this is cut off.
        store.remove(&format!("{backup}/{NAME}")).await?;
        store.remove_folder(backup).await?;
    }
    Ok(gone.into_iter().collect())
}

/// Which of them needn't be kept.
fn outlived(manifests: &[Manifest], keep: Keep, now: Timestamp) -> BTreeSet<String> {
    if keep == Keep::default() {
        return BTreeSet::new();
    }
    let mut newest_first: Vec<&Manifest> = manifests.iter().collect();
    newest_first.sort_by_key(|manifest| std::cmp::Reverse((manifest.began, &manifest.backup)));
    let stays = |place: usize, manifest: &Manifest| {
        place == 0
            || keep.last.is_some_and(|last| place < last)
            || keep.age.is_some_and(|age| now.since(manifest.began) <= age)
    };
    newest_first
        .into_iter()
        .enumerate()
        .filter(|(place, manifest)| !stays(*place, manifest))
        .map(|(_, manifest)| manifest.backup.clone())
        .collect()
}

impl Manifest {
    /// The chunks of a section.
    pub(crate) fn chunks_of(&self, section: Section) -> impl Iterator<Item = &Chunk> {
        self.chunks
            .iter()
            .filter(move |chunk| chunk.section == section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MediaBytes;

    fn made(days_ago: i64) -> Manifest {
        Manifest {
            format: 1,
            backup: format!("b{days_ago}"),
            cluster: "town".into(),
            version: "1".into(),
            began: Timestamp((100 - days_ago) * 86_400_000),
            ended: Timestamp(0),
            counts: Counts::default(),
            media_bytes: MediaBytes::LeftOut,
            chunks: Vec::new(),
            keys: Vec::new(),
            sha256: String::new(),
        }
    }

    fn gone(last: Option<usize>, days: Option<u64>) -> Vec<String> {
        let manifests: Vec<Manifest> = [9, 5, 3, 1].map(made).to_vec();
        let age = days.map(|days| Duration::from_secs(days * 86_400));
        let now = Timestamp(100 * 86_400_000);
        outlived(&manifests, Keep { last, age }, now)
            .into_iter()
            .collect()
    }

    #[test]
    fn what_fits_any_rule_stays_and_the_newest_always() {
        assert!(gone(None, None).is_empty());
        assert_eq!(gone(Some(2), None), ["b5", "b9"]);
        assert_eq!(gone(None, Some(4)), ["b5", "b9"]);
        assert_eq!(gone(Some(1), Some(6)), ["b9"]);
        assert_eq!(gone(Some(0), Some(0)), ["b3", "b5", "b9"]);
    }
}
