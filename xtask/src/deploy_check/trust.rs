//! Whom the processes of an overlay trust: certificates on every link within the cluster, or the
//! operator's word that the network is nobody else's, which only the overlay for one node gives;
//! and the rules under which pods find names.

use serde_json::Value;

use super::commands::is_ours;
use super::manifests::{Manifests, list, text};

/// The operator's word.
const INSECURE: &str = "PALIMPSEST_INSECURE";
/// The overlay that may give it.
const ONE_NODE: &str = "dev";
/// The policy of all pods.
const DEFAULT_POLICY: &str = "default";

/// All that is wrong with the links of the overlay `name`. The base alone has no certificates: its
/// processes refuse to start, so what is put together of it without them is not looked at.
pub fn problems(name: &str, manifests: &Manifests) -> Vec<String> {
    let mut problems = dns_problems(manifests);
    if name.starts_with("base ") && !name.ends_with(" tls") {
        return problems;
    }
    let config = manifests.find("ConfigMap", "palimpsest");
    let insecure = config.is_some_and(|config| config["data"][INSECURE] == "true");
    if insecure && name != ONE_NODE {
        problems.push(format!("{INSECURE} is for the overlay {ONE_NODE}"));
    }
    for pods in manifests.pods() {
        for (container_name, container) in pods.containers() {
            if is_ours(container) && !has_certificate(container) && !insecure {
                problems.push(format!(
                    "{container_name}: would not start beyond loopback: it has neither \
                     --cluster-cert nor {INSECURE}"
                ));
            }
            if is_ours(container) && has_certificate(container) && insecure {
                problems.push(format!(
                    "{container_name}: would not start: {INSECURE} and --cluster-cert exclude \
                     each other"
                ));
            }
        }
    }
    problems
}

fn has_certificate(container: &Value) -> bool {
    list(&container["args"])
        .iter()
        .any(|arg| text(arg).starts_with("--cluster-cert="))
}

/// Names must be found wherever a cluster keeps its DNS: pods of any namespace, and an address of
/// the node for a cache there. Nothing of it may be public.
fn dns_problems(manifests: &Manifests) -> Vec<String> {
    let Some(policy) = manifests.find("NetworkPolicy", DEFAULT_POLICY) else {
        return vec![format!("no NetworkPolicy {DEFAULT_POLICY}")];
    };
    let rules = || {
        list(&policy["spec"]["egress"])
            .iter()
            .filter(|rule| list(&rule["ports"]).iter().any(|port| port["port"] == 53))
    };
    let peers = || rules().flat_map(|rule| list(&rule["to"]));
    let mut problems = Vec::new();
    if !peers().any(|peer| {
        peer["namespaceSelector"]
            .as_object()
            .is_some_and(serde_json::Map::is_empty)
    }) {
        problems.push("DNS in another namespace than the one named cannot be reached".to_owned());
    }
    if !peers().any(|peer| peer["ipBlock"]["cidr"] == "169.254.0.0/16") {
        problems.push("DNS at a link-local address of the node cannot be reached".to_owned());
    }
    if rules().any(|rule| list(&rule["to"]).is_empty())
        || peers().any(|peer| text(&peer["ipBlock"]["cidr"]).ends_with("/0"))
    {
        problems.push("DNS may be asked of public addresses".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn overlay(insecure: bool, args: &[&str], peers: Value) -> Manifests {
        Manifests::new(vec![
            json!({
                "kind": "ConfigMap", "metadata": {"name": "palimpsest"},
                "data": if insecure { json!({INSECURE: "true"}) } else { json!({}) },
            }),
            json!({
                "kind": "Deployment", "metadata": {"name": "coordinator"},
                "spec": {"template": {"spec": {"containers": [
                    {"name": "coordinator", "image": "palimpsest:check", "args": args},
                ]}}},
            }),
            json!({
                "kind": "NetworkPolicy", "metadata": {"name": "default"},
                "spec": {"egress": [{"to": peers, "ports": [{"protocol": "UDP", "port": 53}]}]},
            }),
        ])
    }

    fn everywhere() -> Value {
        json!([{"namespaceSelector": {}}, {"ipBlock": {"cidr": "169.254.0.0/16"}}])
    }

    #[test]
    fn links_have_certificates_or_the_word_of_one_node() {
        let (plain, certified) = (["coordinator"], ["coordinator", "--cluster-cert=a"]);
        for (name, insecure, args, wrong) in [
            ("cpu", false, &certified[..], false),
            ("cpu", false, &plain[..], true),
            ("cpu", true, &plain[..], true),
            ("dev", true, &plain[..], false),
            ("dev", false, &plain[..], true),
            ("dev", true, &certified[..], true),
            ("dev with tls", false, &certified[..], false),
            ("base with monitoring", false, &plain[..], false),
            ("base with scale-out and tls", false, &plain[..], true),
        ] {
            let found = problems(name, &overlay(insecure, args, everywhere()));
            assert_eq!(
                !found.is_empty(),
                wrong,
                "{name} {insecure} {args:?}: {found:?}"
            );
        }
    }

    #[test]
    fn names_are_found_in_every_kind_of_cluster_and_not_outside_it() {
        let args = ["coordinator", "--cluster-cert=a"];
        let found = |peers: Value| problems("cpu", &overlay(false, &args, peers)).len();
        assert_eq!(found(everywhere()), 0);
        let one = json!({"namespaceSelector": {"matchLabels": {"name": "kube-system"}}});
        assert_eq!(found(json!([one])), 2, "one namespace, and no node");
        assert_eq!(found(json!([])), 3, "anywhere at all");
        let mut open = everywhere();
        open[1]["ipBlock"]["cidr"] = "0.0.0.0/0".into();
        assert_eq!(found(open), 2, "public addresses, and no node");
    }
}
