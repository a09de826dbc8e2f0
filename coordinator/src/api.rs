//! APIs: translations between a wire format and [`crate::service::Service`].

pub mod grpc;
pub mod http;
#[cfg(test)]
mod tests;
