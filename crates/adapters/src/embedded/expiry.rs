//! Rows that end by themselves: a row's value begins with the time of its end, and readers pass over what has ended. A sweep
//! removes it from the disk later, so that nothing a stranger does makes the store grow for ever.

use carillon_domain::{Error, Result, Timestamp};
use fjall::Slice;

use super::{
    engine::{Durability, Engine, Transaction},
    tables::Table,
};

/// Rows removed per request to the committer, so that a sweep delays nobody.
const STEP: usize = 512;
/// Rows removed per sweep.
const MOST: usize = 100_000;

/// Stores a row until `end`.
pub(super) fn put(
    transaction: &mut Transaction<'_>,
    table: Table,
    key: &[u8],
    end: Timestamp,
    value: &[u8],
) {
    replace(transaction, table, key, end, value);
    transaction.put(Table::Ends, end_key(end, table, key), Slice::from(&[][..]));
}

/// Stores another value in a row that keeps its `end`.
pub(super) fn replace(
    transaction: &mut Transaction<'_>,
    table: Table,
    key: &[u8],
    end: Timestamp,
    value: &[u8],
) {
    let mut row = Vec::with_capacity(8 + value.len());
    row.extend_from_slice(&time_key(end));
    row.extend_from_slice(value);
    transaction.put(table, key, row);
}

/// Removes a row before its end, and the note of when it would have ended.
pub(super) fn cut_short(
    transaction: &mut Transaction<'_>,
    table: Table,
    key: &[u8],
    end: Timestamp,
) {
    transaction.remove(Table::Ends, end_key(end, table, key));
    transaction.remove(table, key);
}

/// A row's value if it hasn't ended.
pub(super) fn live(row: Option<Slice>, now: Timestamp) -> Result<Option<Slice>> {
    let Some(row) = row else {
        return Ok(None);
    };
    Ok((end_of(&row)? > now).then(|| Slice::from(&row[8..])))
}

/// When a row ends.
pub(super) fn end_of(row: &[u8]) -> Result<Timestamp> {
    let bytes = row
        .first_chunk::<8>()
        .ok_or_else(|| Error::defect("a row with an end is too short"))?;
    Ok(Timestamp(
        (u64::from_be_bytes(*bytes) ^ (1 << 63)).cast_signed(),
    ))
}

/// Times as keys that sort, earlier ones than 1970 included.
pub(super) fn time_key(time: Timestamp) -> [u8; 8] {
    (time.0.cast_unsigned() ^ (1 << 63)).to_be_bytes()
}

fn end_key(end: Timestamp, table: Table, key: &[u8]) -> Vec<u8> {
    let mut entry = Vec::with_capacity(9 + key.len());
    entry.extend_from_slice(&time_key(end));
    entry.push(table as u8);
    entry.extend_from_slice(key);
    entry
}

/// Removes what has ended.
#[derive(Default)]
pub(super) struct Sweep {
    /// Everything before it was swept: what is removed there must not be walked over again.
    from: Vec<u8>,
}

impl Sweep {
    /// Runs once.
    pub(super) fn run(&mut self, engine: &Engine) -> Result<()> {
        let now = engine.clock.now();
        let until = time_key(now);
        for _ in 0..MOST / STEP {
            let entries = engine
                .view()
                .range(Table::Ends, &self.from, until)
                .take(STEP)
                .map(|row| row.map(|(key, _)| key))
                .collect::<Result<Vec<Slice>>>()?;
            let Some(last) = entries.last() else {
                break;
            };
            let mut from = last.to_vec();
            from.push(0);
            engine.commit_blocking(Durability::Buffered, move |transaction| {
                entries
                    .into_iter()
                    .try_for_each(|entry| remove(transaction, entry, now))
            })?;
            self.from = from;
        }
        // A later entry can't end before this, unless somebody stores what has ended already, or the clock jumps back: those
        // are found after the next start.
        Ok(())
    }
}

fn remove(transaction: &mut Transaction<'_>, entry: Slice, now: Timestamp) -> Result<()> {
    let table = entry.get(8).copied().and_then(Table::from_number);
    let table = table.ok_or_else(|| Error::defect("an entry of an end names no table"))?;
    let key = Slice::from(&entry[9..]);
    if let Some(row) = transaction.get(table, key.clone())?
        && end_of(&row)? <= now
    {
        transaction.remove(table, key);
    }
    transaction.remove(Table::Ends, entry);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicI64, Ordering},
        },
    };

    use carillon_domain::Clock;

    use super::*;
    use crate::embedded::directory;

    struct Hand(AtomicI64);

    impl Clock for Hand {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::SeqCst))
        }
    }

    fn engine(path: &Path, clock: &Arc<Hand>) -> Arc<Engine> {
        let (database, tables, directory) = directory::open(path, 1 << 20).unwrap();
        Engine::start(database, tables, directory, clock.clone()).unwrap()
    }

    fn rows(engine: &Engine, table: Table) -> usize {
        engine.view().range(table, [0], [0xff]).count()
    }

    fn store(engine: &Engine, key: &'static str, end: i64) {
        let change = move |transaction: &mut Transaction<'_>| {
            put(
                transaction,
                Table::Ephemeral,
                key.as_bytes(),
                Timestamp(end),
                b"value",
            );
            Ok(())
        };
        engine
            .commit_blocking(Durability::Buffered, change)
            .unwrap();
    }

    /// OPS-02: what ended leaves the disk, with its entry; what was given a later end meanwhile stays.
    #[test]
    fn a_sweep_removes_what_ended_only() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hand(0.into()));
        let engine = engine(folder.path(), &clock);
        for (key, end) in [("a", 10), ("b", 20), ("c", 30), ("b", 40)] {
            store(&engine, key, end);
        }
        let mut sweep = Sweep::default();
        // At each time: rows and entries that are left.
        for (now, left, entries) in [(5, 3, 4), (10, 3, 4), (11, 2, 3), (25, 2, 2), (35, 1, 1)] {
            clock.0.store(now, Ordering::SeqCst);
            sweep.run(&engine).unwrap();
            let found = (rows(&engine, Table::Ephemeral), rows(&engine, Table::Ends));
            assert_eq!(found, (left, entries), "at {now}");
        }
        store(&engine, "d", 36);
        clock.0.store(41, Ordering::SeqCst);
        sweep.run(&engine).unwrap();
        assert_eq!(rows(&engine, Table::Ephemeral), 0);
        assert_eq!(rows(&engine, Table::Ends), 0);
    }

    /// More than one request's worth goes in one sweep.
    #[test]
    fn a_sweep_removes_many() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(Hand(0.into()));
        let engine = engine(folder.path(), &clock);
        let change = |transaction: &mut Transaction<'_>| {
            for n in 0..3 * STEP as u32 {
                let end = Timestamp(i64::from(n % 7));
                put(
                    transaction,
                    Table::RevokedTokens,
                    &n.to_be_bytes(),
                    end,
                    b"",
                );
            }
            Ok(())
        };
        engine
            .commit_blocking(Durability::Buffered, change)
            .unwrap();
        clock.0.store(100, Ordering::SeqCst);
        Sweep::default().run(&engine).unwrap();
        assert_eq!(rows(&engine, Table::RevokedTokens), 0);
        assert_eq!(rows(&engine, Table::Ends), 0);
    }
}
