//! The pods of an overlay as processes of this machine: the commands, variables, ports and probes
//! that the manifests have, each pod with a loopback address of its own. What a cluster would give
//! them is put in by text: addresses for the names of services and pods, directories for volumes.
//! Restarts, preStop hooks, resource limits and how etcd ends are left to a cluster.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::commands::{PodFacts, Program, environment, expand, is_ours};
use super::manifests::{Manifests, Pods, labels, list, text};
use super::pods::DRAIN;
use super::secrets::{Authority, KEY};
use crate::crates;
use crate::process::output;

/// Below the target directory; made anew each time.
const SCRATCH: &str = "deploy-check/run";
/// Longest wait for a probe to succeed, whatever the manifest allows.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two attempts of a probe.
const PAUSE: Duration = Duration::from_millis(10);

/// A container that runs.
struct Running<'a> {
    pod: PodFacts,
    container: &'a Value,
    /// Seconds that the pod says it takes to end.
    drain: Duration,
    log: PathBuf,
    started: Instant,
    child: Child,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts all pods of an overlay at once, as a cluster would, waits for their probes, asks for a
/// completion through the coordinator's port, and ends them. `model` is what the volume of models
/// holds.
///
/// # Errors
/// What does not start, answer or end as the manifests say, with the end of its log.
pub fn overlay(name: &str, manifests: &Manifests, program: &Program, model: &Path) -> Result<()> {
    let started = Instant::now();
    let scratch = crates::target_directory()?.join(SCRATCH).join(name);
    if scratch.exists() {
        fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot empty {}", scratch.display()))?;
    }
    let pods = manifests.pods();
    let instances: Vec<(PodFacts, &Pods)> = instances(manifests, &pods);
    let hosts = hosts(manifests, &instances);
    let authority = Authority::new()?;
    let mut running = Vec::new();
    for (pod, pods) in &instances {
        for (_, container) in pods.containers() {
            let directory = scratch.join(&pod.name);
            let site = Site {
                manifests,
                hosts: &hosts,
                program,
                model,
                authority: &authority,
                directory,
            };
            let mut process = site.start(pod, pods, container)?;
            if is_coordinator(container) {
                // Alone as yet: it answers without ranks and without a registry.
                process.await_probe("livenessProbe", program)?;
                process.say_since_start("answers");
            }
            running.push(process);
        }
    }
    for process in running
        .iter_mut()
        .filter(|process| is_coordinator(process.container))
    {
        process.await_probe("readinessProbe", program)?;
        process.say_since_start("is ready, with registry and ranks that started beside it,");
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        for process in &mut running {
            process.await_probe(probe, program)?;
        }
    }
    complete(manifests, &running)?;
    let count = running.len();
    // Clients first: a coordinator that ends tells nobody any more, a registry that is gone is
    // missed.
    for tier in [is_coordinator, is_ours] {
        let (ending, rest): (Vec<_>, Vec<_>) = running
            .into_iter()
            .partition(|process| tier(process.container));
        running = rest;
        end(ending)?;
    }
    println!(
        "    {name}: {count} processes started, probed, asked and ended, {:.1} s",
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn is_coordinator(container: &Value) -> bool {
    is_ours(container) && container["args"][0] == "coordinator"
}

/// Every pod there would be, with a name and an address.
fn instances<'a, 'm>(manifests: &Manifests, pods: &'a [Pods<'m>]) -> Vec<(PodFacts, &'a Pods<'m>)> {
    let mut instances = Vec::new();
    for pods in pods {
        let (kind, name) = pods.owner.split_once('/').unwrap_or_default();
        let (name, index) = name
            .trim_end_matches(']')
            .split_once('[')
            .unwrap_or((name, "0"));
        let count = match kind {
            "StatefulSet" => manifests
                .find(kind, name)
                .and_then(|set| set["spec"]["replicas"].as_u64())
                .unwrap_or(1),
            _ => 1,
        };
        for number in 0..count {
            let name = if kind == "LeaderWorkerSet" && index != "0" {
                format!("{name}-0-{index}")
            } else {
                format!("{name}-{number}")
            };
            let ip = format!("127.0.77.{}", instances.len() + 1);
            instances.push((
                PodFacts {
                    name,
                    ip,
                    index: index.to_owned(),
                },
                pods,
            ));
        }
    }
    instances
}

/// Addresses of the names that a cluster's DNS would know: `pod.service` and `service`, which is
/// its first pod here. The longest name first, so that no name is taken for the end of another.
fn hosts(manifests: &Manifests, instances: &[(PodFacts, &Pods)]) -> Vec<(String, String)> {
    let mut hosts = Vec::new();
    for (service, object) in manifests.of_kind("Service") {
        let selector = labels(&object["spec"]["selector"]);
        let selected: Vec<_> = instances
            .iter()
            .filter(|(_, pods)| pods.match_selector(&selector))
            .collect();
        hosts.extend(
            selected
                .iter()
                .map(|(pod, _)| (format!("{}.{service}", pod.name), pod.ip.clone())),
        );
        hosts.extend(
            selected
                .first()
                .map(|(pod, _)| (service.to_owned(), pod.ip.clone())),
        );
    }
    hosts.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    hosts
}

/// What stands around a container.
struct Site<'a> {
    manifests: &'a Manifests,
    hosts: &'a [(String, String)],
    program: &'a Program,
    model: &'a Path,
    authority: &'a Authority,
    directory: PathBuf,
}

impl Site<'_> {
    fn start<'c>(&self, pod: &PodFacts, pods: &Pods, container: &'c Value) -> Result<Running<'c>> {
        let mounts = self.mounts(&pod.ip, pods, container)?;
        let given = environment(self.manifests, container, pod);
        let local = |value: &str| self.localised(value, pod, &mounts);
        let env: BTreeMap<&str, String> = given
            .iter()
            .map(|(name, value)| (name.as_str(), local(value)))
            .collect();
        let args = list(&container["args"])
            .iter()
            .map(|arg| expand(text(arg), &given).map(|arg| local(&arg)));
        let args: Vec<String> = args
            .collect::<Result<_, _>>()
            .map_err(|name| anyhow::anyhow!("{}: $({name}) is not set", pod.name))?;
        let mut command = match text(&container["command"][0]) {
            "" => Command::new(self.program.path()),
            other => Command::new(other),
        };
        let log = self.directory.join("log");
        let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .args(&args)
            .env_clear()
            .env("PATH", path)
            .envs(&env)
            .stdin(Stdio::null());
        command.stdout(file.try_clone()?).stderr(file);
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("{}: cannot start {command:?}", pod.name))?;
        let drain = pods
            .annotations
            .get(DRAIN)
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or_default();
        Ok(Running {
            pod: pod.clone(),
            container,
            drain: Duration::from_secs(drain),
            log,
            started,
            child,
        })
    }

    /// Directories for the volumes of a container, by where it mounts them.
    fn mounts(&self, ip: &str, pods: &Pods, container: &Value) -> Result<Vec<(String, String)>> {
        fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        let mut mounts = Vec::new();
        for mount in list(&container["volumeMounts"]) {
            let (name, path) = (text(&mount["name"]), text(&mount["mountPath"]));
            // Of the machine itself.
            if path.starts_with("/dev/") {
                continue;
            }
            let directory = self.directory.join(name);
            fs::create_dir_all(&directory)?;
            let volume = list(&pods.spec["volumes"])
                .iter()
                .find(|volume| volume["name"] == name);
            // Secrets come from outside the manifests, and so do models.
            let secret = volume.and_then(|volume| volume["secret"]["secretName"].as_str());
            if let Some(secret) = secret {
                self.authority.write(secret, ip, &directory)?;
            } else if volume.is_some_and(|volume| !volume["persistentVolumeClaim"].is_null()) {
                std::os::unix::fs::symlink(self.model, directory.join("model.gguf"))?;
            }
            mounts.push((path.to_owned(), directory.display().to_string()));
        }
        Ok(mounts)
    }

    /// An argument or a variable with addresses and directories of this machine.
    fn localised(&self, value: &str, pod: &PodFacts, mounts: &[(String, String)]) -> String {
        let mut value = value.replace("0.0.0.0:", &format!("{}:", pod.ip));
        for (name, ip) in self.hosts {
            value = value.replace(&format!("//{name}:"), &format!("//{ip}:"));
        }
        for (path, directory) in mounts {
            value = value.replace(&format!("={path}/"), &format!("={directory}/"));
            // A variable that names the directory itself.
            if value == *path {
                value = directory.clone();
            }
        }
        value
    }
}

impl Running<'_> {
    /// Waits until a probe succeeds, as long as the manifest allows.
    fn await_probe(&mut self, name: &str, program: &Program) -> Result<()> {
        let probe = &self.container[name];
        let number = |field: &str, default| probe[field].as_u64().unwrap_or(default);
        let allowed =
            Duration::from_secs(number("periodSeconds", 10) * number("failureThreshold", 3));
        // What a process must have reached before these probes are asked is another process' doing.
        let limit = if name == "startupProbe" {
            allowed.min(LIMIT)
        } else {
            LIMIT
        };
        let since = Instant::now();
        loop {
            let answer = self.ask(probe, program);
            let Err(why) = answer else { return Ok(()) };
            let ended = self.child.try_wait()?;
            ensure!(
                ended.is_none(),
                "{}: ended: {ended:?}\n{}",
                self.pod.name,
                self.tail()
            );
            let waited = since.elapsed();
            ensure!(
                waited < limit,
                "{}: {name} fails after {waited:.0?}: {why:#}\n{}",
                self.pod.name,
                self.tail()
            );
            std::thread::sleep(PAUSE);
        }
    }

    fn say_since_start(&self, what: &str) {
        println!(
            "    {} {what} {:.3} s after its start",
            self.pod.name,
            self.started.elapsed().as_secs_f64()
        );
    }

    fn ask(&self, probe: &Value, program: &Program) -> Result<()> {
        if let Some(grpc) = probe["grpc"].as_object() {
            let port = self.port(&grpc["port"])?;
            let service = grpc.get("service").map_or("", text);
            let mut ask = Command::new(program.path());
            ask.args([
                "health",
                &format!("http://{}:{port}", self.pod.ip),
                "--service",
                service,
            ])
            .env_clear();
            let answer = ask.output().context("cannot start the program")?;
            ensure!(
                answer.status.success(),
                "{}",
                String::from_utf8_lossy(&answer.stderr).trim()
            );
            return Ok(());
        }
        let http = &probe["httpGet"];
        let port = self.port(&http["port"])?;
        let status = |path: &str| -> Result<String> {
            let answer = self.http(port, &format!("GET {path} HTTP/1.0\r\n\r\n"))?;
            Ok(answer
                .split_whitespace()
                .nth(1)
                .unwrap_or("no status")
                .to_owned())
        };
        let found = match status(text(&http["path"]))? {
            // Debian's etcd is older than that of the image and has one answer to all three probes.
            missing if missing == "404" && !is_ours(self.container) => status("/health")?,
            found => found,
        };
        ensure!(found == "200", "{found}");
        Ok(())
    }

    /// The number of a port that is given by name or number.
    fn port(&self, port: &Value) -> Result<u64> {
        let named = || {
            list(&self.container["ports"])
                .iter()
                .find(|declared| declared["name"] == *port)
        };
        let number = port.as_u64().or_else(|| named()?["containerPort"].as_u64());
        number.with_context(|| format!("{}: no port {port}", self.pod.name))
    }

    fn http(&self, port: u64, request: &str) -> Result<String> {
        let mut stream = TcpStream::connect(format!("{}:{port}", self.pod.ip))?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The CA of the certificate that clients see; the file is there when they see one.
    fn ca(&self) -> PathBuf {
        self.log.with_file_name("tls").join("ca.crt")
    }

    /// Asks for a completion, over TLS where the coordinator has a certificate.
    fn post(&self, port: u64, key: Option<&str>, body: &str) -> Result<String> {
        let authorization = key.map(|key| format!("authorization: Bearer {key}"));
        if !self.ca().exists() {
            let header = authorization.map_or(String::new(), |header| header + "\r\n");
            let head = format!(
                "POST /v1/completions HTTP/1.0\r\n{header}content-length: {}",
                body.len()
            );
            return self.http(port, &format!("{head}\r\n\r\n{body}"));
        }
        let mut curl = Command::new("curl");
        curl.args([
            "--silent",
            "--show-error",
            "--include",
            "--data",
            body,
            "--cacert",
        ])
        .arg(self.ca());
        curl.args(authorization.iter().flat_map(|header| ["--header", header]));
        output(curl.arg(format!("https://{}:{port}/v1/completions", self.pod.ip)))
    }

    /// The last lines of the log.
    fn tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Asks for a completion at the port that the coordinator's Service leads to.
fn complete(manifests: &Manifests, running: &[Running]) -> Result<()> {
    let coordinator = running
        .iter()
        .find(|process| is_coordinator(process.container))
        .context("no coordinator")?;
    let service = manifests
        .find("Service", "palimpsest")
        .context("there is no Service/palimpsest")?;
    let ports = list(&service["spec"]["ports"]);
    let port = ports
        .iter()
        .find(|port| port["name"] == "http")
        .context("Service/palimpsest has no port http")?;
    let port = coordinator.port(&port["targetPort"])?;
    let body = r#"{"prompt": "Once upon a time", "max_tokens": 4}"#;
    let answer = coordinator.post(port, Some(KEY), body)?;
    ensure!(
        answer.contains(" 200 ") && answer.contains("\"text\""),
        "a completion: {answer}\n{}",
        coordinator.tail()
    );
    let answer = coordinator.post(port, None, "{}")?;
    ensure!(
        answer.contains(" 401 "),
        "a request without a key: {answer}"
    );
    if coordinator.ca().exists() {
        // It may be told so, or find the connection closed.
        let answer = coordinator
            .http(port, "GET /health HTTP/1.0\r\n\r\n")
            .unwrap_or_default();
        ensure!(
            !answer.contains(" 200 "),
            "plain text at a port with TLS: {answer}"
        );
    }
    Ok(())
}

/// SIGTERM for all of them: they must end well, within the time that their pods are given.
fn end(mut ending: Vec<Running>) -> Result<()> {
    for process in &ending {
        let pid = process.child.id().to_string();
        ensure!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()?
                .success(),
            "{}: is gone",
            process.pod.name
        );
    }
    for process in &mut ending {
        let since = Instant::now();
        let status: ExitStatus = loop {
            if let Some(status) = process.child.try_wait()? {
                break status;
            }
            let limit = process.drain;
            ensure!(
                since.elapsed() < limit,
                "{}: runs on {limit:?} after SIGTERM\n{}",
                process.pod.name,
                process.tail()
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(
            status.success(),
            "{}: {status} after SIGTERM\n{}",
            process.pod.name,
            process.tail()
        );
    }
    Ok(())
}
