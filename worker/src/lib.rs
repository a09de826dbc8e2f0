//! One rank as a process: its gRPC server, its epochs, the thread that owns its device.
#![forbid(unsafe_code)]

pub mod server;
