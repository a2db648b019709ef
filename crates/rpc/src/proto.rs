//! The code generated from `proto/`, for integrators and tests. The services themselves speak the types of `carillon-domain`.
#![allow(missing_docs, clippy::all)] // Generated; the protos carry the documentation.

/// `carillon.auth.v1`.
pub mod auth {
    tonic::include_proto!("carillon.auth.v1");
}

/// `carillon.message.v1`.
pub mod message {
    tonic::include_proto!("carillon.message.v1");
}

/// `carillon.presence.v1`.
pub mod presence {
    tonic::include_proto!("carillon.presence.v1");
}

/// `carillon.media.v1`.
pub mod media {
    tonic::include_proto!("carillon.media.v1");
}

/// `carillon.notification.v1`.
pub mod notification {
    tonic::include_proto!("carillon.notification.v1");
}

/// `carillon.people.v1`.
pub mod people {
    tonic::include_proto!("carillon.people.v1");
}

/// Descriptors of every package above with their imports: an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carillon.bin"));
