//! What every pod must have: probes on ports that exist, memory and CPU asked for, an image with a
//! version, no privileges, and more time to end than it needs.

use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::commands::is_ours;
use super::manifests::{Manifests, Pods, container_has_port, list, text};

/// How long the containers of a pod take to drain after SIGTERM.
pub const DRAIN: &str = "palimpsest.dev/drain-seconds";
/// Left after preStop and drain for threads to end and logs to be written.
const MARGIN_SECONDS: u64 = 5;
const PROBES: [&str; 3] = ["startupProbe", "readinessProbe", "livenessProbe"];
/// Where the coordinator's drain limit stands.
const COORDINATOR_CONFIG: &str = "coordinator/src/config.rs";

/// All that is wrong with the pods.
pub fn problems(manifests: &Manifests) -> Vec<String> {
    let mut problems = Vec::new();
    for pods in manifests.pods() {
        problems.extend(grace_problem(&pods));
        problems.extend(security_problems(&pods));
        for (name, container) in pods.containers() {
            problems.extend(image_problem(&name, container));
            for (group, resource) in [
                ("requests", "cpu"),
                ("requests", "memory"),
                ("limits", "memory"),
            ] {
                if container["resources"][group][resource].is_null() {
                    problems.push(format!("{name}: no resources.{group}.{resource}"));
                }
            }
            for probe in PROBES {
                let action = &container[probe];
                let port = ["httpGet", "grpc", "tcpSocket"]
                    .iter()
                    .map(|kind| &action[kind]["port"])
                    .find(|p| !p.is_null());
                match port {
                    None => problems.push(format!("{name}: no {probe}")),
                    Some(port) if !container_has_port(container, port) => {
                        problems.push(format!(
                            "{name}: {probe} asks port {port}, which is not declared"
                        ));
                    }
                    Some(port) => {
                        problems.extend(probe_problem(&name, container, probe, port));
                    }
                }
            }
            let volumes = list(&pods.spec["volumes"]);
            for mount in list(&container["volumeMounts"]) {
                let volume = text(&mount["name"]);
                let known =
                    volumes.iter().any(|v| v["name"] == volume) || pods.claims.contains(&volume);
                if !known {
                    problems.push(format!("{name}: there is no volume {volume}"));
                }
            }
        }
    }
    problems
}

/// Our programs are probed on a port of their own: what clients do to theirs must not restart a
/// pod.
fn probe_problem(name: &str, container: &Value, probe: &str, port: &Value) -> Option<String> {
    if !is_ours(container) {
        return None;
    }
    let declared = list(&container["ports"]);
    let named = || declared.iter().find(|declared| declared["name"] == *port);
    let number = port.as_u64().or_else(|| named()?["containerPort"].as_u64());
    let args = list(&container["args"]).iter().map(text);
    let health = args
        .filter_map(|arg| arg.strip_prefix("--health="))
        .find_map(|address| address.rsplit(':').next()?.parse().ok());
    (number != health || health.is_none())
        .then(|| format!("{name}: {probe} asks port {port}, which is not that of --health"))
}

/// `latest`, and nothing, say not what runs.
fn image_problem(name: &str, container: &Value) -> Option<String> {
    let image = text(&container["image"]);
    let tag = image
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'))
        .map_or("", |(_, tag)| tag);
    let fixed = image.contains("@sha256:") || !(tag.is_empty() || tag == "latest");
    (!fixed).then(|| format!("{name}: the image `{image}` has no version"))
}

fn grace_problem(pods: &Pods) -> Option<String> {
    let owner = &pods.owner;
    let Some(drain) = pods
        .annotations
        .get(DRAIN)
        .and_then(|seconds| seconds.parse::<u64>().ok())
    else {
        return Some(format!("{owner}: no annotation {DRAIN}"));
    };
    let sleep = |container: &Value| {
        container["lifecycle"]["preStop"]["sleep"]["seconds"]
            .as_u64()
            .unwrap_or(0)
    };
    let before = pods
        .containers()
        .map(|(_, container)| sleep(container))
        .max()
        .unwrap_or(0);
    let grace = pods.spec["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap_or(30);
    let needed = before + drain + MARGIN_SECONDS;
    (grace < needed).then(|| {
        format!(
            "{owner}: killed after {grace} s, but preStop {before} s and drain {drain} s need \
             {needed} s with a margin"
        )
    })
}

/// What the `restricted` level of Pod Security asks, which the namespace enforces.
fn security_problems(pods: &Pods) -> Vec<String> {
    let mut problems = Vec::new();
    let pod = &pods.spec["securityContext"];
    if pod["runAsNonRoot"] != true || pod["seccompProfile"]["type"] != "RuntimeDefault" {
        problems.push(format!(
            "{}: the pod must run as no root, with seccomp's default profile",
            pods.owner
        ));
    }
    for (name, container) in pods.containers() {
        let context = &container["securityContext"];
        let drops_all = list(&context["capabilities"]["drop"])
            .iter()
            .any(|capability| capability == "ALL");
        if !drops_all
            || context["allowPrivilegeEscalation"] != false
            || context["readOnlyRootFilesystem"] != true
        {
            problems.push(format!(
                "{name}: must drop ALL, never escalate, and write nowhere but to volumes"
            ));
        }
    }
    problems
}

/// The coordinator's own drain limit against what its pods say.
pub fn drain_problems(manifests: &Manifests, limit_seconds: u64) -> Vec<String> {
    let starts_coordinator = |pods: &Pods| {
        pods.containers()
            .any(|(_, c)| list(&c["args"]).iter().any(|a| a == "coordinator"))
    };
    let pods = manifests.pods().into_iter().filter(starts_coordinator);
    let differs = pods.filter(|pods| {
        pods.annotations
            .get(DRAIN)
            .is_none_or(|said| *said != limit_seconds.to_string())
    });
    differs
        .map(|pods| {
            format!(
                "{}: {DRAIN} is not the coordinator's limit of {limit_seconds} s",
                pods.owner
            )
        })
        .collect()
}

/// The coordinator's drain limit as its source has it: there is no flag for it.
///
/// # Errors
/// When the source is not as it was.
pub fn drain_limit_seconds() -> Result<u64> {
    let source = fs::read_to_string(COORDINATOR_CONFIG).context(COORDINATOR_CONFIG)?;
    let after = source.split("drain_limit: Duration::from_secs(").nth(1);
    let digits = after
        .and_then(|after| after.split(')').next())
        .and_then(|digits| digits.parse().ok());
    digits.with_context(|| {
        format!(
            "{COORDINATOR_CONFIG} does not set drain_limit in seconds any more: adapt this check"
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A deployment without faults; the tests make one each.
    fn sound() -> Value {
        let probe = json!({"httpGet": {"path": "/health", "port": "probes"}});
        json!({
            "kind": "Deployment",
            "metadata": {"name": "c"},
            "spec": {"template": {
                "metadata": {"labels": {"a": "b"}, "annotations": {DRAIN: "60"}},
                "spec": {
                    "terminationGracePeriodSeconds": 90,
                    "securityContext": {
                        "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumes": [{"name": "keys"}],
                    "containers": [{
                        "name": "c", "image": "host:5000/palimpsest:1.0",
                        "args": ["coordinator", "--health=0.0.0.0:8081"],
                        "ports": [
                            {"name": "http", "containerPort": 8000},
                            {"name": "probes", "containerPort": 8081},
                        ],
                        "startupProbe": probe, "readinessProbe": probe, "livenessProbe": probe,
                        "lifecycle": {"preStop": {"sleep": {"seconds": 10}}},
                        "resources": {
                            "requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi"},
                        },
                        "securityContext": {
                            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"]},
                        },
                        "volumeMounts": [{"name": "keys", "mountPath": "/keys"}],
                    }],
                },
            }},
        })
    }

    #[test]
    fn a_sound_pod_has_no_problems() {
        let manifests = Manifests::new(vec![sound()]);
        assert_eq!(problems(&manifests), Vec::<String>::new());
        assert_eq!(drain_problems(&manifests, 60), Vec::<String>::new());
        assert_eq!(drain_problems(&manifests, 61).len(), 1);
    }

    #[test]
    fn every_fault_is_found() {
        let container = "/spec/template/spec/containers/0";
        for (pointer, value, expected) in [
            (
                "/spec/template/spec/terminationGracePeriodSeconds",
                json!(74),
                "need 75 s",
            ),
            (
                "/spec/template/metadata/annotations",
                json!({}),
                "no annotation",
            ),
            (
                "/spec/template/spec/securityContext/runAsNonRoot",
                json!(false),
                "as no root",
            ),
            ("/spec/template/spec/volumes", json!([]), "no volume keys"),
            (
                &format!("{container}/image"),
                json!("host:5000/palimpsest"),
                "no version",
            ),
            (
                &format!("{container}/image"),
                json!("palimpsest:latest"),
                "no version",
            ),
            (
                &format!("{container}/startupProbe"),
                json!(null),
                "no startupProbe",
            ),
            (
                &format!("{container}/livenessProbe/httpGet/port"),
                json!("htp"),
                "not declared",
            ),
            (
                &format!("{container}/livenessProbe/httpGet/port"),
                json!("http"),
                "not that of --health",
            ),
            (
                &format!("{container}/readinessProbe/httpGet/port"),
                json!(8000),
                "not that of --health",
            ),
            (
                &format!("{container}/resources/limits"),
                json!({}),
                "no resources.limits.memory",
            ),
            (
                &format!("{container}/securityContext/readOnlyRootFilesystem"),
                json!(false),
                "must drop ALL",
            ),
        ] {
            let mut object = sound();
            *object.pointer_mut(pointer).expect("the field is there") = value;
            let found = problems(&Manifests::new(vec![object]));
            assert!(
                found.len() == 1 && found[0].contains(expected),
                "{pointer}: {found:?}"
            );
        }
    }
}
