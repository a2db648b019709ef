//! A PostgreSQL server for one scenario: its own directory, no port, a Unix socket. PostgreSQL refuses to run as root: then it runs as the
//! user that its package made.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::machine::Cores;

/// What a reader of the figures must know.
pub const NOTE: &str = "PostgreSQL on the server's cores: fsync and synchronous_commit on, shared_buffers 256MB, max_wal_size 4GB, over a Unix socket";

const SETTINGS: [&str; 6] = [
    "listen_addresses=",
    "max_connections=64",
    "shared_buffers=256MB",
    "max_wal_size=4GB",
    "checkpoint_timeout=15min",
    "logging_collector=off",
];
const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// The package's user.
const USER: &str = "postgres";

/// A running server; it ends, and its data goes, when it is forgotten.
pub struct Postgres {
    child: Child,
    data: TempDir,
    /// Short, because the path of a socket may only have about a hundred bytes.
    socket: TempDir,
}

/// User and group that it runs as, when that is not this process's.
#[derive(Clone, Copy)]
struct Owner {
    user: u32,
    group: u32,
}

// === impl Postgres ===

impl Postgres {
    /// Starts a new one with its data under `scratch`; `programs` is where PostgreSQL's programs are.
    pub async fn start(programs: &Path, scratch: &Path, cores: &Cores) -> Result<Self> {
        let owner = match geteuid().is_root() {
            true => Some(Owner::by_name(USER)?),
            false => None,
        };
        let data = directory_of(owner, scratch)?;
        let socket = directory_of(owner, &std::env::temp_dir())?;
        let files = data.path().join("data");
        let made = command(&programs.join("initdb"), owner)
            .arg("--pgdata")
            .arg(&files)
            // Whoever may enter the socket's directory may connect; nobody else can.
            .args(["--username=carillon", "--auth=trust", "--encoding=UTF8"])
            .args(["--locale=C", "--no-instructions"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}/initdb", programs.display()))?;
        ensure!(
            made.status.success(),
            "initdb failed ({}); is {} open to the user {USER}? {}",
            made.status,
            scratch.display(),
            String::from_utf8_lossy(&made.stderr).trim()
        );
        let log = fs::File::create(data.path().join("log")).context("cannot make a log")?;
        let mut server = command(&programs.join("postgres"), owner);
        server.arg("-D").arg(&files).arg("-k").arg(socket.path());
        for setting in SETTINGS {
            server.args(["-c", setting]);
        }
        server
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share a log")?)
            .stderr(log);
        let child = cores
            .as_server(|| server.spawn())?
            .context("cannot start PostgreSQL")?;
        let started = Self {
            child,
            data,
            socket,
        };
        started.wait_until_ready(programs).await
    }

    async fn wait_until_ready(mut self, programs: &Path) -> Result<Self> {
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(50));
        loop {
            tick.tick().await;
            let answer = Command::new(programs.join("pg_isready"))
                .args(["--quiet", "--dbname=postgres", "--host"])
                .arg(self.socket.path())
                .stdin(Stdio::null())
                .status()
                .context("cannot start pg_isready")?;
            if answer.success() {
                return Ok(self);
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || start.elapsed() > READY_WITHIN {
                let log = fs::read_to_string(self.data.path().join("log")).unwrap_or_default();
                bail!("PostgreSQL is not ready; it said:\n{log}");
            }
        }
    }

    /// The process that started all others.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How a client names it, as a URL.
    pub fn url(&self) -> String {
        let socket = self.socket.path().display();
        format!("postgresql:///postgres?host={socket}&user=carillon")
    }

    /// Stops it, cutting off who is connected.
    pub async fn stop(mut self) -> Result<()> {
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while self.child.try_wait()?.is_none() {
            tick.tick().await;
            ensure!(
                start.elapsed() < STOP_WITHIN,
                "PostgreSQL was asked to stop and still runs after {STOP_WITHIN:?}"
            );
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // It clears up shared memory when it is asked; it does not when it is killed.
        let _ = kill_process(Pid::from_child(&self.child), Signal::QUIT);
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < STOP_WITHIN {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command in a directory that every user may enter.
fn command(program: &Path, owner: Option<Owner>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    if let Some(owner) = owner {
        command.uid(owner.user).gid(owner.group);
    }
    command
}

fn directory_of(owner: Option<Owner>, parent: &Path) -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("carillon-bench-pg-")
        .tempdir_in(parent)
        .with_context(|| format!("cannot make a directory under {}", parent.display()))?;
    if let Some(owner) = owner {
        chown(directory.path(), Some(owner.user), Some(owner.group))
            .with_context(|| format!("cannot give a directory to the user {USER}"))?;
    }
    Ok(directory)
}

// === impl Owner ===

impl Owner {
    fn by_name(name: &str) -> Result<Self> {
        let users = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        Self::find(&users, name)
            .with_context(|| format!("there is no user {name}: bench/peers/install makes one"))
    }

    fn find(users: &str, name: &str) -> Option<Self> {
        let mut fields = users
            .lines()
            .map(|line| line.split(':'))
            .find_map(|mut fields| (fields.next() == Some(name)).then_some(fields))?;
        Some(Self {
            user: fields.nth(1)?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let users = "root:x:0:0:root:/root:/bin/bash\npostgresql:x:9:9::/:/x\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/bash\n";
        let owner = Owner::find(users, "postgres").unwrap();
        assert_eq!((owner.user, owner.group), (101, 104));
        assert!(Owner::find(users, "post").is_none());
    }
}
