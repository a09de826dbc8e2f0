//! What somebody is told whose connection is not taken.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::error::SPEAKS_TLS;

/// Begin of every HTTP/2 connection.
pub(crate) const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What of it tells HTTP/2 from HTTP/1.
pub(crate) const HTTP2_SIGN: &[u8] = b"PRI ";
/// Time between the connection and the first request of a client of HTTP/2.
const REQUEST_TIME: Duration = Duration::from_millis(200);
/// Time and bytes that a client of plain text has to take its answer.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_BYTES: u64 = 64 << 10;

/// Says what is wrong in the client's own protocol.
pub(crate) async fn refuse_plain(mut stream: TcpStream, is_http2: bool) {
    let farewell = async {
        if is_http2 {
            stream.write_all(&SETTINGS).await?;
            // A client that has sent a request by then relates the reason to it; before, it would
            // drop the reason.
            sleep(REQUEST_TIME).await;
        }
        let answer = if is_http2 { goaway() } else { bad_request() };
        stream.write_all(&answer).await?;
        stream.shutdown().await?;
        // Closed with bytes unread, a connection is reset and the answer lost.
        tokio::io::copy(&mut stream.take(FAREWELL_BYTES), &mut tokio::io::sink()).await
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// Says that the port is full, as far as that goes into the socket at once: whoever is refused may
/// cost no task and no time.
pub(crate) fn refuse_full(stream: TcpStream) {
    // A new socket has room for so little.
    let _ = stream.try_write(&unavailable());
}

fn bad_request() -> Vec<u8> {
    response(
        "400 Bad Request",
        "",
        SPEAKS_TLS,
        "invalid_request_error",
        "plain_text",
    )
}

fn unavailable() -> Vec<u8> {
    let message = "too many connections are open: try again later, over fewer connections";
    response(
        "503 Service Unavailable",
        "\r\nretry-after: 1",
        message,
        "server_error",
        "too_many_connections",
    )
}

/// An answer of HTTP/1 after which the connection is closed.
fn response(status: &str, headers: &str, message: &str, kind: &str, code: &str) -> Vec<u8> {
    let kind = format!(r#""type":"{kind}","param":null,"code":"{code}""#);
    let body = format!(r#"{{"error":{{"message":"{message}",{kind}}}}}"#);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close{headers}"
    );
    format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// An HTTP/2 frame of settings, empty (RFC 9113, section 6.5).
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

/// An HTTP/2 frame that ends the connection with a reason (RFC 9113, section 6.8).
fn goaway() -> Vec<u8> {
    /// INADEQUATE_SECURITY.
    const REASON: u32 = 0xc;
    let mut bytes = vec![0, 0, 8 + SPEAKS_TLS.len() as u8, 7, 0, 0, 0, 0, 0];
    bytes.extend(0u32.to_be_bytes());
    bytes.extend(REASON.to_be_bytes());
    bytes.extend(SPEAKS_TLS.as_bytes());
    bytes
}
