//! Makes objects of records: a chunk per section is open at a time, so that memory is bounded whatever there is to save.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use carillon_domain::{
    Clock, Error, ErrorCode, MediaId, Result, Timestamp, UserId,
    event::EventBody,
    media::Media,
    ports::{BackupStore, BlobStore, KeyState},
    seal::Seal,
};
use time::{OffsetDateTime, macros::format_description};
use uuid::Uuid;

use crate::{
    keys::{self, Keys, Seals},
    manifest::{
        Chunk, Counts, FORMAT, KeyObject, MAX_CHUNK, Manifest, MediaBytes, NAME, refused, sha256,
    },
    record::{Record, SealedKind, SealedMedia, Section},
};

/// A chunk is closed once it has this many bytes, uncompressed.
const CHUNK: usize = 4 * 1024 * 1024;
/// zstd's default: a third of the time of the next useful one.
const LEVEL: i32 = 3;

/// Takes what [`crate::save`] reads.
#[async_trait]
pub trait Sink: Send {
    /// Takes the next record.
    async fn take(&mut self, section: Section, record: Record) -> Result<()>;
}

/// What a backup is called, and what is known of it beforehand.
pub struct Options {
    /// The ChatCluster.
    pub cluster: String,
    /// The release.
    pub version: String,
    /// The bytes of uploads; without them they are left out.
    pub blobs: Option<Arc<dyn BlobStore>>,
}

/// Writes a backup.
pub struct Writer {
    store: Arc<dyn BackupStore>,
    clock: Arc<dyn Clock>,
    options: Options,
    backup: String,
    began: Timestamp,
    open: HashMap<Section, Open>,
    chunks: Vec<Chunk>,
    keys: Keys,
    key_objects: Vec<KeyObject>,
    /// Of those whom the next records are of.
    seals: Seals,
    erased: HashMap<UserId, Timestamp>,
    counts: Counts,
    progress: Box<dyn FnMut(&Counts) + Send>,
}

#[derive(Default)]
struct Open {
    lines: Vec<u8>,
    records: u64,
}

impl Writer {
    /// Begins a backup, before anything is read. `progress` is called after each object.
    pub fn begin(
        store: Arc<dyn BackupStore>,
        clock: Arc<dyn Clock>,
        options: Options,
        progress: impl FnMut(&Counts) + Send + 'static,
    ) -> Result<Self> {
        let began = clock.now();
        Ok(Self {
            store,
            clock,
            options,
            backup: name(began)?,
            began,
            open: HashMap::new(),
            chunks: Vec::new(),
            keys: Vec::new(),
            key_objects: Vec::new(),
            seals: Seals::new(),
            erased: HashMap::new(),
            counts: Counts::default(),
            progress: Box::new(progress),
        })
    }

    /// The backup's name.
    pub fn backup(&self) -> &str {
        &self.backup
    }

    /// Who was erased, and when, as far as it was read: for [`crate::forget`].
    pub fn erased(&self) -> HashMap<UserId, Timestamp> {
        self.erased.clone()
    }

    /// Writes what is still open, then the manifest: from then on it is a backup.
    pub async fn end(mut self) -> Result<Manifest> {
        for section in Section::ALL {
            self.close(section).await?;
        }
        self.close_keys().await?;
        let mut manifest = Manifest {
            format: FORMAT,
            backup: self.backup.clone(),
            cluster: self.options.cluster.clone(),
            version: self.options.version.clone(),
            began: self.began,
            ended: self.clock.now(),
            counts: self.counts,
            media_bytes: match self.options.blobs {
                Some(_) => MediaBytes::Included,
                None => MediaBytes::LeftOut,
            },
            chunks: std::mem::take(&mut self.chunks),
            keys: std::mem::take(&mut self.key_objects),
            sha256: String::new(),
        };
        let bytes = manifest.to_bytes()?;
        manifest = Manifest::from_bytes(&self.backup, &bytes)?;
        let path = format!("{}/{NAME}", self.backup);
        self.store.put(&path, bytes.into()).await?;
        Ok(manifest)
    }

    /// Removes what was written of a backup that won't be ended.
    pub async fn give_up(self) -> Result<()> {
        self.store.remove_folder(&self.backup).await
    }

    async fn close(&mut self, section: Section) -> Result<()> {
        let Some(open) = self.open.remove(&section) else {
            return Ok(());
        };
        let raw_bytes = open.lines.len() as u64;
        if raw_bytes > MAX_CHUNK {
            return Err(Error::defect("a record is larger than a chunk may be"));
        }
        let compressed =
            tokio::task::spawn_blocking(move || zstd::bulk::compress(&open.lines, LEVEL))
                .await
                .map_err(Error::internal)?
                .map_err(Error::internal)?;
        let number = self.chunks.len() + 1;
        let chunk = Chunk {
            name: format!("{}-{number:06}.ndjson.zst", section.name()),
            section,
            records: open.records,
            bytes: compressed.len() as u64,
            raw_bytes,
            sha256: sha256(&compressed),
        };
        let path = format!("{}/{}", self.backup, chunk.name);
        self.store.put(&path, compressed.into()).await?;
        self.counts.bytes += chunk.bytes;
        self.chunks.push(chunk);
        (self.progress)(&self.counts);
        Ok(())
    }

    /// Writes the keys that were gathered.
    async fn close_keys(&mut self) -> Result<()> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let keys = std::mem::take(&mut self.keys);
        let object = KeyObject {
            name: format!("keys-{:06}.json", self.key_objects.len() + 1),
            people: keys.len() as u64,
        };
        let path = keys::path(&self.backup, &object);
        self.store.put(&path, keys::to_bytes(keys)?.into()).await?;
        self.key_objects.push(object);
        Ok(())
    }

    /// Gathers some of all keys.
    async fn gather(&mut self, keys: Keys) -> Result<()> {
        for (user, state) in &keys {
            if let KeyState::Destroyed(at) = state {
                self.erased.insert(*user, *at);
            }
        }
        self.keys.extend(keys);
        if self.keys.len() >= keys::PEOPLE {
            self.close_keys().await?;
        }
        Ok(())
    }

    /// Seals what belongs to one person; `None` if they have been erased.
    async fn seal(&mut self, owner: UserId, mut record: Record) -> Result<Option<Record>> {
        let Some(seal) = self.seals.get(&owner).cloned() else {
            return Ok(None);
        };
        let mut media = None;
        let of = match &mut record {
            Record::Account(_) => SealedKind::Account,
            Record::Media {
                media: upload,
                bytes,
            } => {
                media = self.copy(upload, &seal).await?;
                *bytes = media.is_some();
                SealedKind::Media
            }
            _ => SealedKind::Other,
        };
        let plain = serde_json::to_vec(&record).map_err(Error::internal)?;
        let sealed = seal.seal(owner.0.as_bytes(), &plain)?;
        Ok(Some(Record::Sealed {
            user: owner,
            of,
            media,
            sealed: BASE64.encode(sealed),
        }))
    }

    /// Copies an upload's bytes, if they are to be and there are any; how they are in the backup. They never change, and are checked
    /// against what was noted when they came.
    async fn copy(&mut self, media: &Media, seal: &Seal) -> Result<Option<SealedMedia>> {
        let Some(blobs) = &self.options.blobs else {
            return Ok(None);
        };
        let bytes = match blobs.get(media.id, None).await {
            Ok(bytes) => bytes,
            Err(error) if error.code == ErrorCode::NotFound => {
                self.counts.media_missing += 1;
                tracing::warn!(media = %media.id, "an upload has no bytes; its entry alone is saved");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        check_media(media, &bytes).map_err(|_| {
            refused(format!(
                "the bytes of upload {} aren't those that were uploaded: they are damaged",
                media.id
            ))
        })?;
        let sealed = seal.seal(media.id.0.as_bytes(), &bytes)?;
        let copied = SealedMedia {
            id: media.id,
            bytes: sealed.len() as u64,
            sha256: sha256(&sealed),
        };
        self.counts.bytes += copied.bytes;
        let path = media_path(&self.backup, media.id);
        self.store.put(&path, sealed.into()).await?;
        (self.progress)(&self.counts);
        Ok(Some(copied))
    }
}

#[async_trait]
impl Sink for Writer {
    async fn take(&mut self, section: Section, mut record: Record) -> Result<()> {
        match record {
            Record::KeysFor(keys) => {
                self.seals = keys::seals(&keys)?;
                return Ok(());
            }
            Record::Keys(keys) => return self.gather(keys).await,
            _ => {}
        }
        if let Some(owner) = record.owner() {
            match self.seal(owner, record).await? {
                Some(sealed) => record = sealed,
                None => return Ok(()),
            }
        }
        count(&mut self.counts, &record);
        let open = self.open.entry(section).or_default();
        serde_json::to_writer(&mut open.lines, &record).map_err(Error::internal)?;
        open.lines.push(b'\n');
        open.records += 1;
        if open.lines.len() >= CHUNK {
            self.close(section).await?;
        }
        Ok(())
    }
}

/// Counts a record, as it is written and as it is restored.
pub(crate) fn count(counts: &mut Counts, record: &Record) {
    counts.records += 1;
    match record {
        Record::Account(_)
        | Record::Sealed {
            of: SealedKind::Account,
            ..
        } => counts.accounts += 1,
        Record::Media { .. }
        | Record::Sealed {
            of: SealedKind::Media,
            ..
        } => counts.media += 1,
        Record::Room { .. } => counts.rooms += 1,
        Record::Events { events, .. } => {
            counts.events += events.len() as u64;
            let messages = events
                .iter()
                .filter(|event| matches!(event.body, EventBody::Message { .. }));
            counts.messages += messages.count() as u64;
        }
        _ => {}
    }
}

/// Whether these are an upload's bytes.
pub(crate) fn check_media(media: &Media, bytes: &Bytes) -> Result<(), ()> {
    let fits = bytes.len() as u64 == media.size && sha256(bytes) == media.sha256;
    if fits { Ok(()) } else { Err(()) }
}

/// Where an upload's bytes are.
pub(crate) fn media_path(backup: &str, id: MediaId) -> String {
    format!("{backup}/media/{id}")
}

/// The name of a backup that begins now: names sort by time, to the millisecond, since two may begin within one second.
fn name(began: Timestamp) -> Result<String> {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(began.0) * 1_000_000)
        .map_err(Error::internal)?;
    let form =
        format_description!("[year][month][day]T[hour][minute][second][subsecond digits:3]Z");
    let time = time.format(form).map_err(Error::internal)?;
    let random = Uuid::new_v4().simple().to_string();
    Ok(format!("{time}-{}", &random[..8]).to_lowercase())
}
