//! An object store on loopback that is not ours, and somebody between it and its clients who can
//! spoil what they say to each other.
//!
//! The store is moto, an implementation of S3 in Python. `PALIMPSEST_TEST_MOTO` is a directory with
//! moto, as `cargo xtask test` installs it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time until a store listens.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a request or an answer that are read at once.
const PIECE: usize = 64 << 10;
/// Objects on a page of a listing, of which S3 itself has 1,000.
pub const PAGE: usize = 5;

/// A store that ends with this.
#[derive(Debug)]
pub struct ObjectStore {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

impl ObjectStore {
    /// An empty S3. `None`, and said so, where moto is not installed.
    ///
    /// # Panics
    /// When it does not start.
    pub fn s3() -> Option<Self> {
        let packages = installed("PALIMPSEST_TEST_MOTO")?;
        let address = free_address();
        let mut command = Command::new("python3");
        command
            .args(["-c", "from moto.server import main; main()"])
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .env("PYTHONPATH", packages)
            .env("MOTO_S3_DEFAULT_MAX_KEYS", PAGE.to_string());
        Some(Self::start(command, address))
    }

    fn start(mut command: Command, address: SocketAddr) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("the program runs");
        let store = Self { child, address };
        let deadline = Instant::now() + START_LIMIT;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the object store does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        store
    }

    /// Makes a bucket of S3.
    ///
    /// # Panics
    /// When it is refused.
    pub fn make_bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(self.address).expect("it listens");
        let head = format!(
            "PUT /{name} HTTP/1.1\r\nhost: {}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            self.address
        );
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("text");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn installed(variable: &str) -> Option<std::ffi::OsString> {
    let found = std::env::var_os(variable);
    if found.is_none() {
        eprintln!("SKIPPED: {variable} is not set");
    }
    found
}

/// An address of this machine that was free a moment ago.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// What comes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It reaches the store, and its answer the client.
    Through,
    /// It is answered at once with this status and this code of S3.
    Refused {
        /// Such as 500.
        status: u16,
        /// Such as `InternalError`.
        code: &'static str,
    },
    /// It is never answered.
    Silence,
    /// Half of it reaches the store, and the connection ends.
    CutRequest,
    /// Half of its answer reaches the client, and the connection ends.
    CutAnswer,
}

/// Between a store and its clients.
#[derive(Debug, Clone)]
pub struct Between {
    /// Where clients reach it.
    pub address: SocketAddr,
    rule: Arc<Mutex<Rule>>,
}

/// What comes of which requests.
#[derive(Debug)]
struct Rule {
    way: Way,
    /// Those whose first line begins like this; the others go through.
    line: &'static str,
    /// How many there were of them.
    requests: usize,
}

impl Rule {
    const fn of(way: Way, line: &'static str) -> Self {
        Self {
            way,
            line,
            requests: 0,
        }
    }
}

impl Between {
    /// Stands before the store at `store`. Its threads end with the process.
    ///
    /// # Panics
    /// When there is no port.
    pub fn before(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let between = Self {
            address: listener.local_addr().expect("an address"),
            rule: Arc::new(Mutex::new(Rule::of(Way::Through, ""))),
        };
        let own = between.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let own = own.clone();
                // A connection that breaks is what is tried here.
                std::thread::spawn(move || own.serve(client, store).ok());
            }
        });
        between
    }

    /// Changes what comes of requests from now on.
    pub fn set(&self, way: Way) {
        self.set_for("", way);
    }

    /// Changes what comes of requests whose first line begins with `line`, such as `PUT`. All
    /// others go through.
    pub fn set_for(&self, line: &'static str, way: Way) {
        *self.rule() = Rule::of(way, line);
    }

    /// Requests of the present rule.
    pub fn requests(&self) -> usize {
        self.rule().requests
    }

    fn rule(&self) -> MutexGuard<'_, Rule> {
        self.rule.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn way_of(&self, request: &[u8]) -> Way {
        let mut rule = self.rule();
        if !request.starts_with(rule.line.as_bytes()) {
            return Way::Through;
        }
        rule.requests += 1;
        rule.way
    }

    /// Serves one request: a client connects anew for the next one.
    fn serve(&self, mut client: TcpStream, store: SocketAddr) -> std::io::Result<()> {
        let Some(request) = read_request(&mut client)? else {
            return Ok(());
        };
        match self.way_of(&request) {
            Way::Through => {
                client.write_all(&exchange(store, &request)?)?;
            }
            Way::Refused { status, code } => {
                let body = format!(
                    "<?xml version=\"1.0\"?><Error><Code>{code}</Code>\
                     <StringToSign>a-secret-of-the-store</StringToSign></Error>"
                );
                let head = format!(
                    "HTTP/1.1 {status} Refused\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                client.write_all(head.as_bytes())?;
                client.write_all(body.as_bytes())?;
            }
            Way::Silence => {
                // Until the client has lost its patience.
                let _ = client.read(&mut [0; 1])?;
            }
            Way::CutRequest => {
                let mut stream = TcpStream::connect(store)?;
                stream.write_all(&request[..request.len() / 2])?;
                stream.shutdown(Shutdown::Both)?;
            }
            Way::CutAnswer => {
                let answer = exchange(store, &request)?;
                client.write_all(&answer[..answer.len() / 2])?;
            }
        }
        client.shutdown(Shutdown::Both)
    }
}

/// The store's whole answer.
fn exchange(store: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(store)?;
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// A whole request, which asks for no second one on its connection; `None` at the end.
fn read_request(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = [0; PIECE];
    let (head, body) = loop {
        let count = client.read(&mut piece)?;
        if count == 0 {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece[..count]);
        if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).into_owned();
            break (head, bytes.split_off(at + 4));
        }
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse().ok())?
    });
    let mut body = body;
    while body.len() < length.unwrap_or(0) {
        let count = client.read(&mut piece)?;
        if count == 0 {
            return Ok(None);
        }
        body.extend_from_slice(&piece[..count]);
    }
    let mut request = format!("{head}\r\nconnection: close\r\n\r\n").into_bytes();
    request.extend(body);
    Ok(Some(request))
}
