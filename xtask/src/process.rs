//! Running other programs so that Ctrl-C reaches them and still leaves this one time to clean up.
//!
//! Each program gets a process group of its own. A terminal's Ctrl-C therefore comes here only, and is passed on to
//! the group that runs at that moment; the second one kills it. It does not retry, and it gives no time limits.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Set by the first signal, and never cleared.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// The process group that runs now; 0 when none does, or when it may not be interrupted.
static RUNNING_GROUP: AtomicU32 = AtomicU32::new(0);

/// Starts the thread that receives SIGINT, SIGTERM and SIGHUP from now on.
pub fn watch_for_signals() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("can't receive signals")?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            let again = INTERRUPTED.swap(true, Ordering::SeqCst);
            let group = RUNNING_GROUP.load(Ordering::SeqCst);
            if group != 0 {
                kill_group(group, if again { "KILL" } else { "TERM" });
            }
        }
    });
    Ok(())
}

/// Whether somebody wants this to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

fn kill_group(group: u32, signal: &str) {
    // A failure means that the group has ended already.
    let _ = Command::new("kill")
        .args(["-s", signal, "--", &format!("-{group}")])
        .stderr(Stdio::null())
        .status();
}

/// The workspace's root folder.
pub fn root() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        // Cargo says at run time where the manifest is. What was true when this was compiled may be another checkout
        // that shares the target folder.
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        manifest
            .parent()
            .map_or(manifest.clone(), Path::to_path_buf)
    })
}

/// Cargo, in the workspace's root folder.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What the `cargo run` around this program told it of its own package. Build scripts watch these variables: left in place, each
    // turn from `cargo build` to `cargo xtask` and back would build ring, and all that needs it, anew.
    for (name, _) in std::env::vars_os() {
        let of_package = name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        if of_package {
            command.env_remove(name);
        }
    }
    command
}

/// Runs `action` between two lines that say what it is and how long it took.
pub fn step<T>(what: &str, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("==> {what}");
    let result = action();
    let outcome = if result.is_ok() { "done" } else { "failed" };
    eprintln!(
        "    {what}: {outcome} after {:.1} s",
        started.elapsed().as_secs_f64()
    );
    result
}

/// A child that Ctrl-C reaches until it's waited for.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    /// Starts it without a standard input.
    pub fn start(command: &mut Command) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let what = describe(command);
        if interrupted() {
            bail!("interrupted before {what}");
        }
        let child = command
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .with_context(|| format!("can't start {what}"))?;
        RUNNING_GROUP.store(child.id(), Ordering::SeqCst);
        // The signal may have come before the group was known.
        if interrupted() {
            kill_group(child.id(), "TERM");
        }
        Ok(Self { child, what })
    }

    /// The child, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits for its end; whether it ended well.
    pub fn succeeded(mut self) -> Result<bool> {
        let status = self
            .child
            .wait()
            .with_context(|| format!("can't wait for {}", self.what))?;
        RUNNING_GROUP.store(0, Ordering::SeqCst);
        if interrupted() {
            bail!("{} was interrupted", self.what);
        }
        Ok(status.success())
    }
}

/// Runs it to its end; fails if it does.
pub fn run(command: &mut Command) -> Result<()> {
    let what = describe(command);
    if !Running::start(command)?.succeeded()? {
        bail!("`{what}` failed; what it said is above");
    }
    Ok(())
}

/// Runs it to its end even after an interruption: for cleaning up. Ctrl-C doesn't reach it.
pub fn run_regardless(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let what = describe(command);
    let status = command
        .stdin(Stdio::null())
        .process_group(0)
        .status()
        .with_context(|| format!("can't start {what}"))?;
    if !status.success() {
        bail!("`{what}` failed; what it said is above");
    }
    Ok(())
}

/// What it prints on standard output; fails if it does.
pub fn output(command: &mut Command) -> Result<String> {
    let what = describe(command);
    let mut running = Running::start(command.stdout(Stdio::piped()))?;
    let mut text = String::new();
    if let Some(mut stdout) = running.child().stdout.take() {
        std::io::Read::read_to_string(&mut stdout, &mut text)
            .with_context(|| format!("`{what}` printed something unreadable"))?;
    }
    if !running.succeeded()? {
        bail!("`{what}` failed; what it said is above");
    }
    Ok(text)
}

/// The command as one would type it, without its environment.
pub fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.strip_prefix(root()).unwrap_or(program);
    // Cargo's own path tells nobody anything.
    let program = if program.file_name() == Some("cargo".as_ref()) {
        Path::new("cargo")
    } else {
        program
    };
    let mut text = program.display().to_string();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
