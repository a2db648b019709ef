//! WebSocket: the handshake (`upgrade`), the conversation (`session`), its requests (`requests`), and how frames are written (`joined`).

mod joined;
mod requests;
mod session;
mod upgrade;

pub use upgrade::upgrade;
