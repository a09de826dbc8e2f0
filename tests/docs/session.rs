//! A reader at a terminal: a folder of his own, ports of his own, and the server that he started.

use std::collections::HashMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How documents call a build that they do not know.
const BUILT_BY_CARGO: &str = "cargo run --release -- ";
/// Default ports of a server, as documents name them.
const GRPC: &str = "127.0.0.1:50051";
const HTTP: &str = "127.0.0.1:8000";
/// Time in which a server loads the default model, in a debug build on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(300);
/// Time in which a server ends that has nothing to do.
const END_LIMIT: Duration = Duration::from_secs(20);

/// The folder of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Folders with Python packages that `cargo xtask test` installed, for `PYTHONPATH`; `None` where
/// it did not.
pub fn python_packages() -> Option<String> {
    let folder = |name| std::env::var(name).ok();
    let (openai, grpc) = (
        folder("PALIMPSEST_TEST_OPENAI")?,
        folder("PALIMPSEST_TEST_GRPC")?,
    );
    Some(format!("{openai}:{grpc}"))
}

/// Commands that are typed one after the other.
pub struct Session {
    folder: TempDir,
    /// Addresses of the documents, and where they are here.
    addresses: HashMap<String, String>,
    variables: HashMap<&'static str, String>,
    server: Option<Server>,
}

/// A server with all processes that its command started.
struct Server(Child);

impl Session {
    /// A folder that shows what the repository holds, so that commands may write beside it.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(repository()).expect("the repository") {
            let entry = entry.expect("an entry");
            let name = entry.file_name();
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                std::os::unix::fs::symlink(entry.path(), folder.path().join(name)).expect("a link");
            }
        }
        let mut session = Self {
            folder,
            addresses: HashMap::new(),
            variables: HashMap::new(),
            server: None,
        };
        let (grpc, http) = (session.address(GRPC), session.address(HTTP));
        session.set("PALIMPSEST_SERVER", format!("http://{grpc}"));
        session.set("PALIMPSEST_URL", format!("http://{http}"));
        session.set("PALIMPSEST_LISTEN", grpc);
        session.set("PALIMPSEST_HTTP", http);
        let program = Path::new(env!("CARGO_BIN_EXE_palimpsest"));
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = program.parent().expect("a folder").display();
        session.set("PATH", format!("{programs}:{path}"));
        if let Some(packages) = python_packages() {
            session.set("PYTHONPATH", packages);
        }
        session
    }

    /// Sets a variable of the environment of all later commands.
    pub fn set(&mut self, name: &'static str, value: String) {
        self.variables.insert(name, value);
    }

    /// Runs commands to their end.
    pub fn shell(&mut self, text: &str) -> Output {
        let text = self.here(text);
        let mut shell = self.command("sh");
        shell.args(["-euc", &text]);
        shell.output().expect("sh runs")
    }

    /// Runs a program of Python.
    pub fn python(&mut self, text: &str) -> Output {
        let text = self.here(text);
        let mut python = self.command("python3");
        python.args(["-c", &text]);
        python.output().expect("python3 runs")
    }

    /// Runs commands of which the last is a server, and waits until it serves. The server that ran
    /// before is ended.
    ///
    /// # Panics
    /// With what was printed, when it ends or does not serve in time.
    pub fn serve(&mut self, text: &str) {
        self.server = None;
        let text = self.here(text);
        let log = self.folder.path().join("server.log");
        let mut shell = self.command("sh");
        shell
            .args(["-euc", &text])
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a file"))
            .process_group(0);
        let mut server = Server(shell.spawn().expect("sh runs"));
        let started = Instant::now();
        loop {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            if said.lines().any(|line| line.starts_with("serving ")) {
                break;
            }
            let ended = server.0.try_wait().expect("a child").is_some();
            assert!(!ended && started.elapsed() < START_LIMIT, "{text}: {said}");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.server = Some(server);
    }

    /// The address here of one that a document names.
    pub fn address(&mut self, named: &str) -> String {
        let free = || {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            listener.local_addr().expect("an address").to_string()
        };
        self.addresses
            .entry(named.to_owned())
            .or_insert_with(free)
            .clone()
    }

    /// The text as it is typed here: with this build, and with ports that nobody else uses.
    fn here(&mut self, text: &str) -> String {
        let text = text.replace(BUILT_BY_CARGO, "palimpsest ");
        let mut parts = text.split("127.0.0.1:");
        let mut here = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let end = part
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(part.len());
            let (port, rest) = part.split_at(end);
            here.push_str(&self.address(&format!("127.0.0.1:{port}")));
            here.push_str(rest);
        }
        here
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }
}

impl Server {
    fn signal(&self, name: &str) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args([name, "--", &group]).status();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.signal("-TERM");
        let asked = Instant::now();
        while matches!(self.0.try_wait(), Ok(None)) && asked.elapsed() < END_LIMIT {
            std::thread::sleep(Duration::from_millis(20));
        }
        // Whatever is left of the group, too.
        self.signal("-KILL");
        let _ = self.0.wait();
    }
}
