//! The contract between Palimpsest's processes: generated messages and services, the typed KV
//! contract with its cost, and the error classes. It knows nothing of models, devices or
//! scheduling.
#![forbid(unsafe_code)]

mod chat;
pub mod contract;
pub mod count;
pub mod error;
mod guide;
pub mod kv;
#[cfg(feature = "grpc")]
mod status;

/// The public API, `palimpsest.v1`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; documented in the .proto file"
)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/palimpsest.v1.rs"));
}

/// The Open Inference Protocol of KServe and Triton, `inference`.
#[allow(
    missing_docs,
    clippy::all,
    reason = "generated; documented in the .proto file"
)]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
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
        include!(concat!(env!("OUT_DIR"), "/palimpsest.internal.v1.rs"));
    }
}

/// Encoded `FileDescriptorSet` of all packages, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
