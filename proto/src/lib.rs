//! The contract between Palimpsest's processes: generated messages and services, the typed KV
//! contract with its cost, and the error classes. It knows nothing of models, devices or
//! scheduling.
#![forbid(unsafe_code)]

pub mod contract;
pub mod error;
pub mod kv;

/// The public API, `palimpsest.v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; documented in the .proto file"
)]
pub mod v1 {
    tonic::include_proto!("palimpsest.v1");
}

/// Coordinator to rank, `palimpsest.internal.v1`.
pub mod internal {
    /// Version 1.
    #[allow(
        missing_docs,
        clippy::all,
        reason = "generated; documented in the .proto file"
    )]
    pub mod v1 {
        tonic::include_proto!("palimpsest.internal.v1");
    }
}

/// Encoded `FileDescriptorSet` of both packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
