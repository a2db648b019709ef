//! A wall clock of a process that a test can move, by libfaketime. Timers go by the monotonic clock, which is left alone.
//!
//! The program has no hook for this: the library stands between it and the C library, which a static binary doesn't have.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// For how long a process may go on with the time that it knew (`FAKETIME_CACHE_DURATION`).
pub const LATE: Duration = Duration::from_secs(1);

/// The clock of one process, also when it is started again.
#[derive(Clone, Debug)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// A clock that is right, kept in `directory`; `None` without the library.
    pub fn new(directory: &Path, name: &str) -> Result<Option<Self>> {
        let Some(library) = library() else {
            return Ok(None);
        };
        let clock = Self {
            library,
            file: directory.join(format!("{name}.clock")),
        };
        clock.set(0)?;
        Ok(Some(clock))
    }

    /// Makes it wrong by so many seconds, or right by none; processes see it within [`LATE`].
    pub fn set(&self, seconds: i64) -> Result<()> {
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{seconds:+}"))?;
        fs::rename(&new, &self.file).context("moving a clock")
    }

    /// What a process that goes by it is started with.
    pub fn environment(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("LD_PRELOAD", self.library.clone()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.clone()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
            ("FAKETIME_CACHE_DURATION", LATE.as_secs().to_string().into()),
        ]
    }

    /// Removes what the library leaves of a process that was killed.
    pub fn clean_up(&self, pid: u32) {
        for name in ["sem.faketime_sem_", "faketime_shm_"] {
            let _ = fs::remove_file(format!("/dev/shm/{name}{pid}"));
        }
    }
}

/// libfaketime where Debian's package puts it, whatever the machine's architecture.
fn library() -> Option<PathBuf> {
    let folders = fs::read_dir("/usr/lib").ok()?;
    folders
        .flatten()
        .map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"))
        .find(|path| path.exists())
}
