//! The shell of a process: stopping on signals, readiness, the admin server, and tasks that are waited for.
//!
//! It doesn't know what the process serves, reads no configuration file, and decides nothing about roles.

pub mod admin;
pub mod ready;
pub mod tasks;

use tokio_util::sync::CancellationToken;

/// A token that is cancelled on SIGTERM or SIGINT. A second signal ends the process at once with status 130.
pub fn stop_on_signals() -> std::io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = CancellationToken::new();
    let stopping = stop.clone();
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if first {
                tracing::info!("stopping; a second signal stops at once");
                stopping.cancel();
            }
        }
        std::process::exit(130);
    });
    Ok(stop)
}
