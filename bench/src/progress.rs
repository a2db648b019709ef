//! Tells what is going on: one line that changes on a terminal, plain lines now and then elsewhere. Goes to stderr; results go to
//! stdout.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use parking_lot::Mutex;

use crate::checks::Failures;

/// How often conditions are looked at and the line is renewed.
const TICK: Duration = Duration::from_millis(20);

/// Where progress is shown.
pub struct Progress {
    terminal: bool,
    quiet: bool,
    state: Mutex<State>,
}

struct State {
    label: String,
    shown: Instant,
    line_is_open: bool,
}

impl Progress {
    /// Shows on stderr, or nothing at all.
    pub fn new(quiet: bool) -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            quiet,
            state: Mutex::new(State {
                label: String::new(),
                shown: Instant::now(),
                line_is_open: false,
            }),
        }
    }

    /// A line that stays.
    pub fn say(&self, text: &str) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock();
        self.end_line(&mut state);
        eprintln!("{text}");
    }

    /// How far the step `label` is. A new label is shown at once, the rest every 200 ms on a terminal, else every 5 s.
    pub fn step(&self, label: &str, detail: impl FnOnce() -> String) {
        if self.quiet {
            return;
        }
        let mut state = self.state.lock();
        let is_new = state.label != label;
        let pause = Duration::from_millis(if self.terminal { 200 } else { 5_000 });
        if !is_new && state.shown.elapsed() < pause {
            return;
        }
        state.shown = Instant::now();
        if self.terminal {
            if is_new {
                self.end_line(&mut state);
            }
            eprint!("\r\x1b[2K  {label}: {}", detail());
            let _ = std::io::stderr().flush();
            state.line_is_open = true;
        } else {
            eprintln!("  {label}: {}", detail());
        }
        state.label = label.to_owned();
    }

    fn end_line(&self, state: &mut State) {
        if std::mem::take(&mut state.line_is_open) {
            eprintln!();
        }
        state.label.clear();
    }

    /// Waits until `state` answers (done, wanted) with done ≥ wanted. Fails after `patience` without any change of `done`, naming what was
    /// missing, or as soon as `failures` has an entry.
    pub async fn wait(
        &self,
        label: &str,
        patience: Duration,
        failures: &Failures,
        mut state: impl FnMut() -> (u64, u64),
    ) -> Result<()> {
        let mut last_change = (Instant::now(), u64::MAX);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tick.tick().await;
            let (done, wanted) = state();
            self.step(label, || format!("{done} of {wanted}"));
            if done >= wanted {
                return Ok(());
            }
            if let Some(failure) = failures.first() {
                bail!("{label}: {done} of {wanted}, then: {failure}");
            }
            if done != last_change.1 {
                last_change = (Instant::now(), done);
            } else if last_change.0.elapsed() > patience {
                bail!("{label}: only {done} of {wanted}, and no more came within {patience:?}");
            }
        }
    }

    /// Lets `duration` pass, showing `detail`; ends early when `failures` has an entry or `enough` says so.
    pub async fn run_for(
        &self,
        label: &str,
        duration: Duration,
        failures: &Failures,
        mut enough: impl FnMut() -> bool,
        mut detail: impl FnMut() -> String,
    ) -> Result<()> {
        let start = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        while start.elapsed() < duration && !enough() {
            tick.tick().await;
            self.step(label, &mut detail);
            if let Some(failure) = failures.first() {
                bail!("{label}: {failure}");
            }
        }
        Ok(())
    }
}
