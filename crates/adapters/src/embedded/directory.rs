//! The data directory: one process at a time, made whole or not at all, and errors that say what to do.
//!
//! ```text
//! <directory>/
//!   lock         held exclusively while a process has the store open
//!   store/       the LSM store
//!   store.new/   only while a store is being made
//!   store.old/   only while one that a backup was being loaded into is thrown away
//! ```

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use carillon_domain::{Error, ErrorCode, Result};
use fjall::{Database, PersistMode};

use super::{format, journal, tables::Tables};

/// How long to wait for a holder of the lock that is just closing.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// The opened directory; the lock ends when it's dropped.
pub(super) struct Directory {
    lock: File,
    store: PathBuf,
    cache_bytes: u64,
}

impl Directory {
    /// Opens the store again, after every handle of it was dropped: what a failed write left of itself is cut off, as after a
    /// crash.
    pub(super) fn reopen(&self) -> Result<(Database, Tables)> {
        journal::check(&self.store)?;
        open_store(&self.store, self.cache_bytes)
    }

    /// Throws the store away and makes an empty one in its place, after every handle of it was dropped.
    pub(super) fn start_anew(self) -> Result<(Database, Tables, Self)> {
        let path = self.store.parent().unwrap_or(&self.store).to_path_buf();
        // Aside first: whatever interrupts this, there is never a part of a store in its place.
        let aside = path.join("store.old");
        let cannot = |cause| unusable(&path, "cannot be written", cause);
        if aside.try_exists().map_err(cannot)? {
            std::fs::remove_dir_all(&aside).map_err(cannot)?;
        }
        std::fs::rename(&self.store, &aside).map_err(cannot)?;
        create(&path, &self.store, self.cache_bytes)?;
        std::fs::remove_dir_all(&aside).map_err(cannot)?;
        let (database, tables) = open_store(&self.store, self.cache_bytes)?;
        Ok((database, tables, self))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // The end of the process does the same; an error here changes nothing.
        let _ = self.lock.unlock();
    }
}

/// Takes the directory, makes the store in it if there is none, opens it and brings its format up to date.
pub(super) fn open(path: &Path, cache_bytes: u64) -> Result<(Database, Tables, Directory)> {
    std::fs::create_dir_all(path)
        .map_err(|cause| unusable(path, "cannot be made or read", cause))?;
    let store = path.join("store");
    let directory = Directory {
        lock: lock(path)?,
        store: store.clone(),
        cache_bytes,
    };
    if !store
        .try_exists()
        .map_err(|cause| unusable(path, "cannot be read", cause))?
    {
        create(path, &store, cache_bytes)?;
    }
    // Without it the engine would begin a new store among what is left of this one.
    if !store.join("version").is_file() {
        return Err(damaged(&store, &"its version marker is missing"));
    }
    journal::check(&store)?;
    let (database, tables) = open_store(&store, cache_bytes)?;
    format::bring_up_to_date(&database, &tables, &store, format::MIGRATIONS)?;
    Ok((database, tables, directory))
}

fn lock(path: &Path) -> Result<File> {
    let file_path = path.join("lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&file_path)
        .map_err(|cause| unusable(path, "cannot be written", cause))?;
    let began = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&file_path).unwrap_or_default();
                let holder = match holder.trim() {
                    "" => String::new(),
                    pid => format!(" (process {pid})"),
                };
                return Err(Error::new(
                    ErrorCode::FailedPrecondition,
                    format!(
                        "the data directory {} is in use by another process{holder}: stop that one, or name another directory",
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(cause)) => {
                return Err(unusable(path, "cannot be locked", cause));
            }
        }
    }
    // Only for the message above.
    lock.set_len(0)
        .and_then(|()| write!(lock, "{}", std::process::id()))
        .map_err(|cause| unusable(path, "cannot be written", cause))?;
    Ok(lock)
}

/// Makes the store beside its place and moves it there: after a crash there is all of it or nothing.
fn create(path: &Path, store: &Path, cache_bytes: u64) -> Result<()> {
    let unfinished = path.join("store.new");
    let cannot = |cause| unusable(path, "cannot be written", cause);
    if unfinished.try_exists().map_err(cannot)? {
        std::fs::remove_dir_all(&unfinished).map_err(cannot)?;
    }
    let (database, tables) = open_store(&unfinished, cache_bytes)?;
    format::write_version(&database, &tables, format::VERSION)
        .and_then(|()| database.persist(PersistMode::SyncAll))
        .map_err(|cause| damaged(store, &cause))?;
    drop(tables);
    drop(database);
    std::fs::rename(&unfinished, store).map_err(cannot)?;
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(cannot)
}

fn open_store(store: &Path, cache_bytes: u64) -> Result<(Database, Tables)> {
    let exists = store.exists();
    // The engine panics on some kinds of damage; a person needs a sentence instead.
    let opened = std::panic::catch_unwind(AssertUnwindSafe(|| {
        in_the_background(|| {
            let database = Database::builder(store)
                .cache_size(cache_bytes)
                .manual_journal_persist(true)
                .max_journaling_size(256 * 1024 * 1024)
                .open()?;
            let tables = Tables::open(&database)?;
            Ok((database, tables))
        })
    }));
    match opened {
        Ok(Ok(opened)) => Ok(opened),
        Ok(Err(fjall::Error::Io(cause))) if !exists => {
            Err(unusable(store, "cannot be written", cause))
        }
        Ok(Err(cause)) => Err(damaged(store, &cause)),
        Err(_) => Err(damaged(store, &"the engine refused its files")),
    }
}

/// How much nicer the engine's own threads are than ours: they tidy up for tens of milliseconds at a time, and whoever waits for an
/// answer should not wait for that. Not so nice that writers, who wait when tidying falls far behind, would be the ones that suffer.
const NICER: i32 = 5;

/// Runs `open` on a thread of lower priority: the threads that the engine starts inherit that (Linux; elsewhere it may be the whole process
/// that the system asks about, so there it is left alone).
fn in_the_background<T: Send>(open: impl FnOnce() -> T + Send) -> T {
    let run = || {
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::process::nice(NICER) {
            tracing::debug!(%error, "the store's own threads keep their priority");
        }
        open()
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(opened) => opened,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// The error for a directory that the system doesn't let us use.
fn unusable(path: &Path, how: &str, cause: std::io::Error) -> Error {
    Error::new(
        ErrorCode::FailedPrecondition,
        format!(
            "the data directory {} {how} ({}): give this user the right to write there, or name another directory",
            path.display(),
            cause.kind()
        ),
    )
    .caused_by(cause)
}

/// The error for a store that can't be read.
pub(super) fn damaged(store: &Path, cause: &dyn std::fmt::Display) -> Error {
    Error::new(
        ErrorCode::FailedPrecondition,
        format!(
            "the store {} is damaged or was made by another program ({cause}): restore the directory from a backup, or move it away to begin with an empty one",
            store.display()
        ),
    )
}
