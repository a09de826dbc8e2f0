//! What one connection of HTTP/2 may hold, over gRPC and over HTTP alike.
//!
//! A connection has no age at which it is closed, though tonic offers one: a stream may last an
//! hour, keys are asked for with each request, and what idles or stalls is closed anyway.

use std::time::Duration;

/// Requests at once on one connection; more wait at the client.
pub(super) const STREAMS: u32 = 256;
/// Streams that a client has reset and the server has not seen yet (CVE-2023-44487): beyond them
/// the connection ends.
pub(super) const PENDING_RESETS: usize = 20;
/// Streams that the server has reset over a client's errors, with the same end.
pub(super) const OWN_RESETS: usize = 256;
/// Bytes of a body that may come before somebody reads it.
pub(super) const STREAM_WINDOW: u32 = 256 << 10;
/// The same of all bodies of a connection together: what it can make the server hold.
pub(super) const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of an answer that wait for the client's window, for each stream.
pub(super) const SEND_BUFFER: usize = 16 << 10;
/// Bytes of the headers of a request over gRPC.
pub(super) const HEADER_BYTES: u32 = 16 << 10;
/// A connection is asked for a sign of life this often, and has [`PING_TIME`] to give it: with it
/// go the requests of a client whose host is gone.
pub(super) const PING_PAUSE: Duration = Duration::from_secs(30);
pub(super) const PING_TIME: Duration = Duration::from_secs(20);
