//! WebSocket: the handshake (`upgrade`), the conversation (`session`) and its requests (`requests`).

mod requests;
mod session;
mod upgrade;

pub use upgrade::upgrade;
