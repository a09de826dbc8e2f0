//! APIs: translations between a wire format and [`crate::service::Service`].

pub mod grpc;
pub mod http;
mod http2;
#[cfg(test)]
mod tests;
