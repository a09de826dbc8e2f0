//! A client that speaks HTTP byte by byte, and a service to speak with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use palimpsest_coordinator::Config;
use palimpsest_tests::service::{TestService, serve};
use palimpsest_tests::tiny_model;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// A response, whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Status and headers, in lower case.
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The objects of server-sent events, which end in `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data: Vec<&str> = self
            .body
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        let (last, events) = data.split_last().expect("events");
        assert_eq!(*last, "[DONE]");
        events
            .iter()
            .map(|event| serde_json::from_str(event).expect("an object"))
            .collect()
    }
}

/// HTTP/1.0, so that the body ends with the connection.
pub fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
    let mut stream = TcpStream::connect(address).expect("a connection");
    let head = format!(
        "{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a request");
    // A server may answer before it has read a body that is too long.
    let _ = stream.write_all(body);
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {text:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .expect("a status");
    Reply {
        status,
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

/// A service with one tiny model behind the HTTP API.
pub struct Http {
    pub service: TestService,
    pub address: SocketAddr,
}

impl Http {
    pub async fn start(config: Config) -> Self {
        let model = tiny_model(1);
        let service = serve(model.path(), None, 16 << 20, config).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let coordinator = service.coordinator.clone();
        tokio::spawn(async move {
            coordinator
                .serve_http(listener, std::future::pending())
                .await
        });
        Self { service, address }
    }

    pub async fn send(
        &self,
        method: &'static str,
        path: &'static str,
        headers: &'static str,
        body: Value,
    ) -> Reply {
        let address = self.address;
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        tokio::task::spawn_blocking(move || send(address, method, path, headers, &body))
            .await
            .expect("a reply")
    }

    /// Metrics in Prometheus' text format.
    pub async fn metrics(&self) -> Reply {
        self.send("GET", "/metrics", "", Value::Null).await
    }

    pub async fn post(&self, path: &'static str, body: Value) -> Reply {
        self.send("POST", path, "", body).await
    }
}

/// A question without a random part.
pub fn question() -> Value {
    json!({
        "model": "tiny", "messages": [{"role": "user", "content": "hello there"}],
        "max_tokens": 12, "temperature": 0, "ignore_eos": true,
    })
}

/// A body with further or other fields.
pub fn with(mut body: Value, extra: Value) -> Value {
    body.as_object_mut()
        .expect("an object")
        .extend(extra.as_object().expect("an object").clone());
    body
}
