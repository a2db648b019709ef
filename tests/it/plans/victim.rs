//! What a plan does to a process: killed, paused, stopped, started. What is around it, its clock, disk and network, is the town's.
//!
//! A fault that comes while a message replica is scaled away finds nothing to break, and does nothing.

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Result, bail, ensure};
use tokio::sync::Mutex;

use crate::world::{
    platform::{Role, Up},
    process::Process,
};

/// A process that a plan may break.
pub enum Victim {
    /// The whole platform.
    Up(Box<Up>),
    /// A role, and the folder that it is started in.
    Role(Box<Role>, PathBuf),
    /// One of the testbed's stores.
    Store(TestbedStore),
}

/// A store that `testbed/stores` runs.
pub struct TestbedStore {
    pub script: PathBuf,
    pub name: String,
    /// Only one of the stores that share this is broken at a time: a minority.
    pub alone: Arc<Mutex<()>>,
}

impl TestbedStore {
    fn does(&self, verb: &str) -> Result<()> {
        let output = Command::new(&self.script)
            .args([verb, &self.name])
            .output()?;
        ensure!(
            output.status.success(),
            "testbed/stores {verb} {}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Victim {
    /// The process, if it is one of ours and runs.
    fn process(&mut self) -> Option<&mut Process> {
        let process = match self {
            Self::Up(up) => &mut up.process,
            Self::Role(role, _) => &mut role.process,
            Self::Store(_) => return None,
        };
        process.is_running().then_some(process)
    }

    async fn start(&mut self) -> Result<()> {
        match self {
            Self::Up(up) => up.restart().await,
            Self::Role(role, directory) => role.restart(directory).await,
            Self::Store(_) => bail!("stores are started by the testbed"),
        }
    }

    /// SIGSTOP, and SIGCONT after a time.
    pub async fn pause(&mut self, time: Duration) -> Result<()> {
        if let Self::Store(store) = self {
            let _alone = store.alone.lock().await;
            store.does("pause")?;
            tokio::time::sleep(time).await;
            return store.does("resume");
        }
        if let Some(process) = self.process() {
            process.signal("STOP");
            tokio::time::sleep(time).await;
            process.signal("CONT");
        }
        Ok(())
    }

    /// SIGKILL, and started again at once.
    pub async fn kill(&mut self) -> Result<()> {
        if let Self::Store(store) = self {
            let _alone = store.alone.lock().await;
            return tokio::task::block_in_place(|| store.does("restart"));
        }
        let Some(process) = self.process() else {
            return Ok(());
        };
        process.kill();
        self.start().await
    }

    /// Killed in the middle of a write: half a record stands at the journal's end.
    pub async fn tear(&mut self) -> Result<()> {
        let Self::Up(up) = self else {
            bail!("only embedded stores have a journal");
        };
        up.process.kill();
        if let Some(journal) = newest_journal(&up.directory.path().join("data"))? {
            let torn = fs::File::options()
                .append(true)
                .open(journal)?
                .write_all(&[0xa5; 23]);
            // On a full disk less of it stands there, or nothing.
            if let Err(error) = torn
                && error.kind() != ErrorKind::StorageFull
            {
                return Err(error.into());
            }
        }
        up.restart().await
    }

    /// SIGTERM, drained, and started again.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process() {
            process.stop().await?;
            self.start().await?;
        }
        Ok(())
    }

    /// Started if it isn't running, or stopped if it is.
    pub async fn should_run(&mut self, wanted: bool) -> Result<()> {
        match (self.process(), wanted) {
            (Some(process), false) => process.stop().await,
            (None, true) => self.start().await,
            _ => Ok(()),
        }
    }
}

fn newest_journal(directory: &Path) -> Result<Option<PathBuf>> {
    let mut newest = None;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            newest_journal(&entry.path())?
        } else if entry.path().extension().is_some_and(|e| e == "jnl") {
            Some(entry.path())
        } else {
            None
        };
        if let Some(found) = found {
            let changed = fs::metadata(&found)?.modified()?;
            if newest.as_ref().is_none_or(|(time, _)| changed > *time) {
                newest = Some((changed, found));
            }
        }
    }
    Ok(newest.map(|(_, path)| path))
}
