//! One rank: the thread that owns its device ([`device`]), and around it the process of a cluster
//! ([`server`]) with its gRPC server and its epochs.
#![forbid(unsafe_code)]

pub mod device;
pub mod server;
pub mod shelf;
