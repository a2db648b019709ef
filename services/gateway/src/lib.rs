//! The edge of the platform: REST and WebSocket over the services' traits, and the fan-out of events to live sockets.
//!
//! - [`Gateway`] is the whole: [`Gateway::router`] for requests, [`Gateway::run`] to serve a listener until told to stop.
//! - `edge` is what every request passes: limits, errors as problem details, spans, access log, security headers.
//! - `rest` and `socket` turn requests and frames into calls of `usecases`; both speak the types of `wire`.
//! - `hub` follows the rooms of live sockets on the bus, finds gaps, and hands each event to every follower.
//!
//! The gateway decides nothing about rooms, messages or accounts and stores nothing: services do. It does not terminate TLS.

mod edge;
mod gateway;
mod hub;
mod metrics;
mod options;
mod page;
mod rest;
mod serve;
mod socket;
mod stalled;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod usecases;
mod wire;

pub use gateway::Gateway;
pub use options::{GatewayOptions, Services};
