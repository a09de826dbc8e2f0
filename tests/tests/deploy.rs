//! What deploy/ promises of the coordinator: dashboard and alerts may use deploy/metrics.txt and
//! nothing else.

use std::collections::BTreeSet;

use palimpsest_coordinator::metrics::{Load, Metrics};
use palimpsest_proto::v1::Usage;
use palimpsest_tls::Refused;

const LIST: &str = include_str!("../../deploy/metrics.txt");

/// Names and kinds as `deploy/metrics.txt` has them, from the coordinator's own export.
fn exported() -> BTreeSet<String> {
    let metrics = Metrics::new();
    // Families show what they have seen only.
    metrics.ended("eos");
    let tenant = "a".into();
    metrics.tenant_ended(Some(&tenant), "eos");
    metrics.tenant_tokens(Some(&tenant), 1);
    metrics.watch_port("http", Refused::default());
    metrics.step(Load::default());
    metrics.usage(&Usage::default());
    let text = metrics.encode();
    let types = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE palimpsest_"));
    let named = types.map(|line| match line.split_once(' ') {
        Some((name, "counter")) => format!("palimpsest_{name}_total counter"),
        _ => format!("palimpsest_{line}"),
    });
    named.collect()
}

#[test]
fn the_list_of_metrics_is_what_the_coordinator_exports() {
    let listed: BTreeSet<String> = LIST
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, exported());
}
