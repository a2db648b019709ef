//! Push notifications: targets of devices, and the delivery of push jobs (NOTIF-01 to -03).
//!
//! [`NotificationRole`] implements [`carillon_domain::services::NotificationService`] (targets) and
//! [`carillon_domain::ports::JobHandler`] (delivery) over ports. Delivered are Web Push (RFC 8030, 8291, 8292) and FCM HTTP v1; a
//! target of a provider that isn't configured is refused. This crate makes no jobs: the message
//! role does when it sends, for who isn't there. What people set decides here which of these they get (USER-07).

mod deliver;
mod endpoint;
mod fcm;
mod http;
mod options;
mod service;
#[cfg(test)]
mod tests;
mod web_push;

pub use fcm::ServiceAccount;
pub use options::{FcmOptions, NotificationOptions, OptionsError, WebPushOptions};
pub use service::{NotificationPorts, NotificationRole};
pub use web_push::VapidKey;
