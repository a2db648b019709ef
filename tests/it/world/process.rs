//! Child processes of the real binary: started, killed, paused, and never left behind.

use std::{
    fs::File,
    io::Read as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::clock::WallClock;

/// How long a stop may take before a test fails: longer than any drain.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// The `carillon` binary beside this test's own.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("CARILLON_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let path = test
        .parent()
        .and_then(Path::parent)
        .expect("target/<profile>/deps/it")
        .join("carillon");
    assert!(
        path.exists(),
        "{} is not built: run `cargo build -p carillon`, or `cargo xtask test`",
        path.display()
    );
    path
}

/// A running process with its output in a file.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
    clock: Option<WallClock>,
}

impl Process {
    /// Starts the binary with these arguments; what it prints goes to `<directory>/<name>.log`.
    pub fn start(name: &str, directory: &Path, arguments: &[String]) -> Result<Self> {
        Self::start_by(None, name, directory, arguments)
    }

    /// The same by a clock of its own.
    pub fn start_by(
        clock: Option<&WallClock>,
        name: &str,
        directory: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(binary())
            .args(arguments)
            .envs(clock.map(WallClock::environment).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .context("starting carillon")?;
        Ok(Self {
            child,
            log,
            name: name.to_owned(),
            clock: clock.cloned(),
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal by name, such as `STOP`.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(self.pid().to_string())
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "kill -{signal} {} failed",
            self.name
        );
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(clock) = &self.clock {
            clock.clean_up(self.pid());
        }
    }

    /// SIGTERM, and waits for a clean end, which may take as long as a drain.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal("TERM");
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(
                    status.success(),
                    "{} was told to stop, and ended with {status}:\n{}",
                    self.name,
                    self.last_words()
                );
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{} did not end within {STOP_PATIENCE:?} of a SIGTERM:\n{}",
                self.name,
                self.last_words()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last lines that it printed.
    fn last_words(&self) -> String {
        let output = self.output();
        let lines: Vec<&str> = output.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// SIGTERM; its exit code. Fails when it doesn't end in time.
    pub fn terminate(&mut self, patience: Duration) -> Result<Option<i32>> {
        self.signal("TERM");
        self.wait(patience)
    }

    /// Waits for its end.
    pub fn wait(&mut self, patience: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not end within {patience:?}:\n{}",
                    self.name,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A stopped process takes SIGKILL too.
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} printed last:\n{}", self.name, self.last_words());
        }
    }
}

/// A port that nothing else takes before the process that it is for, also while that one is being started again: none is given out
/// twice, and none is of the range from which the system takes the ports of outgoing connections (32768 to 60999 on Linux).
pub fn free_port() -> u16 {
    // Above the ports of Kubernetes' own servers, below those of RabbitMQ's distribution (20,000 more than its own port).
    const FIRST: u16 = 11_000;
    const COUNT: u32 = 9_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests of several checkouts may run at the same time: each begins elsewhere.
    let start = std::process::id().wrapping_mul(97);
    for _ in 0..COUNT {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = FIRST + u16::try_from(offset).expect("less than COUNT");
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
    panic!("no port from {FIRST} on is free");
}
