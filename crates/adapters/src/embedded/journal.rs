//! A look at the engine's journals before it opens them.
//!
//! After a power cut, any part of the last write may be missing from the journal: it was not acknowledged, and is cut off here.
//! But when whole writes follow a broken one, the disk lost something that was acknowledged. The engine doesn't tell the two
//! apart: it refuses some of the first kind and silently drops what follows some of the second.
//!
//! A journal (format 3 of the engine) is a sequence of batches, and zeros after them:
//! start (1, number of entries: u32, batch: u64), entries, end (3, XXH3 of the entries: u64, `FJL\x03`); an entry is an item
//! (2, kind, compression, table: u64, lengths of key: u16, of value: u32, of value as stored: u32, key, value) or a cleared
//! table (4, table: u64). Numbers are little-endian.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
};

use carillon_domain::Result;
use xxhash_rust::xxh3::xxh3_64;

use super::directory::damaged;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const MAGIC: &[u8] = b"FJL\x03";

/// What a journal is like.
#[derive(PartialEq, Eq, Debug)]
enum Verdict {
    /// Whole batches, and nothing after them.
    Whole,
    /// Whole batches up to here, and then a part of one.
    Torn(usize),
    /// Whole batches after a broken one.
    Broken,
}

/// Cuts off a torn write. `FailedPrecondition` when something is broken that was acknowledged.
pub(super) fn check(store: &Path) -> Result<()> {
    let cannot = |cause: std::io::Error| damaged(store, &cause);
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(store).map_err(cannot)? {
        let path = entry.map_err(cannot)?.path();
        if let Some(number) = number_of(&path) {
            journals.push((number, path));
        }
    }
    journals.sort();
    let newest = journals.len().saturating_sub(1);
    for (place, (_, path)) in journals.iter().enumerate() {
        let bytes = std::fs::read(path).map_err(cannot)?;
        match verdict(&bytes) {
            Verdict::Whole => {}
            // Only the newest was being written.
            Verdict::Torn(at) if place == newest => {
                cut(path, at).map_err(cannot)?;
                tracing::warn!(
                    journal = %path.display(),
                    at,
                    "the last write before the crash was torn, and nobody had been told that it was done: it was cut off"
                );
            }
            Verdict::Torn(_) | Verdict::Broken => {
                return Err(damaged(store, &"a journal is broken in the middle"));
            }
        }
    }
    Ok(())
}

fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(".jnl")?.parse().ok()
}

fn cut(path: &PathBuf, at: usize) -> std::io::Result<()> {
    let journal = OpenOptions::new().write(true).open(path)?;
    journal.set_len(at as u64)?;
    journal.sync_all()
}

fn verdict(bytes: &[u8]) -> Verdict {
    let mut at = 0;
    while let Some(end) = end_of_batch(bytes, at) {
        at = end;
    }
    let rest = &bytes[at..];
    if rest.iter().all(|byte| *byte == 0) {
        return Verdict::Whole;
    }
    let whole_later = (at + 1..bytes.len())
        .any(|later| bytes[later] == START && end_of_batch(bytes, later).is_some());
    if whole_later {
        Verdict::Broken
    } else {
        Verdict::Torn(at)
    }
}

/// Where the batch that begins here ends, if it is whole.
fn end_of_batch(bytes: &[u8], at: usize) -> Option<usize> {
    let mut reader = Reader { bytes, at };
    (reader.byte()? == START).then_some(())?;
    let entries = u32::from_le_bytes(reader.take()?);
    reader.skip(8)?;
    let first = reader.at;
    for _ in 0..entries {
        match reader.byte()? {
            ITEM => {
                reader.skip(1 + 1 + 8)?;
                let key = u16::from_le_bytes(reader.take()?);
                reader.skip(4)?;
                let value = u32::from_le_bytes(reader.take()?);
                reader.skip(usize::from(key).checked_add(usize::try_from(value).ok()?)?)?;
            }
            CLEAR => reader.skip(8)?,
            _ => return None,
        }
    }
    let entries = &bytes[first..reader.at];
    (reader.byte()? == END).then_some(())?;
    let checksum = u64::from_le_bytes(reader.take()?);
    (reader.take::<4>()? == MAGIC && xxh3_64(entries) == checksum).then_some(reader.at)
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        let at = self.at.checked_add(count)?;
        self.at = (at <= self.bytes.len()).then_some(at)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    /// Journals as the engine writes them: with values large enough to be compressed, removals, and cleared tables.
    fn journal(batches: usize) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::builder(folder.path()).open().unwrap();
        let table = database
            .keyspace("table", KeyspaceCreateOptions::default)
            .unwrap();
        for n in 0..batches {
            let mut batch = database.batch();
            batch.insert(&table, format!("key {n}"), vec![n as u8; 100]);
            batch.insert(&table, format!("large {n}"), vec![n as u8; 10_000]);
            batch.remove(&table, format!("removed {n}"));
            batch.commit().unwrap();
        }
        table.clear().unwrap();
        database.persist(PersistMode::SyncAll).unwrap();
        let mut bytes = std::fs::read(folder.path().join("0.jnl")).unwrap();
        drop((table, database));
        // Preallocated: mostly zeros.
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        bytes.truncate(used + 64);
        bytes
    }

    fn starts(bytes: &[u8]) -> Vec<usize> {
        let mut starts = vec![0];
        while let Some(end) = end_of_batch(bytes, starts[starts.len() - 1]) {
            starts.push(end);
        }
        starts
    }

    /// If this fails after an update of the engine, its format changed.
    #[test]
    fn the_engines_journals_are_understood() {
        let bytes = journal(5);
        assert_eq!(verdict(&bytes), Verdict::Whole);
        assert_eq!(starts(&bytes).len(), 5 + 1 + 1, "five batches and a clear");
        assert_eq!(verdict(&[]), Verdict::Whole);
        assert_eq!(verdict(&[0; 100]), Verdict::Whole);
    }

    /// Whatever part of the last batch is missing or wrong, it is torn; any other is broken.
    #[test]
    fn every_damage_is_found() {
        let bytes = journal(4);
        let starts = starts(&bytes);
        for (batch, range) in starts.windows(2).enumerate() {
            let last = batch == starts.len() - 2;
            for at in (range[0]..range[1]).step_by(7) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 0x55;
                let expected = if last {
                    Verdict::Torn(range[0])
                } else {
                    Verdict::Broken
                };
                // What isn't hashed and isn't needed is the batch's number.
                if !(range[0] + 5..range[0] + 13).contains(&at) {
                    assert_eq!(verdict(&damaged), expected, "batch {batch}, byte {at}");
                }
                if last && at > range[0] {
                    assert_eq!(verdict(&damaged[..at]), Verdict::Torn(range[0]));
                }
            }
        }
    }
}
