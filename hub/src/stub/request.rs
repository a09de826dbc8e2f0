//! A request, as far as the stub looks at it.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;

/// A GET request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// Path with its query.
    pub(super) path: String,
    /// First byte that is asked for, if not the whole.
    pub(super) from: Option<u64>,
    /// The token that is shown.
    pub(super) token: Option<String>,
}

impl Request {
    /// Reads the head; `None` where none comes.
    pub(super) fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next()?.ok()?;
        let path = first.split(' ').nth(1)?.to_owned();
        let mut request = Self {
            path,
            from: None,
            token: None,
        };
        for line in lines {
            let line = line.ok()?;
            if line.is_empty() {
                return Some(request);
            }
            let (name, value) = line.split_once(": ")?;
            match name.to_lowercase().as_str() {
                "range" => {
                    let from = value.strip_prefix("bytes=")?.strip_suffix('-')?;
                    request.from = from.parse().ok();
                }
                "authorization" => {
                    request.token = value.strip_prefix("Bearer ").map(str::to_owned);
                }
                _ => {}
            }
        }
        None
    }
}
