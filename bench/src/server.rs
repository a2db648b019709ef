//! The server under load: one that runs already, or one started for a scenario and stopped after it.
//!
//! A started server belongs to this process: it is ended by its handle, and its data directory goes with it.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::bare::WriteMode;
use crate::machine::Cores;
use crate::peers::postgres::Postgres;
use crate::peers::{Peer, Place};
use crate::rest::Rest;
use crate::wire::Wire;

/// How long a started server may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a server may take to stop before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Where the load goes.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A platform that runs already.
    Running {
        /// Its address.
        address: SocketAddr,
        /// Its processes, for memory and CPU time.
        pids: Vec<u32>,
    },
    /// This `carillon` binary, started with `up` for each scenario.
    Started {
        /// The binary.
        binary: PathBuf,
        /// Under which directory its data goes.
        scratch: PathBuf,
    },
    /// The bare server of this binary.
    Bare(WriteMode),
    /// Another chat server, installed by `bench/peers/install`.
    Peer(Peer, Place),
}

/// A server that can be talked to.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its processes, if known.
    pub pids: Vec<u32>,
    /// Those of its database, whose memory does not grow with sockets.
    pub store_pids: Vec<u32>,
    /// What it speaks.
    pub wire: Wire,
    /// What it takes from everybody when it has no accounts.
    pub shared_token: String,
    process: Option<Process>,
    /// After the process, so that it is dropped after it.
    store: Option<Postgres>,
}

/// A child that is killed when it is forgotten.
struct Process {
    /// Starts it again.
    command: Command,
    child: Child,
    directory: Option<TempDir>,
}

// === impl Subject ===

impl Subject {
    /// A running platform by its URL, `http://host:port`.
    pub fn running(target: &str, pids: Vec<u32>) -> Result<Self> {
        let authority = target
            .strip_prefix("http://")
            .ok_or_else(|| anyhow!("--target {target}: only http://host:port is understood"))?
            .trim_end_matches('/');
        let address = authority
            .to_socket_addrs()
            .with_context(|| format!("--target {target}: no such address"))?
            .next()
            .ok_or_else(|| anyhow!("--target {target}: no such address"))?;
        Ok(Self::Running { address, pids })
    }

    /// The column in the result table.
    pub fn name(&self) -> String {
        match self {
            Self::Running { .. } | Self::Started { .. } => "carillon".to_owned(),
            Self::Bare(mode) => format!("bare, {}", mode.name()),
            Self::Peer(peer, _) => peer.name().to_owned(),
        }
    }

    /// Starts it, if it must be started.
    pub async fn start(&self, cores: &Cores) -> Result<Server> {
        match self {
            Self::Running { address, pids } => {
                let mut server = Server {
                    address: *address,
                    pids: pids.clone(),
                    store_pids: Vec::new(),
                    wire: Wire::Carillon,
                    shared_token: String::new(),
                    process: None,
                    store: None,
                };
                server.wait_until_ready().await?;
                Ok(server)
            }
            Self::Started { binary, scratch } => start_carillon(binary, scratch, cores).await,
            Self::Bare(mode) => start_bare(*mode, cores).await,
            Self::Peer(peer, place) => peer.start(place, cores).await,
        }
    }
}

/// A platform for one scenario: limits out of the way, cheap password hashes, tokens that outlive the run.
const CHAT_CLUSTER: &str = "\
apiVersion: carillon.chat/v1alpha1
kind: ChatCluster
metadata:
  name: bench
spec:
  gateway:
    limits:
      authPerMinute: 100000000
      requestsPerMinute: 100000000
      messagesPerSecond: 100000000
  auth:
    devMode: true
    accessTokenTtl: 24h
    argon2:
      memoryKib: 8192
      iterations: 1
      parallelism: 1
";

/// What a reader of the figures must know of [`CHAT_CLUSTER`].
pub const CHAT_CLUSTER_NOTE: &str = "started with rate limits out of the way and password hashes of 8 MiB, 1 pass (the default is 64 MiB, 3 passes)";

async fn start_carillon(binary: &Path, scratch: &Path, cores: &Cores) -> Result<Server> {
    ensure!(
        binary.is_file(),
        "--server {}: no such file; build it with `cargo build --release`",
        binary.display()
    );
    let directory = tempfile::Builder::new()
        .prefix("carillon-bench-")
        .tempdir_in(scratch)
        .with_context(|| format!("cannot make a directory under {}", scratch.display()))?;
    let file = directory.path().join("chatcluster.yaml");
    std::fs::write(&file, CHAT_CLUSTER).context("cannot write the ChatCluster")?;
    let log = std::fs::File::create(directory.path().join("log"))
        .context("cannot make the server's log")?;
    let [address, grpc, admin] = free_addresses()?;
    let mut command = Command::new(binary);
    command
        .arg("up")
        .arg("-f")
        .arg(&file)
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .arg("--listen")
        .arg(address.to_string())
        .args(["--grpc-listen", &grpc.to_string()])
        .args(["--admin-listen", &admin.to_string()])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("cannot share the server's log")?)
        .stderr(log);
    Server::launch(
        Wire::Carillon,
        address,
        command,
        Some(directory),
        None,
        cores,
    )
    .await
}

async fn start_bare(mode: WriteMode, cores: &Cores) -> Result<Server> {
    let binary = std::env::current_exe().context("cannot find this binary")?;
    let [address] = free_addresses()?;
    let mut command = Command::new(binary);
    command
        .args(["bare-server", "--port", &address.port().to_string()])
        .args(["--mode", mode.name()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    Server::launch(Wire::Bare, address, command, None, None, cores).await
}

/// Addresses that were free a moment ago, all different.
pub fn free_addresses<const COUNT: usize>() -> Result<[SocketAddr; COUNT]> {
    let mut addresses = [SocketAddr::from(([127, 0, 0, 1], 0)); COUNT];
    let mut held = Vec::with_capacity(COUNT);
    for address in &mut addresses {
        let listener = TcpListener::bind(*address).context("no free port on 127.0.0.1")?;
        *address = listener.local_addr()?;
        held.push(listener);
    }
    Ok(addresses)
}

// === impl Server ===

impl Server {
    /// Starts a process and waits until it is ready. Its log is `log` in the directory, which goes with it, as does its database.
    pub async fn launch(
        wire: Wire,
        address: SocketAddr,
        mut command: Command,
        directory: Option<TempDir>,
        store: Option<Postgres>,
        cores: &Cores,
    ) -> Result<Self> {
        let child = cores
            .as_server(|| command.spawn())?
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let mut server = Self {
            address,
            pids: vec![child.id()],
            store_pids: store.iter().map(Postgres::pid).collect(),
            wire,
            shared_token: "anybody".to_owned(),
            process: Some(Process {
                command,
                child,
                directory,
            }),
            store,
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    /// Waits for `/ready` (a server without REST: for its port), or fails with what the server said.
    async fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        let rest = Rest::new(self.address);
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            let answer = if !self.wire.has_rest() {
                tokio::net::TcpStream::connect(self.address)
                    .await
                    .map(drop)
                    .map_err(anyhow::Error::from)
            } else {
                rest.request(Method::GET, "/ready", None, None)
                    .await
                    .and_then(|(status, body)| {
                        ensure!(
                            status.is_success(),
                            "/ready was answered {status}: {}",
                            crate::frames::excerpt(&body)
                        );
                        Ok(())
                    })
            };
            let Err(error) = answer else {
                return Ok(());
            };
            if let Some(process) = &mut self.process
                && let Some(status) = process.child.try_wait()?
            {
                bail!(
                    "the server ended ({status}) before it was ready{}",
                    process.log()
                );
            }
            if start.elapsed() > READY_WITHIN || self.process.is_none() {
                let log = self.process.as_ref().map(Process::log).unwrap_or_default();
                return Err(error.context(format!(
                    "{} is not ready after {:?}{log}",
                    self.address,
                    start.elapsed()
                )));
            }
        }
    }

    /// Stops a started server and waits for its end; a running one stays.
    pub async fn stop(mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            process.stop().await?;
        }
        match self.store.take() {
            Some(store) => store.stop().await,
            None => Ok(()),
        }
    }

    /// All processes, the database's included.
    pub fn all_pids(&self) -> Vec<u32> {
        [self.pids.as_slice(), &self.store_pids].concat()
    }

    /// Stops a started server and starts it again on its data; a running one stays as it is. So memory that was used to prepare a
    /// scenario, and that the allocator keeps, is not there to be used again unseen.
    pub async fn restart(&mut self, cores: &Cores) -> Result<()> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        process.stop().await?;
        process.child = cores
            .as_server(|| process.command.spawn())?
            .context("cannot start the server again")?;
        self.pids = vec![process.child.id()];
        self.wait_until_ready().await
    }

    /// Whether it was started here, and so can be stopped.
    pub fn is_started(&self) -> bool {
        self.process.is_some()
    }

    /// The last lines of a started server's log, for an error text.
    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }
}

// === impl Process ===

impl Process {
    /// Asks it to stop, and waits for its end.
    async fn stop(&mut self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        // It may have ended by itself: then there is nobody to signal.
        let _ = kill_process(pid, Signal::TERM);
        let start = Instant::now();
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while self.child.try_wait()?.is_none() {
            tick.tick().await;
            ensure!(
                start.elapsed() < STOP_WITHIN,
                "the server was asked to stop and still runs after {STOP_WITHIN:?}; killing it{}",
                self.log()
            );
        }
        Ok(())
    }

    fn log(&self) -> String {
        let Some(directory) = &self.directory else {
            return String::new();
        };
        let bytes = std::fs::read(directory.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<&str> = text.lines().rev().take(15).collect();
        lines.reverse();
        format!("; the end of its log:\n{}", lines.join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended after an orderly stop: then both are no-ops.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
