//! The engine: reads from snapshots, and one committer that writes for everybody.
//!
//! Group commit: a thread takes the requests that wait, runs each against the state that the ones before it leave, writes all of
//! their changes as one atomic batch with one sync, and then answers all of them. So a check and its write can't be
//! interleaved with another, a request sees all or nothing of another, and the cost of a sync is shared.
//!
//! It knows tables and bytes; what they mean is known in the other modules.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use carillon_domain::{Clock, Error, ErrorCode, Result};
use fjall::{Database, PersistMode, Readable, Slice, Snapshot};
use parking_lot::Mutex;
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
    tables: Tables,
    database: Database,
    _directory: Directory,
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
            tables,
            database,
            _directory: directory,
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
        let span = tracing::info_span!(
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

    /// The state that every acknowledged write is in.
    pub(super) fn view(&self) -> View<'_> {
        View {
            tables: &self.shared.tables,
            snapshot: self.shared.database.snapshot(),
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

/// The error for something that the engine couldn't do.
pub(super) fn failed(cause: fjall::Error) -> Error {
    tracing::error!(error = %cause, "the embedded store failed");
    Error::unavailable("the embedded store", cause)
}

// === the committer ===

fn run_committer(shared: &Shared, mut requests: mpsc::Receiver<Request>) {
    let mut overlay = HashMap::new();
    while let Some(first) = requests.blocking_recv() {
        let mut transaction = Transaction {
            tables: &shared.tables,
            overlay: &mut overlay,
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
        let failure = write(shared, &mut overlay, durability, close).err();
        for answer in answers {
            answer(failure.as_ref());
        }
        if close {
            return;
        }
    }
}

fn write(
    shared: &Shared,
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
            fjall::OwnedWriteBatch::with_capacity(shared.database.clone(), overlay.len())
                .durability(Some(mode));
        for ((table, key), value) in overlay.drain() {
            let keyspace = shared.tables.keyspace(table);
            match value {
                Some(value) => batch.insert(keyspace, key, value),
                None => batch.remove(keyspace, key),
            }
        }
        batch.commit().map_err(failed)?;
    }
    if close {
        shared
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
    tables: &'a Tables,
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
        self.tables.keyspace(table).get(&place.1).map_err(failed)
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
pub(super) struct View<'a> {
    tables: &'a Tables,
    snapshot: Snapshot,
}

impl View<'_> {
    /// A row.
    pub(super) fn get(&self, table: Table, key: impl AsRef<[u8]>) -> Result<Option<Slice>> {
        self.snapshot
            .get(self.tables.keyspace(table), key)
            .map_err(failed)
    }

    /// Rows from `from` up to but not including `until`, ascending. The caller says how many it takes.
    pub(super) fn range(
        &self,
        table: Table,
        from: impl AsRef<[u8]>,
        until: impl AsRef<[u8]>,
    ) -> impl Iterator<Item = Result<(Slice, Slice)>> {
        let (from, until) = (from.as_ref().to_vec(), until.as_ref().to_vec());
        // A range that ends before it begins is empty; the engine would panic.
        let rows = (from < until).then(|| {
            self.snapshot
                .range(self.tables.keyspace(table), from..until)
        });
        rows.into_iter()
            .flatten()
            .map(|row| row.into_inner().map_err(failed))
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
