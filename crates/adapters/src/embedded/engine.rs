//! The engine: reads from snapshots, and one committer that writes for everybody.
//!
//! Group commit: a thread takes the requests that wait, runs each against the state that the ones before it leave, writes all of
//! their changes as one atomic batch with one sync, and then answers all of them. So a check and its write can't be
//! interleaved with another, a request sees all or nothing of another, and the cost of a sync is shared.
//!
//! After a write that failed, the engine takes no other one until it is opened again: the committer does that, so that a disk that
//! was full for a moment costs what was asked for meanwhile, and no restart. Reads and writes say `Unavailable` until it is done.
//!
//! It knows tables and bytes; what they mean is known in the other modules.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use carillon_domain::{Clock, Error, ErrorCode, Result};
use fjall::{Database, PersistMode, Readable, Slice, Snapshot};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument;

use super::{
    directory::Directory,
    expiry,
    tables::{Table, Tables},
};
use crate::observe::timed;

/// Requests that may wait for the committer; more wait in their callers.
const QUEUE: usize = 4096;
/// A batch takes at most this many requests, …
const BATCH_REQUESTS: usize = 2048;
/// … and no further one once it has this many bytes.
const BATCH_BYTES: usize = 8 * 1024 * 1024;
/// How often rows that ended are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(10);
/// How often to try to open a store again that failed.
const REOPEN_EVERY: Duration = Duration::from_secs(1);
/// Reads of more rows than this leave the async thread.
const INLINE_ROWS: usize = 256;

/// When a write counts as done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Durability {
    /// Once it is on the disk.
    Synced,
    /// Once the operating system has it: it survives the process, not the machine.
    Buffered,
}

impl Durability {
    /// Its name in metrics.
    fn operation(self) -> &'static str {
        match self {
            Self::Synced => "commit",
            Self::Buffered => "commit_buffered",
        }
    }
}

/// The open store.
pub(super) struct Engine {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Request>,
    committer: Mutex<Option<std::thread::JoinHandle<()>>>,
    pub(super) clock: Arc<dyn Clock>,
}

/// Dropped in this order: the lock on the directory goes last.
struct Shared {
    /// `None` while it is opened again after a failed write. Held for reading during a read or a batch, never over an await.
    store: RwLock<Option<Store>>,
    /// For the committer: when opening was tried last.
    tried: Mutex<Option<Instant>>,
    /// Lets the next write fail as one on a full disk.
    #[cfg(test)]
    disk_full: std::sync::atomic::AtomicBool,
    directory: Directory,
}

/// The handles of the open store; the tables' go first.
struct Store {
    tables: Tables,
    database: Database,
}

impl Shared {
    /// Drops the handles of a store that failed, once those who read are done, and opens it again.
    fn reopen(&self) {
        let failed = self.store.write().take();
        // Its threads stop and it gives its files back: not under the lock, since that takes a while.
        drop(failed);
        *self.tried.lock() = None;
        self.heal();
    }

    /// Opens the store if it isn't open; not too often, when that fails.
    fn heal(&self) {
        if self.store.read_recursive().is_some() {
            return;
        }
        {
            let mut tried = self.tried.lock();
            if tried.is_some_and(|tried| tried.elapsed() < REOPEN_EVERY) {
                return;
            }
            *tried = Some(Instant::now());
        }
        match self.directory.reopen() {
            Ok((database, tables)) => {
                *self.store.write() = Some(Store { tables, database });
                tracing::warn!("the embedded store was opened again after a write that failed");
            }
            Err(error) => {
                tracing::error!(%error, cause = error.cause_chain(), "the embedded store can't be opened again yet");
            }
        }
    }
}

struct Request {
    durability: Durability,
    run: Box<dyn FnOnce(&mut Transaction<'_>) -> Answer + Send>,
}

/// Called once the batch is written, or couldn't be.
type Answer = Box<dyn FnOnce(Option<&Error>) + Send>;

// === impl Engine ===

impl Engine {
    /// Starts the committer and the sweeper.
    pub(super) fn start(
        database: Database,
        tables: Tables,
        directory: Directory,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            store: RwLock::new(Some(Store { tables, database })),
            tried: Mutex::new(None),
            #[cfg(test)]
            disk_full: std::sync::atomic::AtomicBool::new(false),
            directory,
        });
        let (queue, requests) = mpsc::channel(QUEUE);
        let of_committer = shared.clone();
        let committer = spawn("carillon-commit", move || {
            run_committer(&of_committer, requests);
        })?;
        let engine = Arc::new(Self {
            shared,
            queue,
            committer: Mutex::new(Some(committer)),
            clock,
        });
        let of_sweeper = Arc::downgrade(&engine);
        spawn("carillon-sweep", move || run_sweeper(&of_sweeper))?;
        Ok(engine)
    }

    /// Runs `change` on the committer and answers once its writes are durable. When it answers an error, nothing of it is
    /// written. `Unavailable` from the store itself: the outcome is unknown.
    pub(super) async fn commit<T: Send + 'static>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (request, answer) = request(durability, change);
        let committed = async {
            self.queue.send(request).await.map_err(|_| closed())?;
            answer.await.map_err(|_| closed())?
        };
        let span = tracing::debug_span!(
            "embedded.commit",
            otel.kind = "client",
            db.system.name = "carillon-embedded",
            synced = durability == Durability::Synced,
        );
        timed("embedded", durability.operation(), committed)
            .instrument(span)
            .await
    }

    /// The same for threads.
    pub(super) fn commit_blocking<T: Send + 'static>(
        &self,
        durability: Durability,
        change: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (request, answer) = request(durability, change);
        self.queue.blocking_send(request).map_err(|_| closed())?;
        answer.blocking_recv().map_err(|_| closed())?
    }

    /// The state that every acknowledged write is in. To be dropped soon, and before any await.
    pub(super) fn view(&self) -> View<'_> {
        // Recursive, since a read may look twice, and the committer may be waiting to take the store away in between.
        let store = self.shared.store.read_recursive();
        View {
            snapshot: store.as_ref().map(|store| store.database.snapshot()),
            store,
        }
    }

    /// Reads about `rows` rows. Few of them are read at once: the newest are in memory, and a hop to another thread would cost
    /// more. Many don't hold up the async thread.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        rows: usize,
        read: impl FnOnce(&View<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        if rows <= INLINE_ROWS {
            return read(&self.view());
        }
        let engine = self.clone();
        tokio::task::spawn_blocking(move || read(&engine.view()))
            .await
            .map_err(Error::internal)?
    }

    /// Rewrites a small table, so that older versions of its rows leave its files. The journal keeps them until it is recycled.
    pub(super) async fn compact(self: &Arc<Self>, table: Table) -> Result<()> {
        let engine = self.clone();
        tokio::task::spawn_blocking(move || {
            let store = engine.shared.store.read_recursive();
            let rows = store.as_ref().ok_or_else(away)?.tables.keyspace(table);
            rows.rotate_memtable_and_wait().map_err(failed)?;
            rows.major_compact().map_err(failed)
        })
        .await
        .map_err(Error::internal)?
    }

    /// Waits for every write that was asked for until now and syncs the rest; refuses later ones.
    pub(super) async fn close(&self) -> Result<()> {
        let (done, closed) = oneshot::channel();
        let request = Request {
            durability: Durability::Synced,
            run: Box::new(move |transaction| {
                transaction.close = true;
                Box::new(move |failure| {
                    let _ = done.send(failure.cloned().map_or(Ok(()), Err));
                })
            }),
        };
        if self.queue.send(request).await.is_err() {
            return Ok(());
        }
        // The committer ends without an answer only if it was closed by somebody else at the same time.
        closed.await.unwrap_or(Ok(()))?;
        let committer = self.committer.lock().take();
        if let Some(committer) = committer {
            tokio::task::spawn_blocking(move || committer.join())
                .await
                .map_err(Error::internal)?
                .map_err(|_| Error::defect("the committer panicked"))?;
        }
        Ok(())
    }
}

fn request<T: Send + 'static>(
    durability: Durability,
    change: impl FnOnce(&mut Transaction<'_>) -> Result<T> + Send + 'static,
) -> (Request, oneshot::Receiver<Result<T>>) {
    let (answer, receiver) = oneshot::channel();
    let run = move |transaction: &mut Transaction<'_>| {
        // A defect in one request must not take the others down with it.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| change(transaction)))
            .unwrap_or_else(|_| Err(Error::defect("a change of the embedded store panicked")));
        match result {
            Ok(_) => transaction.undo.clear(),
            Err(_) => transaction.roll_back(),
        }
        let answer = move |failure: Option<&Error>| {
            // Whoever asked may have gone.
            let _ = answer.send(failure.cloned().map_or(result, Err));
        };
        Box::new(answer) as Answer
    };
    let request = Request {
        durability,
        run: Box::new(run),
    };
    (request, receiver)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|cause| Error::unavailable("the embedded store", cause))
}

fn closed() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the embedded store is closed, try again",
    )
}

fn away() -> Error {
    Error::new(
        ErrorCode::Unavailable,
        "the embedded store is being opened again after a failed write, try again",
    )
}

/// The error for something that the engine couldn't do.
pub(super) fn failed(cause: fjall::Error) -> Error {
    tracing::error!(error = %cause, "the embedded store failed");
    Error::unavailable("the embedded store", cause)
}

// === the committer ===

fn run_committer(shared: &Shared, mut requests: mpsc::Receiver<Request>) {
    let mut overlay = HashMap::new();
    while let Some(first) = requests.blocking_recv() {
        shared.heal();
        let (answers, failure, close) = run_batch(shared, &mut overlay, first, &mut requests);
        for answer in answers {
            answer(failure.as_ref());
        }
        if close {
            return;
        }
        if failure.is_some() {
            shared.reopen();
        }
    }
}

/// Runs the requests that wait, and writes what they changed.
fn run_batch(
    shared: &Shared,
    overlay: &mut HashMap<Place, Option<Slice>>,
    first: Request,
    requests: &mut mpsc::Receiver<Request>,
) -> (Vec<Answer>, Option<Error>, bool) {
    let store = shared.store.read_recursive();
    let mut transaction = Transaction {
        tables: store.as_ref().map(|store| &store.tables),
        overlay,
        undo: Vec::new(),
        bytes: 0,
        close: false,
    };
    let mut answers = Vec::new();
    let mut durability = Durability::Buffered;
    let mut next = Some(first);
    while let Some(request) = next {
        if request.durability == Durability::Synced {
            durability = Durability::Synced;
        }
        answers.push((request.run)(&mut transaction));
        let full = answers.len() >= BATCH_REQUESTS || transaction.bytes >= BATCH_BYTES;
        next = if full || transaction.close {
            None
        } else {
            requests.try_recv().ok()
        };
    }
    let close = transaction.close;
    let written = match store.as_ref() {
        #[cfg(test)]
        Some(_)
            if shared
                .disk_full
                .swap(false, std::sync::atomic::Ordering::SeqCst) =>
        {
            overlay.clear();
            Err(failed(fjall::Error::Poisoned))
        }
        Some(store) => write(store, overlay, durability, close),
        None => {
            overlay.clear();
            Err(away())
        }
    };
    (answers, written.err(), close)
}

fn write(
    store: &Store,
    overlay: &mut HashMap<Place, Option<Slice>>,
    durability: Durability,
    close: bool,
) -> Result<()> {
    let mode = match durability {
        Durability::Synced => PersistMode::SyncData,
        Durability::Buffered => PersistMode::Buffer,
    };
    if !overlay.is_empty() {
        let mut batch =
            fjall::OwnedWriteBatch::with_capacity(store.database.clone(), overlay.len())
                .durability(Some(mode));
        for ((table, key), value) in overlay.drain() {
            let keyspace = store.tables.keyspace(table);
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit().map_err(failed)?;
    }
    if close {
        store
            .database
            .persist(PersistMode::SyncAll)
            .map_err(failed)?;
    }
    Ok(())
}

fn run_sweeper(engine: &Weak<Engine>) {
    let mut sweep = expiry::Sweep::default();
    // Woken in small steps, so that a closed store isn't held open by a sleeping thread.
    let step = Duration::from_millis(100);
    let mut waited = Duration::ZERO;
    loop {
        std::thread::sleep(step);
        waited += step;
        let Some(engine) = engine.upgrade() else {
            return;
        };
        if waited < SWEEP_EVERY {
            continue;
        }
        waited = Duration::ZERO;
        if let Err(error) = sweep.run(&engine) {
            if engine.queue.is_closed() {
                return;
            }
            tracing::warn!(error = %error, cause = error.cause_chain(), "ended rows could not be removed");
        }
    }
}

// === Transaction ===

type Place = (Table, Slice);

/// What a change reads and writes on the committer: the stored state, and over it what the batch has changed so far.
pub(super) struct Transaction<'a> {
    /// `None` while the store isn't open: then nothing of the batch is written.
    tables: Option<&'a Tables>,
    overlay: &'a mut HashMap<Place, Option<Slice>>,
    undo: Vec<(Place, Option<Option<Slice>>)>,
    bytes: usize,
    close: bool,
}

impl Transaction<'_> {
    /// A row as it is now.
    pub(super) fn get(&self, table: Table, key: impl Into<Slice>) -> Result<Option<Slice>> {
        let place = (table, key.into());
        if let Some(changed) = self.overlay.get(&place) {
            return Ok(changed.clone());
        }
        let tables = self.tables.ok_or_else(away)?;
        tables.keyspace(table).get(&place.1).map_err(failed)
    }

    /// Stores a row.
    pub(super) fn put(&mut self, table: Table, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.set(table, key.into(), Some(value.into()));
    }

    /// Removes a row.
    pub(super) fn remove(&mut self, table: Table, key: impl Into<Slice>) {
        self.set(table, key.into(), None);
    }

    fn set(&mut self, table: Table, key: Slice, value: Option<Slice>) {
        self.bytes += key.len() + value.as_ref().map_or(0, |value| value.len());
        let place = (table, key);
        let before = self.overlay.insert(place.clone(), value);
        self.undo.push((place, before));
    }

    fn roll_back(&mut self) {
        while let Some((place, before)) = self.undo.pop() {
            match before {
                Some(value) => self.overlay.insert(place, value),
                None => self.overlay.remove(&place),
            };
        }
    }
}

// === View ===

/// One consistent state of the store.
/// Dropped in this order: nothing of the store is left when it may be taken away.
pub(super) struct View<'a> {
    snapshot: Option<Snapshot>,
    store: RwLockReadGuard<'a, Option<Store>>,
}

impl View<'_> {
    fn parts(&self) -> Result<(&Tables, &Snapshot)> {
        let store = self.store.as_ref().ok_or_else(away)?;
        let snapshot = self.snapshot.as_ref().ok_or_else(away)?;
        Ok((&store.tables, snapshot))
    }

    /// A row.
    pub(super) fn get(&self, table: Table, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        let (tables, snapshot) = self.parts()?;
        snapshot.get(tables.keyspace(table), key).map_err(failed)
    }

    /// Rows from `from` up to but not including `until`, ascending. The caller says how many it takes.
    pub(super) fn range(
        &self,
        table: Table,
        from: impl AsRef<[u8]>,
        until: impl AsRef<[u8]>,
    ) -> impl Iterator<Item = Result<(Slice, Slice)>> {
        let (from, until) = (from.as_ref().to_vec(), until.as_ref().to_vec());
        let (rows, failure) = match self.parts() {
            // A range that ends before it begins is empty; the engine would panic.
            Ok((tables, snapshot)) => {
                let rows =
                    (from < until).then(|| snapshot.range(tables.keyspace(table), from..until));
                (rows, None)
            }
            Err(error) => (None, Some(Err(error))),
        };
        let rows = rows.into_iter().flatten();
        failure
            .into_iter()
            .chain(rows.map(|row| row.into_inner().map_err(failed)))
    }

    /// Rows whose key begins so, after the key `prefix ‖ after`, ascending.
    pub(super) fn after(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Slice, Slice)>> {
        let mut from = prefix.to_vec();
        if let Some(after) = after {
            from.extend_from_slice(after);
            // The smallest key that is larger.
            from.push(0);
        }
        self.range(table, from, successor(prefix))
    }
}

/// The smallest key that is larger than every key with this prefix. Prefixes are never all 0xff: they begin with a letter, or
/// with an id whose version and variant bits (RFC 9562) forbid it.
fn successor(prefix: &[u8]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return key;
        }
        key.pop();
    }
    // Nothing is larger than a key of the greatest length.
    vec![u8::MAX; usize::from(u16::MAX)]
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use carillon_domain::time::SystemClock;

    use super::*;
    use crate::embedded::directory;

    async fn put(engine: &Engine, key: &'static str) -> Result<()> {
        let change = move |transaction: &mut Transaction<'_>| {
            transaction.put(Table::Meta, key.as_bytes(), *b"value");
            Ok(())
        };
        engine.commit(Durability::Synced, change).await
    }

    fn has(engine: &Engine, key: &str) -> Result<bool> {
        engine.view().get(Table::Meta, key).map(|row| row.is_some())
    }

    /// Promise 8: a write that failed costs what was asked for then, and no restart; what was acknowledged before is there.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_write_is_got_over() {
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, directory) = directory::open(folder.path(), 1 << 20).unwrap();
        let engine = Engine::start(database, tables, directory, Arc::new(SystemClock)).unwrap();
        for round in 0..3 {
            put(&engine, "before").await.unwrap();
            engine.shared.disk_full.store(true, Ordering::SeqCst);
            let error = put(&engine, "lost").await.unwrap_err();
            assert_eq!(error.code, ErrorCode::Unavailable);
            // The next write comes after the store was opened again.
            put(&engine, "after").await.unwrap();
            assert!(has(&engine, "before").unwrap(), "round {round}");
            assert!(has(&engine, "after").unwrap());
            assert!(!has(&engine, "lost").unwrap());
        }
        engine.close().await.unwrap();
        drop(engine);
        let (_database, tables, _directory) = directory::open(folder.path(), 1 << 20).unwrap();
        assert!(tables.keyspace(Table::Meta).get("after").unwrap().is_some());
    }

    /// Promise 8: while a store can't be opened again, reads and writes say so, and it goes on when it can.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_stays_away_is_unavailable() {
        let folder = tempfile::tempdir().unwrap();
        let (database, tables, directory) = directory::open(folder.path(), 1 << 20).unwrap();
        let engine = Engine::start(database, tables, directory, Arc::new(SystemClock)).unwrap();
        put(&engine, "before").await.unwrap();
        let (store, aside) = (folder.path().join("store"), folder.path().join("aside"));
        std::fs::rename(&store, &aside).unwrap();
        engine.shared.disk_full.store(true, Ordering::SeqCst);
        put(&engine, "lost").await.unwrap_err();
        let error = put(&engine, "lost").await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unavailable);
        assert_eq!(
            has(&engine, "before").unwrap_err().code,
            ErrorCode::Unavailable
        );
        let mut rows = engine
            .view()
            .range(Table::Meta, [0], [0xff])
            .collect::<Vec<_>>();
        assert_eq!(
            rows.pop().unwrap().unwrap_err().code,
            ErrorCode::Unavailable
        );
        std::fs::rename(&aside, &store).unwrap();
        let healed = async { while put(&engine, "after").await.is_err() {} };
        tokio::time::timeout(Duration::from_secs(60), healed)
            .await
            .expect("it heals by itself");
        assert!(has(&engine, "before").unwrap() && has(&engine, "after").unwrap());
        engine.close().await.unwrap();
    }
}
