//! Rendered objects, and the pods that they would make.

use std::collections::BTreeMap;

use serde_json::Value;

/// Set on pods by LeaderWorkerSet; rank 0 is the leader.
const WORKER_INDEX: &str = "leaderworkerset.sigs.k8s.io/worker-index";

/// Labels or a selector.
pub type Labels = BTreeMap<String, String>;

/// All objects of one kustomization.
#[derive(Clone, Debug)]
pub struct Manifests(Vec<Value>);

/// Pods of one template.
#[derive(Debug)]
pub struct Pods<'a> {
    /// `Kind/name` of what makes them.
    pub owner: String,
    pub labels: Labels,
    pub annotations: Labels,
    /// The pod spec.
    pub spec: &'a Value,
    /// Names of volumes that the owner adds: claim templates.
    pub claims: Vec<&'a str>,
}

impl Manifests {
    /// Of parsed documents.
    pub fn new(documents: Vec<Value>) -> Self {
        Self(documents)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Objects of a kind, with their names.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.0
            .iter()
            .filter(move |object| object["kind"] == kind)
            .map(|object| (text(&object["metadata"]["name"]), object))
    }

    /// An object by kind and name.
    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }

    /// Every kind of pod there would be. A LeaderWorkerSet has leaders, and workers when its size
    /// is above one.
    pub fn pods(&self) -> Vec<Pods<'_>> {
        let mut pods = Vec::new();
        for kind in ["Deployment", "StatefulSet"] {
            for (name, object) in self.of_kind(kind) {
                let claims = list(&object["spec"]["volumeClaimTemplates"]);
                let claims = claims
                    .iter()
                    .map(|claim| text(&claim["metadata"]["name"]))
                    .collect();
                pods.push(Pods::new(
                    format!("{kind}/{name}"),
                    &object["spec"]["template"],
                    claims,
                ));
            }
        }
        for (name, object) in self.of_kind("LeaderWorkerSet") {
            let group = &object["spec"]["leaderWorkerTemplate"];
            let worker = &group["workerTemplate"];
            let leader = if group["leaderTemplate"].is_null() {
                worker
            } else {
                &group["leaderTemplate"]
            };
            let followers = if group["size"].as_u64().unwrap_or(1) > 1 {
                Some(("1", worker))
            } else {
                None
            };
            for (index, template) in [("0", leader)].into_iter().chain(followers) {
                let mut made = Pods::new(
                    format!("LeaderWorkerSet/{name}[{index}]"),
                    template,
                    Vec::new(),
                );
                made.labels.insert(WORKER_INDEX.into(), index.into());
                pods.push(made);
            }
        }
        pods
    }
}

impl<'a> Pods<'a> {
    fn new(owner: String, template: &'a Value, claims: Vec<&'a str>) -> Self {
        let metadata = &template["metadata"];
        let (labels, annotations) = (
            labels(&metadata["labels"]),
            labels(&metadata["annotations"]),
        );
        Self {
            owner,
            labels,
            annotations,
            spec: &template["spec"],
            claims,
        }
    }

    /// Containers, with how messages call them. Init containers are not among them.
    pub fn containers(&self) -> impl Iterator<Item = (String, &'a Value)> {
        let owner = self.owner.clone();
        list(&self.spec["containers"])
            .iter()
            .map(move |container| (format!("{owner} {}", text(&container["name"])), container))
    }

    /// Whether a port, by name or number, is one of a container.
    pub fn has_port(&self, port: &Value) -> bool {
        self.containers()
            .any(|(_, container)| container_has_port(container, port))
    }

    /// Whether `selector` selects these pods; an empty one selects all.
    pub fn match_selector(&self, selector: &Labels) -> bool {
        selector
            .iter()
            .all(|(name, value)| self.labels.get(name) == Some(value))
    }
}

/// Whether a port, by name or number, is one of `container`.
pub fn container_has_port(container: &Value, port: &Value) -> bool {
    let field = if port.is_string() {
        "name"
    } else {
        "containerPort"
    };
    list(&container["ports"])
        .iter()
        .any(|declared| declared[field] == *port)
}

/// A map of strings.
pub fn labels(value: &Value) -> Labels {
    let entries = value.as_object().into_iter().flatten();
    entries
        .map(|(name, value)| (name.clone(), text(value).to_owned()))
        .collect()
}

/// A string, or nothing.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An array, or nothing.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
