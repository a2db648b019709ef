//! Uploads and downloads of files in rooms: what may be stored, and who may fetch it (MEDIA-01, -03, -04).
//!
//! [`MediaRole`] implements [`carillon_domain::services::MediaService`] over ports. It makes no thumbnails and changes no bytes;
//! HTTP ranges, cache headers and the content disposition are the gateway's business.

mod erase;
mod kind;
mod name;
mod service;
#[cfg(test)]
mod tests;

pub use service::{MediaOptions, MediaRole};
