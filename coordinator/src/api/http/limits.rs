//! What one client may take of the HTTP server.

use std::time::Duration;

/// What a client may take of this server once it is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpLimits {
    /// Time for the body of a request to come.
    pub body_time: Duration,
    /// Bytes of the headers of a request.
    pub header_bytes: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_time: Duration::from_secs(60),
            header_bytes: 64 << 10,
        }
    }
}
