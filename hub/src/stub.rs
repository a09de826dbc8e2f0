//! A hub on loopback, for tests: it serves small repositories in Hugging Face's interface, and on
//! request it breaks off, lies and refuses as the real one may.
//!
//! ```text
//! /api/models/O/N/revision/R    the list of files           ─┐ the hub, which may see the token
//! /O/N/resolve/COMMIT/PATH      a small file, or a redirect ─┘
//! /cdn/…                        a large file, at another port: another host
//! ```

mod answer;
mod request;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use self::answer::Answer;
pub use self::answer::Fault;
use self::request::Request;

/// The commit of each repository.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A hub on loopback, until the process ends.
#[derive(Debug, Clone)]
pub struct Stub {
    hub: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

/// A repository.
#[derive(Debug, Clone, Default)]
pub struct Repository {
    files: BTreeMap<String, StubFile>,
    door: Door,
}

/// Whom a repository lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Door {
    /// Everybody.
    #[default]
    Open,
    /// Whoever has this token; others are told that there is nothing.
    Private(&'static str),
    /// Whoever has this token; others see the list of files and no file.
    Gated(&'static str),
}

#[derive(Debug, Clone)]
struct StubFile {
    bytes: Vec<u8>,
    /// Whether it lies elsewhere, as large files do.
    is_large: bool,
    /// Size in the list of files, if not the true one.
    claimed: Option<u64>,
}

/// A fault of the answers to a path.
#[derive(Debug)]
struct Planned {
    /// What the path contains.
    within: String,
    fault: Fault,
    /// How often yet.
    times: usize,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Path with its query.
    pub path: String,
    /// First byte that was asked for, if not the whole.
    pub from: Option<u64>,
    /// The token that was shown.
    pub token: Option<String>,
}

#[derive(Debug, Default)]
struct Shelf {
    repositories: BTreeMap<String, Repository>,
    faults: Vec<Planned>,
    seen: Vec<Seen>,
    cdn: String,
}

impl Repository {
    /// One with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a small file, which the hub has itself.
    #[must_use]
    pub fn small(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(path, bytes.into(), false)
    }

    /// With a large file, which lies elsewhere.
    #[must_use]
    pub fn large(self, path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(path, bytes.into(), true)
    }

    /// With a file that claims a size.
    #[must_use]
    pub fn claiming(self, path: &str, size: u64) -> Self {
        let mut repository = self.with(path, b"small".to_vec(), true);
        if let Some(file) = repository.files.get_mut(path) {
            file.claimed = Some(size);
        }
        repository
    }

    /// For some only.
    #[must_use]
    pub fn behind(self, door: Door) -> Self {
        Self { door, ..self }
    }

    fn with(mut self, path: &str, bytes: Vec<u8>, is_large: bool) -> Self {
        let claimed = None;
        let file = StubFile {
            bytes,
            is_large,
            claimed,
        };
        self.files.insert(path.to_owned(), file);
        self
    }
}

impl Stub {
    /// Starts it with repositories by their names.
    ///
    /// # Panics
    /// When there is no port.
    pub fn start(repositories: impl IntoIterator<Item = (&'static str, Repository)>) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").expect("a port");
        let cdn = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let named = repositories.into_iter();
        let shelf = Shelf {
            repositories: named.map(|(name, it)| (name.to_owned(), it)).collect(),
            cdn: format!("http://{}", address(&cdn)),
            ..Shelf::default()
        };
        let stub = Self {
            hub: address(&hub),
            shelf: Arc::new(Mutex::new(shelf)),
        };
        for listener in [hub, cdn] {
            let stub = stub.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let stub = stub.clone();
                    thread::spawn(move || stub.serve(&stream));
                }
            });
        }
        stub
    }

    /// What `HF_ENDPOINT` is to be.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Lets the next `times` answers to paths that contain `within` go wrong.
    pub fn plan(&self, within: &str, fault: Fault, times: usize) {
        self.shelf().faults.push(Planned {
            within: within.to_owned(),
            fault,
            times,
        });
    }

    /// Requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.shelf().seen)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the one request of a connection.
    fn serve(&self, stream: &TcpStream) {
        let Some(request) = Request::read(stream) else {
            return;
        };
        let (answer, fault) = {
            let mut shelf = self.shelf();
            shelf.seen.push(Seen {
                path: request.path.clone(),
                from: request.from,
                token: request.token.clone(),
            });
            let fault = shelf.fault_of(&request.path);
            (shelf.answer(&request, fault), fault)
        };
        answer.write(stream, &request, fault);
    }
}

impl Shelf {
    fn fault_of(&mut self, path: &str) -> Option<Fault> {
        let is_due = |plan: &&mut Planned| plan.times > 0 && path.contains(&plan.within);
        let planned = self.faults.iter_mut().find(is_due)?;
        planned.times -= 1;
        Some(planned.fault)
    }

    fn answer(&self, request: &Request, fault: Option<Fault>) -> Answer {
        match fault {
            Some(Fault::Status(status, wait)) => return Answer::refusal(status, wait),
            Some(Fault::Loop) => return Answer::redirect(&request.path),
            _ => {}
        }
        let path = request.path.split('?').next().unwrap_or_default();
        if path == "/api/models" {
            return self.names();
        }
        if let Some(rest) = path.strip_prefix("/cdn/") {
            return self.file(rest).map_or_else(Answer::missing, Answer::body);
        }
        if let Some(rest) = path.strip_prefix("/api/models/") {
            return self.listing(rest, request);
        }
        self.resolve(path.trim_start_matches('/'), request)
    }

    fn names(&self) -> Answer {
        let ids = self.repositories.keys();
        let ids: Vec<_> = ids.map(|id| serde_json::json!({ "id": id })).collect();
        Answer::body(serde_json::Value::from(ids).to_string().into_bytes())
    }

    /// `O/N/revision/R`.
    fn listing(&self, rest: &str, request: &Request) -> Answer {
        let Some((name, revision)) = rest.split_once("/revision/") else {
            return Answer::missing();
        };
        let Some(repository) = self.repositories.get(name) else {
            return Answer::unknown(request.token.is_some());
        };
        if let Door::Private(token) = repository.door
            && request.token.as_deref() != Some(token)
        {
            return Answer::unknown(request.token.is_some());
        }
        if !["main", COMMIT, "v1", "refs%2Fpr%2F1"].contains(&revision) {
            return Answer::coded(404, "RevisionNotFound");
        }
        let files: Vec<_> = repository.files.iter().map(StubFile::entry).collect();
        let listing = serde_json::json!({ "id": name, "sha": COMMIT, "siblings": files });
        Answer::body(listing.to_string().into_bytes())
    }

    /// `O/N/resolve/COMMIT/PATH`.
    fn resolve(&self, path: &str, request: &Request) -> Answer {
        let parts = path.split_once(&format!("/resolve/{COMMIT}/"));
        let found = parts.and_then(|(name, file)| {
            let repository = self.repositories.get(name)?;
            Some((repository, repository.files.get(file)?))
        });
        let Some((repository, file)) = found else {
            return Answer::coded(404, "EntryNotFound");
        };
        if let Door::Gated(token) = repository.door
            && request.token.as_deref() != Some(token)
        {
            let status = if request.token.is_some() { 403 } else { 401 };
            return Answer::coded(status, "GatedRepo");
        }
        if file.is_large {
            return Answer::redirect(&format!("{}/cdn/{path}?signature=secret", self.cdn));
        }
        Answer::body(file.bytes.clone())
    }

    fn file(&self, path: &str) -> Option<Vec<u8>> {
        let (name, file) = path.split_once(&format!("/resolve/{COMMIT}/"))?;
        Some(self.repositories.get(name)?.files.get(file)?.bytes.clone())
    }
}

impl StubFile {
    fn entry((path, file): (&String, &Self)) -> serde_json::Value {
        let size = file.claimed.unwrap_or(file.bytes.len() as u64);
        let mut entry = serde_json::json!({ "rfilename": path, "size": size });
        if file.is_large {
            entry["lfs"] = serde_json::json!({ "sha256": sha256(&file.bytes), "size": size });
        }
        entry["blobId"] = git(&file.bytes).into();
        entry
    }
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Git's name of a file's content.
pub fn git(bytes: &[u8]) -> String {
    let head = format!("blob {}\0", bytes.len());
    format!(
        "{:x}",
        Sha1::new()
            .chain_update(head)
            .chain_update(bytes)
            .finalize()
    )
}
