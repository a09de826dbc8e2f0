//! What names something else must name something that is there.

use serde_json::Value;

use super::manifests::{Labels, Manifests, Pods, labels, list, text};

/// All names that lead nowhere. What users make themselves, such as a Secret, must be told in
/// `readme` as `Kind/name`.
pub fn problems(manifests: &Manifests, readme: &str) -> Vec<String> {
    let mut problems = service_problems(manifests);
    problems.extend(policy_problems(manifests));
    problems.extend(budget_and_scale_problems(manifests));
    problems.extend(monitor_problems(manifests));
    for pods in manifests.pods() {
        for (kind, name) in needs(&pods) {
            let given = manifests.find(kind, name).is_some()
                || readme.contains(&format!("`{kind}/{name}`"));
            if !given {
                problems.push(format!(
                    "{} needs {kind}/{name}, which neither is there nor told in README.md",
                    pods.owner
                ));
            }
        }
    }
    problems
}

/// What must be there for pods to start: kind and name.
fn needs<'a>(pods: &Pods<'a>) -> Vec<(&'static str, &'a str)> {
    let mut needs = Vec::new();
    let mut need = |kind: &'static str, name: &'a Value| {
        if let Some(name) = name.as_str() {
            needs.push((kind, name));
        }
    };
    need("ServiceAccount", &pods.spec["serviceAccountName"]);
    for volume in list(&pods.spec["volumes"]) {
        need("Secret", &volume["secret"]["secretName"]);
        need("ConfigMap", &volume["configMap"]["name"]);
        need(
            "PersistentVolumeClaim",
            &volume["persistentVolumeClaim"]["claimName"],
        );
    }
    for container in list(&pods.spec["containers"]) {
        for source in list(&container["envFrom"]) {
            need("ConfigMap", &source["configMapRef"]["name"]);
            need("Secret", &source["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            need(
                "ConfigMap",
                &variable["valueFrom"]["configMapKeyRef"]["name"],
            );
            need("Secret", &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    needs
}

fn selected<'a>(pods: &'a [Pods<'a>], selector: &Labels) -> Vec<&'a Pods<'a>> {
    pods.iter()
        .filter(|pods| pods.match_selector(selector))
        .collect()
}

fn service_problems(manifests: &Manifests) -> Vec<String> {
    let (pods, mut problems) = (manifests.pods(), Vec::new());
    for (name, service) in manifests.of_kind("Service") {
        let behind = selected(&pods, &labels(&service["spec"]["selector"]));
        if behind.is_empty() || service["spec"]["selector"].is_null() {
            problems.push(format!("Service/{name} selects no pod"));
        }
        for port in list(&service["spec"]["ports"]) {
            let target = if port["targetPort"].is_null() {
                &port["port"]
            } else {
                &port["targetPort"]
            };
            let without = behind.iter().filter(|pods| !pods.has_port(target));
            problems.extend(
                without.map(|pods| format!("Service/{name}: {} has no port {target}", pods.owner)),
            );
        }
    }
    problems
}

fn policy_problems(manifests: &Manifests) -> Vec<String> {
    let (pods, mut problems) = (manifests.pods(), Vec::new());
    let mut covered: Vec<&str> = Vec::new();
    for (name, policy) in manifests.of_kind("NetworkPolicy") {
        let spec = &policy["spec"];
        let name = format!("NetworkPolicy/{name}");
        let own = selected(&pods, &labels(&spec["podSelector"]["matchLabels"]));
        if own.is_empty() {
            problems.push(format!("{name} selects no pod"));
        }
        covered.extend(own.iter().map(|pods| pods.owner.as_str()));
        for rule in list(&spec["ingress"]) {
            problems.extend(port_problems(&name, rule, &own));
            problems.extend(peer_problems(&name, &pods, &rule["from"]).1);
        }
        for rule in list(&spec["egress"]) {
            let (peers, found) = peer_problems(&name, &pods, &rule["to"]);
            problems.extend(found);
            problems.extend(port_problems(&name, rule, &peers));
        }
    }
    let open = pods
        .iter()
        .filter(|pods| !covered.contains(&pods.owner.as_str()));
    problems.extend(open.map(|pods| format!("{}: no NetworkPolicy selects it", pods.owner)));
    problems
}

/// Our pods among the peers of a rule, and selectors that select none. Peers in other namespaces
/// cannot be checked.
fn peer_problems<'a>(
    name: &str,
    pods: &'a [Pods<'a>],
    peers: &Value,
) -> (Vec<&'a Pods<'a>>, Vec<String>) {
    let (mut ours, mut problems) = (Vec::new(), Vec::new());
    for peer in list(peers)
        .iter()
        .filter(|peer| peer["namespaceSelector"].is_null() && !peer["podSelector"].is_null())
    {
        let found = selected(pods, &labels(&peer["podSelector"]["matchLabels"]));
        if found.is_empty() {
            problems.push(format!(
                "{name}: the peer {} is no pod",
                peer["podSelector"]
            ));
        }
        ours.extend(found);
    }
    (ours, problems)
}

/// Ports of a rule that no pod has behind which it stands.
fn port_problems(name: &str, rule: &Value, pods: &[&Pods]) -> Vec<String> {
    let ports = list(&rule["ports"]).iter().map(|port| &port["port"]);
    let missing =
        ports.filter(|port| !pods.is_empty() && !pods.iter().any(|pods| pods.has_port(port)));
    missing
        .map(|port| format!("{name}: no pod has port {port}"))
        .collect()
}

fn budget_and_scale_problems(manifests: &Manifests) -> Vec<String> {
    let (pods, mut problems) = (manifests.pods(), Vec::new());
    for (name, budget) in manifests.of_kind("PodDisruptionBudget") {
        if selected(&pods, &labels(&budget["spec"]["selector"]["matchLabels"])).is_empty() {
            problems.push(format!("PodDisruptionBudget/{name} selects no pod"));
        }
    }
    for (name, scaler) in manifests.of_kind("HorizontalPodAutoscaler") {
        let target = &scaler["spec"]["scaleTargetRef"];
        if manifests
            .find(text(&target["kind"]), text(&target["name"]))
            .is_none()
        {
            problems.push(format!(
                "HorizontalPodAutoscaler/{name}: {target} is not there"
            ));
        }
    }
    for kind in ["Deployment", "StatefulSet"] {
        for (name, object) in manifests.of_kind(kind) {
            let selector = labels(&object["spec"]["selector"]["matchLabels"]);
            let service = &object["spec"]["serviceName"];
            if selected(&pods, &selector)
                .iter()
                .all(|pods| pods.owner != format!("{kind}/{name}"))
            {
                problems.push(format!("{kind}/{name} does not select its own pods"));
            }
            if service.is_string() && manifests.find("Service", text(service)).is_none() {
                problems.push(format!(
                    "{kind}/{name}: there is no Service/{}",
                    text(service)
                ));
            }
        }
    }
    problems
}

fn monitor_problems(manifests: &Manifests) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, monitor) in manifests.of_kind("ServiceMonitor") {
        let selector = labels(&monitor["spec"]["selector"]["matchLabels"]);
        let has_labels = |service: &Value| {
            let own = labels(&service["metadata"]["labels"]);
            selector
                .iter()
                .all(|(name, value)| own.get(name) == Some(value))
        };
        let services: Vec<&Value> = manifests
            .of_kind("Service")
            .map(|(_, service)| service)
            .filter(|service| has_labels(service))
            .collect();
        for endpoint in list(&monitor["spec"]["endpoints"]) {
            let has_port = |service: &&Value| {
                list(&service["spec"]["ports"])
                    .iter()
                    .any(|p| p["name"] == endpoint["port"])
            };
            if !services.iter().any(has_port) {
                problems.push(format!(
                    "ServiceMonitor/{name}: no service that it selects has port {}",
                    endpoint["port"]
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two services' worth of objects without faults: `a` is called by `b`.
    fn sound() -> Vec<Value> {
        let workload = |name: &str| {
            json!({
                "kind": "Deployment", "metadata": {"name": name},
                "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {
                        "serviceAccountName": "s",
                        "volumes": [{"name": "v", "secret": {"secretName": "told"}}],
                        "containers": [{
                            "name": "main", "ports": [{"name": "http", "containerPort": 80}],
                            "envFrom": [{"configMapRef": {"name": "settings"}}],
                        }],
                    },
                }},
            })
        };
        vec![
            workload("a"),
            workload("b"),
            json!({"kind": "ServiceAccount", "metadata": {"name": "s"}}),
            json!({"kind": "ConfigMap", "metadata": {"name": "settings"}}),
            json!({
                "kind": "Service", "metadata": {"name": "a", "labels": {"app": "a"}},
                "spec": {
                    "selector": {"app": "a"},
                    "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
                },
            }),
            json!({
                "kind": "NetworkPolicy", "metadata": {"name": "n"},
                "spec": {
                    "podSelector": {},
                    "ingress": [{
                        "from": [{"podSelector": {"matchLabels": {"app": "b"}}}],
                        "ports": [{"port": "http"}],
                    }],
                    "egress": [{
                        "to": [{"podSelector": {"matchLabels": {"app": "a"}}}],
                        "ports": [{"port": 80}],
                    }],
                },
            }),
            json!({
                "kind": "PodDisruptionBudget", "metadata": {"name": "p"},
                "spec": {"selector": {"matchLabels": {"app": "a"}}},
            }),
            json!({
                "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
                "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "a"}},
            }),
            json!({
                "kind": "ServiceMonitor", "metadata": {"name": "m"},
                "spec": {
                    "selector": {"matchLabels": {"app": "a"}},
                    "endpoints": [{"port": "http"}],
                },
            }),
        ]
    }

    const README: &str = "make `Secret/told` first";

    #[test]
    fn sound_objects_have_no_problems() {
        assert_eq!(
            problems(&Manifests::new(sound()), README),
            Vec::<String>::new()
        );
    }

    /// A sound set of objects with one field changed, and what is then said.
    struct Fault {
        object: usize,
        field: &'static str,
        value: Value,
        problem: &'static str,
    }

    fn fault(object: usize, field: &'static str, value: Value, problem: &'static str) -> Fault {
        Fault {
            object,
            field,
            value,
            problem,
        }
    }

    fn faults_of_workloads() -> Vec<Fault> {
        let account = "/spec/template/spec/serviceAccountName";
        let secret = "/spec/template/spec/volumes/0/secret/secretName";
        let settings = "/spec/template/spec/containers/0/envFrom/0/configMapRef/name";
        vec![
            fault(0, account, json!("x"), "needs ServiceAccount/x"),
            fault(0, secret, json!("x"), "needs Secret/x"),
            fault(1, settings, json!("x"), "needs ConfigMap/x"),
        ]
    }

    fn faults_of_traffic() -> Vec<Fault> {
        let port = "/spec/ports/0/targetPort";
        let caller = "/spec/ingress/0/from/0/podSelector/matchLabels";
        let (called, sent) = (
            "/spec/ingress/0/ports/0/port",
            "/spec/egress/0/ports/0/port",
        );
        let other = json!({"app": "x"});
        let only_a = json!({"matchLabels": {"app": "a"}});
        vec![
            fault(
                4,
                "/spec/selector",
                other.clone(),
                "Service/a selects no pod",
            ),
            fault(4, port, json!("x"), "has no port \"x\""),
            fault(5, caller, other, "is no pod"),
            fault(5, called, json!("x"), "no pod has port \"x\""),
            fault(5, sent, json!(81), "no pod has port 81"),
            fault(
                5,
                "/spec/podSelector",
                only_a,
                "no NetworkPolicy selects it",
            ),
        ]
    }

    fn faults_of_operation() -> Vec<Fault> {
        let labels = "/spec/selector/matchLabels";
        let no_pod = "PodDisruptionBudget/p selects no pod";
        vec![
            fault(6, labels, json!({"app": "x"}), no_pod),
            fault(7, "/spec/scaleTargetRef/name", json!("x"), "is not there"),
            fault(8, "/spec/endpoints/0/port", json!("x"), "ServiceMonitor/m"),
        ]
    }

    #[test]
    fn every_name_that_leads_nowhere_is_found() {
        let mut faults = faults_of_workloads();
        faults.extend(faults_of_traffic());
        faults.extend(faults_of_operation());
        for fault in faults {
            let (field, mut objects) = (fault.field, sound());
            *objects[fault.object]
                .pointer_mut(field)
                .expect("the field is there") = fault.value;
            let found = problems(&Manifests::new(objects), README);
            assert!(
                found.len() == 1 && found[0].contains(fault.problem),
                "{field}: {found:?}"
            );
        }
        let untold = problems(&Manifests::new(sound()), "");
        assert_eq!(
            untold.len(),
            2,
            "both workloads need the Secret: {untold:?}"
        );
    }
}
