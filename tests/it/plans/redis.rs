//! A Redis of a plan's own, so that nobody else's is flushed: a server, and a replica that may be promoted.

use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use crate::world::{process::free_port, proxy::Proxy};

/// How long the old server goes on alone after its replica was promoted: what it takes then is lost.
const LOST: Duration = Duration::from_millis(150);
/// How long a server may take to answer, or a replica to be in step.
const PATIENCE: Duration = Duration::from_secs(30);

/// The server, and its replica.
pub struct OwnRedis {
    server: Server,
    replica: Server,
}

impl OwnRedis {
    /// Starts both.
    pub async fn start() -> Result<Self> {
        let server = Server::start(None)?;
        server.answers().await?;
        let replica = Server::start(Some(&server))?;
        replica.is_in_step().await?;
        Ok(Self { server, replica })
    }

    /// Where the server is now.
    pub fn address(&self) -> String {
        self.server.address()
    }

    /// Forgets everything.
    pub async fn flush(&self) -> Result<()> {
        let answer = self.server.ask("FLUSHALL").await?;
        ensure!(answer == "+OK", "FLUSHALL was answered {answer}");
        Ok(())
    }

    /// Promotes the replica while the server still takes writes, then kills the server, points everybody to the promoted one, and
    /// gives that a new replica.
    pub async fn fail_over(&mut self, proxy: &Proxy) -> Result<()> {
        self.replica.is_in_step().await?;
        let answer = self.replica.ask("REPLICAOF NO ONE").await?;
        ensure!(answer == "+OK", "a promotion was answered {answer}");
        tokio::time::sleep(LOST).await;
        let next = Server::start(Some(&self.replica))?;
        let promoted = std::mem::replace(&mut self.replica, next);
        proxy.point_to(&promoted.address());
        // Dropped, and so killed: connections to it end.
        self.server = promoted;
        self.replica.is_in_step().await
    }
}

struct Server {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    fn start(of: Option<&Self>) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let port = free_port();
        let mut command = Command::new("redis-server");
        command
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no"])
            .args(["--repl-diskless-sync-delay", "0"]);
        if let Some(server) = of {
            command.args(["--replicaof", "127.0.0.1", &server.port.to_string()]);
        }
        let child = command
            .arg("--dir")
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .context("starting redis-server; `testbed/install packages` brings it")?;
        Ok(Self {
            child,
            port,
            _directory: directory,
        })
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The first line of an answer.
    async fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address()).await?;
        stream
            .write_all(format!("{command}\r\n").as_bytes())
            .await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    }

    async fn answers(&self) -> Result<()> {
        self.wait_for("PING", |answer| answer == "+PONG").await
    }

    /// Waits until this replica has all that its server had.
    async fn is_in_step(&self) -> Result<()> {
        let link =
            "EVAL \"return redis.call('INFO','replication'):match('master_link_status:(%a+)')\" 0";
        // A bulk string: its length comes first, `up` has two letters.
        self.wait_for(link, |answer| answer == "$2").await
    }

    async fn wait_for(&self, command: &str, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(command).await;
            if answer.as_ref().is_ok_and(|answer| wanted(answer)) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "redis at {} answers {command} with {answer:?}",
                self.port
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
