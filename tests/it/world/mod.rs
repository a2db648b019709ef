//! What tests are made of: processes, people, and scripts of what people do.

pub mod certificates;
pub mod client;
pub mod clock;
pub mod control_plane;
pub mod disk;
pub mod mail;
pub mod platform;
pub mod process;
pub mod proxy;
pub mod script;
pub mod servers;
