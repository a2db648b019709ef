//! Puts roles together: which store stands behind which port, and which service is local and which remote.
//!
//! [`roles`] has one function per role, used by both ways of running: [`up`](fn@up) (everything local, embedded stores) and
//! [`serve`](fn@serve) (some roles, real stores, the other roles over gRPC).

mod backup;
mod backup_socket;
mod late;
mod migrate;
mod reach;
mod reload;
mod restore;
mod roles;
mod serve;
mod stores;
mod up;

pub use backup::backup;
pub use migrate::migrate;
pub use restore::restore;
pub use serve::serve;
pub use up::up;

use std::net::SocketAddr;

use carillon_crds::config::{LogFormat, PlatformConfig};
use carillon_telemetry::Telemetry;
use tokio::net::{TcpListener, TcpSocket};

use crate::failure::Failure;

/// Starts logs and traces.
fn start_telemetry(
    config: &PlatformConfig,
    service: &str,
    instance: &str,
    filter: &str,
) -> Result<Telemetry, Failure> {
    carillon_telemetry::start(&carillon_telemetry::Options {
        service: service.to_owned(),
        instance: instance.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        otlp_endpoint: config.telemetry.otlp_endpoint.clone(),
        trace_ratio: config.telemetry.trace_ratio,
        log_format: match config.telemetry.log_format {
            LogFormat::Json => carillon_telemetry::LogFormat::Json,
            LogFormat::Text => carillon_telemetry::LogFormat::Text,
        },
        log_filter: filter.to_owned(),
    })
    .map_err(|error| Failure::usage(error.to_string()))
}

/// Connections that may wait to be accepted, if the system allows as many: everybody who comes back at once after an outage. Whoever finds
/// no place tries again after a second, then after two more, and so on.
const BACKLOG: u32 = 16_384;

/// Binds a port, or says which one is taken and how to choose another.
fn bind(what: &str, address: SocketAddr, hint: &str) -> Result<TcpListener, Failure> {
    let bound = || {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // As the runtime's own binding does: a port is free again as soon as its process has ended.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error: std::io::Error| {
        Failure::unavailable(format!(
            "can't listen on {address} for {what}: {error}; {hint}"
        ))
    })
}
