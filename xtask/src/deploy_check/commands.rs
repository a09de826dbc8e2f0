//! The command lines in the manifests, against the program that they start and against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use super::manifests::{Manifests, list, text};
use crate::crates;
use crate::process::{cargo_with, run};
use crate::test::CLUSTER;

/// Commands that the manifests start.
const COMMANDS: [&str; 2] = ["coordinator", "worker"];
/// Name of our images, without registry and tag.
const IMAGE: &str = "palimpsest";
/// Names another binary than the debug build.
const BINARY: &str = "PALIMPSEST_BIN";
/// Of variables that are flags.
const PREFIX: &str = "PALIMPSEST_";
/// Addresses that a process listens on.
const LISTENING: [&str; 3] = ["listen", "http", "health"];
/// What LeaderWorkerSet adds to every container.
const INJECTED: [(&str, &str); 3] = [
    ("LWS_LEADER_ADDRESS", "worker-0.worker"),
    ("LWS_GROUP_SIZE", "2"),
    ("LWS_WORKER_INDEX", "0"),
];

/// A built binary.
#[derive(Debug)]
pub struct Program(PathBuf);

/// What only a cluster knows of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodFacts {
    pub name: String,
    pub ip: String,
    /// Place in its LeaderWorkerSet's group.
    pub index: String,
}

/// A container of ours, as the kubelet would start it.
#[derive(Debug)]
struct Process {
    name: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    ports: Vec<u64>,
}

impl Default for PodFacts {
    /// An example.
    fn default() -> Self {
        Self {
            name: "example".into(),
            ip: "10.0.0.1".into(),
            index: "0".into(),
        }
    }
}

impl Program {
    /// The debug build with clusters, made anew, or what `PALIMPSEST_BIN` names.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn find() -> Result<Self> {
        if let Some(path) = std::env::var_os(BINARY) {
            return Ok(Self(path.into()));
        }
        // The features of the test run, which then builds nothing again.
        run(
            cargo_with(&["build", "--workspace", "--locked", "--bin", "palimpsest"]).args(CLUSTER),
        )?;
        Ok(Self(crates::target_directory()?.join("debug/palimpsest")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Command lines that the program does not understand. `--help` at their end makes it parse
    /// what stands before it and start nothing; it does not ask for what is missing.
    pub fn problems(&self, manifests: &Manifests) -> Vec<String> {
        let (processes, mut problems) = processes(manifests);
        for process in &processes {
            let command = process.args.first().map_or("", String::as_str);
            if !COMMANDS.contains(&command) {
                problems.push(format!(
                    "{}: starts `{command}`, which this check does not know",
                    process.name
                ));
            }
            let mut parse = Command::new(&self.0);
            let answer = parse
                .args(&process.args)
                .arg("--help")
                .env_clear()
                .envs(&process.env)
                .output();
            match answer {
                Ok(answer) if answer.status.success() => {
                    let help = String::from_utf8_lossy(&answer.stdout);
                    let unknown = process.unknown_variables(&help);
                    problems.extend(
                        unknown.map(|name| format!("{}: no flag reads {name}", process.name)),
                    );
                }
                Ok(answer) => {
                    let said = String::from_utf8_lossy(&answer.stderr);
                    problems.push(format!(
                        "{}: {}",
                        process.name,
                        said.lines().next().unwrap_or("no answer")
                    ));
                }
                Err(error) => problems.push(format!("{}: {error}", process.name)),
            }
        }
        problems
    }
}

/// Flags that must agree: group, registry and number of ranks of all processes, the size of the
/// LeaderWorkerSet, and ports.
pub fn group_problems(manifests: &Manifests) -> Vec<String> {
    // `processes` has already complained elsewhere about what it cannot expand.
    let (processes, mut problems) = (processes(manifests).0, Vec::new());
    for flag in ["group", "tp", "etcd"] {
        let values: BTreeSet<Option<&str>> =
            processes.iter().map(|process| process.flag(flag)).collect();
        if values.len() > 1 || values.contains(&None) {
            problems.push(format!("--{flag} differs or is missing: {values:?}"));
        }
    }
    for (name, set) in manifests.of_kind("LeaderWorkerSet") {
        let size = set["spec"]["leaderWorkerTemplate"]["size"]
            .as_u64()
            .unwrap_or(1)
            .to_string();
        let other = processes
            .iter()
            .filter(|process| process.flag("tp").is_some_and(|tp| tp != size));
        problems.extend(
            other.map(|process| format!("{}: --tp is not the size {size} of {name}", process.name)),
        );
    }
    for process in &processes {
        let listening: BTreeSet<u64> = LISTENING
            .iter()
            .filter_map(|flag| port_of(process.flag(flag)?))
            .collect();
        let declared: BTreeSet<u64> = process.ports.iter().copied().collect();
        if listening != declared {
            problems.push(format!(
                "{}: listens on {listening:?} and declares {declared:?}",
                process.name
            ));
        }
        let Some((_, etcd)) = process.flag("etcd").and_then(|url| url.split_once("://")) else {
            continue;
        };
        let (host, port) = etcd.split_once(':').unwrap_or((etcd, "80"));
        let number = port.parse::<u64>().ok();
        let service = manifests
            .find("Service", host)
            .map_or(&Value::Null, |service| &service["spec"]["ports"]);
        if !list(service)
            .iter()
            .any(|known| number.is_some() && known["port"].as_u64() == number)
        {
            problems.push(format!(
                "{}: there is no Service/{host} with port {port}",
                process.name
            ));
        }
    }
    problems
}

/// What coordinators of two sets of manifests are told differently: a group has its own name, and
/// nothing else differs. `names`: of the sets.
pub fn coordinator_problems(names: [&str; 2], manifests: [&Manifests; 2]) -> Vec<String> {
    let flags = |manifests: &Manifests| -> Vec<BTreeSet<String>> {
        let (processes, _) = processes(manifests);
        let coordinators = processes.into_iter().filter(Process::is_coordinator);
        coordinators.map(|process| process.shared_flags()).collect()
    };
    let [one, other] = manifests.map(flags);
    let ([one], [other]) = (one.as_slice(), other.as_slice()) else {
        let counts = (one.len(), other.len());
        return vec![format!(
            "{names:?} have not one coordinator each: {counts:?}"
        )];
    };
    one.symmetric_difference(other)
        .map(|flag| format!("coordinators of {names:?} differ in {flag}"))
        .collect()
}

fn port_of(address: &str) -> Option<u64> {
    address.rsplit_once(':')?.1.parse().ok()
}

impl Process {
    /// Variables with our prefix that the help of the command does not name.
    fn unknown_variables<'a>(&'a self, help: &str) -> impl Iterator<Item = &'a str> {
        let ours = self
            .env
            .keys()
            .map(String::as_str)
            .filter(|name| name.starts_with(PREFIX));
        // clap writes `[env: NAME=value]`, and `[env: NAME=]` when it is not set or not shown.
        ours.filter(move |name| !help.contains(&format!("[env: {name}=")))
    }

    fn is_coordinator(&self) -> bool {
        self.args
            .first()
            .is_some_and(|command| command == "coordinator")
    }

    /// All that it is told but the name of its group.
    fn shared_flags(&self) -> BTreeSet<String> {
        let own = |arg: &&String| !arg.starts_with("--group=");
        self.args.iter().filter(own).cloned().collect()
    }

    /// The value of `--name=value`.
    fn flag(&self, name: &str) -> Option<&str> {
        self.args.iter().find_map(|arg| {
            arg.strip_prefix("--")?
                .strip_prefix(name)?
                .strip_prefix('=')
        })
    }
}

/// All containers of ours with their variables expanded, and what cannot be.
fn processes(manifests: &Manifests) -> (Vec<Process>, Vec<String>) {
    let (mut processes, mut problems) = (Vec::new(), Vec::new());
    for pods in manifests.pods() {
        for (name, container) in pods.containers() {
            if !is_ours(container) {
                continue;
            }
            let env = environment(manifests, container, &PodFacts::default());
            let mut args = Vec::new();
            for arg in list(&container["args"]) {
                match expand(text(arg), &env) {
                    Ok(arg) => args.push(arg),
                    Err(variable) => problems.push(format!("{name}: $({variable}) is not set")),
                }
            }
            let ports = list(&container["ports"])
                .iter()
                .filter_map(|port| port["containerPort"].as_u64())
                .collect();
            processes.push(Process {
                name,
                args,
                env,
                ports,
            });
        }
    }
    (processes, problems)
}

/// Whether a container runs our image.
pub fn is_ours(container: &Value) -> bool {
    let image = text(&container["image"])
        .rsplit('/')
        .next()
        .unwrap_or_default();
    image.split([':', '@']).next() == Some(IMAGE)
}

/// Variables of a container of `pod`.
pub fn environment(
    manifests: &Manifests,
    container: &Value,
    pod: &PodFacts,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = INJECTED
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for source in list(&container["envFrom"]) {
        let map = manifests.find("ConfigMap", text(&source["configMapRef"]["name"]));
        for (name, value) in map
            .and_then(|map| map["data"].as_object())
            .into_iter()
            .flatten()
        {
            env.insert(name.clone(), text(value).to_owned());
        }
    }
    for variable in list(&container["env"]) {
        let value = match text(&variable["valueFrom"]["fieldRef"]["fieldPath"]) {
            "" => text(&variable["value"]),
            "status.podIP" => &pod.ip,
            path if path.ends_with("-index']") => &pod.index,
            _ => &pod.name,
        };
        env.insert(text(&variable["name"]).to_owned(), value.to_owned());
    }
    env
}

/// Replaces `$(NAME)` as the kubelet does; the name of a variable that is not set is the error.
pub fn expand(arg: &str, env: &BTreeMap<String, String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = arg;
    while let Some((before, after)) = rest.split_once("$(") {
        let (name, after) = after.split_once(')').ok_or_else(|| after.to_owned())?;
        expanded.push_str(before);
        expanded.push_str(env.get(name).ok_or_else(|| name.to_owned())?);
        rest = after;
    }
    expanded.push_str(rest);
    Ok(expanded)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(name: &str, args: &Value, ports: &[u64]) -> Value {
        let ports: Vec<Value> = ports
            .iter()
            .map(|port| json!({"containerPort": port}))
            .collect();
        json!({
            "kind": "Deployment", "metadata": {"name": name},
            "spec": {"template": {"spec": {"containers": [{
                "name": "main", "image": "host:5000/palimpsest:1", "args": args, "ports": ports,
                "env": [
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                ],
            }]}}},
        })
    }

    fn etcd() -> Value {
        let spec = json!({"ports": [{"port": 2379}]});
        json!({"kind": "Service", "metadata": {"name": "etcd"}, "spec": spec})
    }

    fn coordinator(extra: &str) -> Value {
        let args = json!([
            "coordinator",
            "--etcd=http://etcd:2379",
            "--group=main",
            "--tp=2",
            "--listen=0.0.0.0:1",
            extra
        ]);
        deployment("c", &args, &[1])
    }

    fn worker(group: &str, tp: &str) -> Value {
        let args = json!([
            "worker",
            "--etcd=http://etcd:2379",
            format!("--group={group}"),
            format!("--tp={tp}"),
            "--health=0.0.0.0:2",
            "--advertise=$(POD_IP):3"
        ]);
        deployment("w", &args, &[2])
    }

    #[test]
    fn processes_of_a_group_agree() {
        let sound = Manifests::new(vec![coordinator("--no"), worker("main", "2"), etcd()]);
        assert_eq!(group_problems(&sound), Vec::<String>::new());
        for (objects, expected) in [
            (
                vec![coordinator("--no"), worker("other", "2"), etcd()],
                "--group differs",
            ),
            (
                vec![coordinator("--no"), worker("main", "3"), etcd()],
                "--tp differs",
            ),
            (
                vec![coordinator("--http=0.0.0.0:9"), worker("main", "2"), etcd()],
                "listens on {1, 9} and declares {1}",
            ),
            (
                vec![coordinator("--no"), worker("main", "2")],
                "no Service/etcd",
            ),
        ] {
            let found = group_problems(&Manifests::new(objects));
            assert!(
                !found.is_empty() && found.iter().all(|problem| problem.contains(expected)),
                "{found:?}"
            );
        }
    }

    #[test]
    fn coordinators_are_told_the_same() {
        let set = |extra: &str| Manifests::new(vec![coordinator(extra), worker("m", "2")]);
        let (base, same) = (set("--max-message-mib=2"), set("--max-message-mib=2"));
        let compare = |other: &Manifests| coordinator_problems(["a", "b"], [&base, other]);
        assert_eq!(compare(&same), Vec::<String>::new());
        let found = compare(&set("--max-message-mib=4"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("--max-message-mib=2"), "{found:?}");
        let none = Manifests::new(vec![worker("m", "2")]);
        assert_eq!(compare(&none).len(), 1);
    }

    #[test]
    fn variables_are_expanded_or_missed() {
        let (processes, problems) = processes(&Manifests::new(vec![
            coordinator("--x=$(NOPE)"),
            worker("m", "1"),
        ]));
        assert_eq!(problems, ["Deployment/c main: $(NOPE) is not set"]);
        assert_eq!(processes[1].flag("advertise"), Some("10.0.0.1:3"));
        let env = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(expand("x$(A)y$(A)", &env), Ok("x1y1".to_owned()));
        assert_eq!(expand("$(", &env), Err(String::new()));
    }

    #[test]
    fn variables_that_no_flag_reads_are_found() {
        let args = json!(["worker"]);
        let mut object = deployment("w", &args, &[]);
        let env = json!([
            {"name": "PALIMPSEST_TP", "value": "2"},
            {"name": "PALIMPSEST_TPP", "value": "2"},
            {"name": "HOME"},
        ]);
        *object
            .pointer_mut("/spec/template/spec/containers/0/env")
            .expect("the field is there") = env;
        let manifests = Manifests::new(vec![object]);
        let help = "--tp <TP>  Ranks of the group [env: PALIMPSEST_TP=2] [default: 1]";
        let unknown: Vec<String> = processes(&manifests).0[0]
            .unknown_variables(help)
            .map(str::to_owned)
            .collect();
        assert_eq!(unknown, ["PALIMPSEST_TPP"]);
    }

    /// `true` stands for a program that understands every command line, `false` for one that
    /// understands none.
    #[test]
    fn what_a_program_does_not_understand_is_a_problem() {
        let manifests = Manifests::new(vec![coordinator("--no")]);
        let problems = |path: &str| Program(path.into()).problems(&manifests);
        assert_eq!(problems("true"), Vec::<String>::new());
        assert_eq!(problems("false").len(), 1);
        assert_eq!(problems("/nonexistent").len(), 1);
    }
}
