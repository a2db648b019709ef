//! What a backup consists of.
//!
//! ```text
//! <place>/<backup>/rooms-000001.ndjson.zst    chunks: a record a line (JSON), compressed (zstd)
//! <place>/<backup>/media/<id>                 the bytes of an upload, sealed with its owner's key
//! <place>/<backup>/keys-000001.json           keys of people: what is sealed, and content of messages, opens with them only.
//!                                             The only objects that change: a key is taken out when its person is erased
//! <place>/<backup>/manifest.json              written last: a folder without it is no backup
//! ```

use carillon_domain::{Error, ErrorCode, Result, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::record::Section;

/// The format that this program writes; it reads this and earlier ones.
pub const FORMAT: u32 = 2;

/// The manifest's name in its folder.
pub(crate) const NAME: &str = "manifest.json";

/// The most that a chunk may hold: more than one ever does, and little enough for any machine.
pub(crate) const MAX_CHUNK: u64 = 256 * 1024 * 1024;

/// What a backup consists of.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`] of the program that wrote it.
    pub format: u32,
    /// Its name, which is that of its folder: they sort by when they began.
    pub backup: String,
    /// The ChatCluster.
    pub cluster: String,
    /// The release that wrote it.
    pub version: String,
    /// When reading began: what was acknowledged before is in it.
    pub began: Timestamp,
    /// When everything was written.
    pub ended: Timestamp,
    /// How much of what.
    pub counts: Counts,
    /// Whether the bytes of uploads are in it.
    pub media_bytes: MediaBytes,
    /// The chunks, in the order in which they were written.
    pub chunks: Vec<Chunk>,
    /// The objects of keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyObject>,
    /// SHA-256 of the JSON of all that is above, hex.
    #[serde(default)]
    pub sha256: String,
}

/// Whether the bytes of uploads are in a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MediaBytes {
    /// They are.
    Included,
    /// They are not: their store keeps them by itself.
    LeftOut,
}

/// How much of what is in a backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Counts {
    /// Lines of all chunks.
    pub records: u64,
    /// Accounts.
    pub accounts: u64,
    /// Rooms, deleted ones too.
    pub rooms: u64,
    /// Events of all rooms.
    pub events: u64,
    /// Those that are messages.
    pub messages: u64,
    /// Uploads.
    pub media: u64,
    /// Uploads whose bytes weren't there any more.
    pub media_missing: u64,
    /// Bytes of all objects but the manifest.
    pub bytes: u64,
}

/// An object of keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyObject {
    /// Its name in the backup's folder.
    pub name: String,
    /// People in it, those who were erased too.
    pub people: u64,
}

/// A chunk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Chunk {
    /// The object's name in the backup's folder.
    pub name: String,
    /// What its records are.
    pub section: Section,
    /// Records in it.
    pub records: u64,
    /// The object's size.
    pub bytes: u64,
    /// Its size before it was compressed.
    pub raw_bytes: u64,
    /// SHA-256 of the object, hex.
    pub sha256: String,
}

impl Manifest {
    /// The object, with its own checksum.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut whole = self.clone();
        whole.sha256 = self.checksum()?;
        serde_json::to_vec_pretty(&whole).map_err(Error::internal)
    }

    /// Reads a manifest of this format; `backup` is the folder that it is in.
    pub(crate) fn from_bytes(backup: &str, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let damaged = || {
            refused(format!(
                "{backup}/{NAME} is damaged: its own checksum doesn't hold"
            ))
        };
        let Format { format } = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if format == 0 || format > FORMAT {
            return Err(refused(format!(
                "backup {backup} has format {format}, and this release knows formats up to {FORMAT}: use the release that wrote it, or a later one"
            )));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|_| damaged())?;
        if manifest.checksum()? != manifest.sha256 || manifest.backup != backup {
            return Err(damaged());
        }
        Ok(manifest)
    }

    fn checksum(&self) -> Result<String> {
        let mut plain = self.clone();
        plain.sha256.clear();
        let bytes = serde_json::to_vec(&plain).map_err(Error::internal)?;
        Ok(sha256(&bytes))
    }
}

/// SHA-256, hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// A backup that can't be used as it is.
pub(crate) fn refused(detail: String) -> Error {
    Error::new(ErrorCode::FailedPrecondition, detail)
}
