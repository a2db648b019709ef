//! The roles' services over gRPC: the only crate that knows tonic and prost.
//!
//! For each service trait of `carillon-domain` there is a server ([`AuthServer`] and so on), mounted by [`serve`], and a client
//! ([`AuthClient`] and so on) that implements the trait, so that a caller can't tell where the service runs. Errors cross
//! without loss of code, detail, fields and retry time; an error's cause stays in the server's log. [`RoutedMessages`] finds the message
//! replica that owns a room.
//!
//! It decides nothing about chats, verifies no token itself (a [`TokenVerifier`](carillon_domain::services::TokenVerifier) is handed
//! in), and makes no certificates.

mod account;
mod auth;
mod connection;
mod gate;
mod media;
mod message;
mod methods;
mod notification;
mod people;
mod presence;
pub mod proto;
mod routed;
mod serve;
pub mod status;
mod strangers;
mod tls;
mod values;

#[cfg(test)]
mod tests;

pub use account::{AccountClient, AccountServer};
pub use auth::{AuthClient, AuthServer};
pub use connection::Credentials;
pub use gate::InterceptorOptions;
pub use media::{MediaClient, MediaServer};
pub use message::{MessageClient, MessageServer};
pub use notification::{NotificationClient, NotificationServer};
pub use people::{PeopleClient, PeopleServer};
pub use presence::{PresenceClient, PresenceServer};
pub use routed::{RoutedMessages, RoutedOptions};
pub use serve::{RoleServices, ServeOptions, Serving, serve};
pub use tls::{PeerRole, RoleNames, Tls};
