//! The version of the stored format, and the steps that bring an older store up to date (OPS-06).

use std::path::Path;

use carillon_domain::{Error, ErrorCode, Result, media::Media};
use fjall::{Database, OwnedWriteBatch, PersistMode};

use super::{
    directory::damaged,
    tables::{Table, Tables},
};

/// What this program writes.
pub(super) const VERSION: u32 = 4;

const KEY: &[u8] = b"format";

/// A step from one version to the next: reads the store and adds its changes to a batch that is written together with the new
/// version, so that it happens once or not at all.
pub(super) type Migration = fn(&Tables, &mut OwnedWriteBatch) -> fjall::Result<()>;

/// The step from version `n + 1` to `n + 2` is at place `n`.
pub(super) const MIGRATIONS: &[Migration] = &[
    super::format2::marks_by_room,
    keep_sent_ranges,
    sealed_content,
];

/// Content is sealed from this format on, which older programs would show as it lies there. What was written before stays plain. Uploads are
/// found by their owners.
fn sealed_content(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
    for row in tables.keyspace(Table::Media).iter() {
        let (_, row) = row.into_inner()?;
        // One that can't be read is nobody's.
        if let Ok(media) = super::codec::read_json::<Media>(&row) {
            let key = super::entries::upload_key(media.owner, media.id);
            batch.insert(tables.keyspace(Table::PersonKeys), key, b"");
        }
    }
    Ok(())
}

/// There if [`Table::Sent`] may have rows as formats 1 and 2 wrote them, one per place, which are found by their prefix.
const SENT_RANGES: &[u8] = b"sent_ranges";

/// Rows of sends stay as they are: to rewrite them all at once would take as long, and as much memory, as there are messages.
fn keep_sent_ranges(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
    let any = tables.keyspace(Table::Sent).iter().next().is_some();
    if any {
        batch.insert(tables.keyspace(Table::Meta), SENT_RANGES, b"");
    }
    Ok(())
}

/// Whether there may be rows of sends that formats 1 and 2 wrote.
pub(super) fn has_sent_ranges(tables: &Tables) -> fjall::Result<bool> {
    tables.keyspace(Table::Meta).contains_key(SENT_RANGES)
}

/// Runs the steps that the store still lacks. Refuses a store that a newer program made.
pub(super) fn bring_up_to_date(
    database: &Database,
    tables: &Tables,
    store: &Path,
    migrations: &[Migration],
) -> Result<()> {
    let newest = 1 + u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    let mut version =
        read_version(tables, store)?.ok_or_else(|| damaged(store, &"it names no format"))?;
    if version > newest {
        return Err(Error::new(
            ErrorCode::FailedPrecondition,
            format!(
                "the store {} has format {version}, and this version knows formats up to {newest}: run the version that wrote it, or a later one",
                store.display()
            ),
        ));
    }
    for migrate in migrations.iter().skip(version as usize - 1) {
        let mut batch = database.batch().durability(Some(PersistMode::SyncAll));
        migrate(tables, &mut batch)
            .and_then(|()| {
                batch.insert(
                    tables.keyspace(Table::Meta),
                    KEY,
                    (version + 1).to_be_bytes(),
                );
                batch.commit()
            })
            .map_err(|cause| {
                Error::new(
                    ErrorCode::Unavailable,
                    format!(
                        "the store {} could not be brought from format {version} to {}: nothing was changed; see to the disk and start again",
                        store.display(),
                        version + 1
                    ),
                )
                .caused_by(cause)
            })?;
        version += 1;
        tracing::info!(version, "the store has a new format");
    }
    Ok(())
}

fn read_version(tables: &Tables, store: &Path) -> Result<Option<u32>> {
    let Some(bytes) = tables
        .keyspace(Table::Meta)
        .get(KEY)
        .map_err(|cause| damaged(store, &cause))?
    else {
        return Ok(None);
    };
    let bytes =
        <[u8; 4]>::try_from(&*bytes).map_err(|_| damaged(store, &"its format is unreadable"))?;
    match u32::from_be_bytes(bytes) {
        0 => Err(damaged(store, &"its format is unreadable")),
        version => Ok(Some(version)),
    }
}

/// Says which format the store has; not yet synced.
pub(super) fn write_version(
    database: &Database,
    tables: &Tables,
    version: u32,
) -> fjall::Result<()> {
    let mut batch = database.batch();
    batch.insert(tables.keyspace(Table::Meta), KEY, version.to_be_bytes());
    batch.commit()
}

#[cfg(test)]
mod tests {
    use carillon_domain::{ClientMessageId, RoomId, Sequence, UserId};

    use super::*;
    use crate::embedded::{codec, directory};

    /// OPS-06: steps run once, in order, and not again at the next start.
    #[test]
    fn migrations_run_once() {
        fn first(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
            batch.insert(tables.keyspace(Table::Meta), b"test", b"1");
            Ok(())
        }
        fn second(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
            let mut value = tables
                .keyspace(Table::Meta)
                .get(b"test")?
                .expect("the first step ran before")
                .to_vec();
            value.push(b'2');
            batch.insert(tables.keyspace(Table::Meta), b"test", value);
            Ok(())
        }
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, _directory) = directory::open(folder.path(), 1 << 20).unwrap();
        write_version(&database, &tables, 1).unwrap();
        let store = folder.path().join("store");
        write_version(&database, &tables, 1).unwrap();
        for _ in 0..2 {
            bring_up_to_date(&database, &tables, &store, &[first, second]).unwrap();
            let value = tables.keyspace(Table::Meta).get(b"test").unwrap().unwrap();
            assert_eq!(&*value, b"12");
            assert_eq!(read_version(&tables, &store).unwrap(), Some(3));
        }
    }

    /// OPS-06: a step that fails leaves the store as it was.
    #[test]
    fn a_failed_migration_changes_nothing() {
        fn fails(tables: &Tables, batch: &mut OwnedWriteBatch) -> fjall::Result<()> {
            batch.insert(tables.keyspace(Table::Meta), b"test", b"half");
            Err(fjall::Error::InvalidTrailer)
        }
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, _directory) = directory::open(folder.path(), 1 << 20).unwrap();
        write_version(&database, &tables, 1).unwrap();
        let store = folder.path().join("store");
        write_version(&database, &tables, 1).unwrap();
        let error = bring_up_to_date(&database, &tables, &store, &[fails]).unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert!(error.detail.contains(&folder.path().display().to_string()));
        assert!(tables.keyspace(Table::Meta).get(b"test").unwrap().is_none());
        assert_eq!(read_version(&tables, &store).unwrap(), Some(1));
    }

    /// OPS-06, promise 3: sends that format 1 stored are found by the new way of looking for them too, also at a later start.
    #[tokio::test]
    async fn sends_of_format_1_are_found() {
        let (sender, room) = (UserId::new(), RoomId::new());
        let id = ClientMessageId("old".to_owned());
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, directory) = directory::open(folder.path(), 1 << 20).unwrap();
        let mut batch = database.batch();
        let mut key = codec::sent_key(sender, &id);
        key.extend_from_slice(&codec::place(room, Sequence(7)));
        batch.insert(tables.keyspace(Table::Sent), key, b"");
        batch.commit().unwrap();
        write_version(&database, &tables, 1).unwrap();
        database.persist(PersistMode::SyncAll).unwrap();
        drop((database, tables, directory));
        for _ in 0..2 {
            let stores = crate::embedded::open(folder.path()).unwrap();
            let found = stores.log.find_sent(sender, &id).await.unwrap();
            assert_eq!(found, [(room, Sequence(7))]);
            let longer = ClientMessageId("older".to_owned());
            assert_eq!(stores.log.find_sent(sender, &longer).await.unwrap(), []);
            stores.close().await.unwrap();
        }
    }

    /// OPS-06: an older program doesn't touch a newer store.
    #[test]
    fn a_newer_store_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, directory) = directory::open(folder.path(), 1 << 20).unwrap();
        write_version(&database, &tables, VERSION + 1).unwrap();
        database.persist(PersistMode::SyncAll).unwrap();
        drop((database, tables, directory));
        let error = directory::open(folder.path(), 1 << 20)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        let newer = format!("has format {}", VERSION + 1);
        assert!(error.detail.contains(&newer), "{}", error.detail);
    }
}
