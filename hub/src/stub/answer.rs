//! An answer, and how it goes wrong on its way.

use std::io::Write;
use std::net::TcpStream;

use super::request::Request;

/// How an answer goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after this many bytes of the body.
    BreakOff(usize),
    /// Some byte of the body is another.
    Lie,
    /// The body goes on beyond its end.
    Longer,
    /// Whole bodies to whoever asks for a part.
    WholeOnly,
    /// This status, with these seconds to wait where they are not 0.
    Status(u16, u64),
    /// A redirect to the same place.
    Loop,
}

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// 200, or the part that is asked for.
    pub(super) fn body(body: Vec<u8>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body,
        }
    }

    /// A status, and seconds to wait where they are not 0.
    pub(super) fn refusal(status: u16, wait: u64) -> Self {
        let headers = match wait {
            0 => Vec::new(),
            wait => vec![("retry-after", wait.to_string())],
        };
        Self {
            status,
            headers,
            body: b"refused".to_vec(),
        }
    }

    /// A refusal that says why in the hub's own header.
    pub(super) fn coded(status: u16, code: &str) -> Self {
        Self {
            status,
            headers: vec![("x-error-code", code.to_owned())],
            body: Vec::new(),
        }
    }

    /// What a hub says of a repository that is not there or not for who asks: strangers might
    /// have forgotten their token.
    pub(super) fn unknown(has_token: bool) -> Self {
        if has_token {
            Self::coded(404, "RepoNotFound")
        } else {
            Self::refusal(401, 0)
        }
    }

    /// 404.
    pub(super) fn missing() -> Self {
        Self::refusal(404, 0)
    }

    /// To another place.
    pub(super) fn redirect(to: &str) -> Self {
        Self {
            status: 302,
            headers: vec![("location", to.to_owned())],
            body: Vec::new(),
        }
    }

    /// Writes it and ends the connection. Whoever does not listen any more has what it wants.
    pub(super) fn write(mut self, mut stream: &TcpStream, request: &Request, fault: Option<Fault>) {
        let whole = self.body.len();
        let is_part = self.status == 200 && fault != Some(Fault::WholeOnly);
        if let Some(from) = request.from.filter(|_| is_part) {
            let from = usize::try_from(from).map_or(whole, |from| from.min(whole));
            self.status = 206;
            let range = format!("bytes {from}-{}/{whole}", whole.saturating_sub(1));
            self.headers.push(("content-range", range));
            self.body.drain(..from);
        }
        match fault {
            Some(Fault::Lie) => {
                if let Some(last) = self.body.last_mut() {
                    *last ^= 1;
                }
            }
            Some(Fault::Longer) => self.body.extend(b"and more"),
            _ => {}
        }
        let mut head = format!("HTTP/1.1 {} as asked\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        head.push_str("connection: close\r\n\r\n");
        if let Some(Fault::BreakOff(after)) = fault {
            self.body.truncate(after);
        }
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&self.body);
    }
}
