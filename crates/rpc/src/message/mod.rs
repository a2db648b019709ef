//! `carillon.message.v1.MessageService`: the server of a `MessageService`, and the client that is one.

mod client;
mod server;
mod values;

pub use client::MessageClient;
pub use server::MessageServer;
