//! Dashboard and alerts ask only for metrics that deploy/metrics.txt names.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::manifests::{Manifests, list, text};

const DASHBOARD: &str = "deploy/components/monitoring/dashboard.json";
const PREFIX: &str = "palimpsest_";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// The metrics that there are.
#[derive(Debug)]
pub struct Names(BTreeMap<String, Kind>);

impl Names {
    /// Reads lines of `name kind`.
    ///
    /// # Errors
    /// When a line is not of that form.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&fs::read_to_string(path).with_context(|| path.display().to_string())?)
    }

    fn parse(source: &str) -> Result<Self> {
        let mut names = BTreeMap::new();
        for line in source
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (name, kind) = match line.split_once(' ') {
                Some((name, "counter")) if name.ends_with("_total") => (name, Kind::Counter),
                Some((name, "gauge")) => (name, Kind::Gauge),
                Some((name, "histogram")) => (name, Kind::Histogram),
                _ => bail!("metrics.txt: `{line}` is no name and kind"),
            };
            names.insert(name.to_owned(), kind);
        }
        Ok(Self(names))
    }

    /// Names in a query that are not there. Of a histogram, only its series are.
    fn unknown(&self, query: &str) -> Vec<String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        let words = query
            .split(|c| !is_name(c))
            .filter(|word| word.starts_with(PREFIX));
        words
            .filter(|word| !self.has_series(word))
            .map(str::to_owned)
            .collect()
    }

    fn has_series(&self, series: &str) -> bool {
        let of_histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|end| series.strip_suffix(end));
        let is_histogram = |name: &str| self.0.get(name) == Some(&Kind::Histogram);
        of_histogram.into_iter().any(is_histogram)
            || self
                .0
                .get(series)
                .is_some_and(|kind| *kind != Kind::Histogram)
    }
}

/// Problems of the dashboard.
///
/// # Errors
/// When it cannot be read.
pub fn dashboard_problems(names: &Names) -> Result<Vec<String>> {
    let source = fs::read_to_string(DASHBOARD).context(DASHBOARD)?;
    let dashboard: Value = serde_json::from_str(&source).context(DASHBOARD)?;
    Ok(panel_problems(&dashboard, names))
}

fn panel_problems(dashboard: &Value, names: &Names) -> Vec<String> {
    let mut problems = Vec::new();
    let panels = list(&dashboard["panels"]);
    if panels.is_empty() {
        problems.push("dashboard: no panels".to_owned());
    }
    for panel in panels {
        let title = text(&panel["title"]);
        let queries: Vec<&str> = list(&panel["targets"])
            .iter()
            .map(|target| text(&target["expr"]))
            .collect();
        if !queries.iter().any(|query| query.contains(PREFIX)) {
            problems.push(format!("dashboard: `{title}` asks for nothing"));
        }
        let unknown = queries.iter().flat_map(|query| names.unknown(query));
        problems.extend(unknown.map(|name| {
            format!("dashboard: `{title}` asks for {name}, which is not in metrics.txt")
        }));
    }
    problems
}

/// Problems of the alerts.
pub fn alert_problems(manifests: &Manifests, names: &Names) -> Vec<String> {
    let mut problems = Vec::new();
    for (_, rules) in manifests.of_kind("PrometheusRule") {
        for rule in list(&rules["spec"]["groups"])
            .iter()
            .flat_map(|group| list(&group["rules"]))
        {
            let alert = text(&rule["alert"]);
            let query = text(&rule["expr"]);
            let unknown = names.unknown(query);
            problems.extend(
                unknown
                    .into_iter()
                    .map(|name| format!("{alert} asks for {name}, which is not in metrics.txt")),
            );
            if !query.contains(PREFIX) {
                problems.push(format!("{alert} asks for nothing"));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LIST: &str = "# names\npalimpsest_wait_seconds histogram\npalimpsest_done_total \
                        counter\npalimpsest_age gauge\n";

    #[test]
    fn queries_ask_for_series_that_are_there() {
        let names = Names::parse(LIST).expect("well formed");
        let query = "sum(rate(palimpsest_wait_seconds_bucket{le=\"1\"}[5m])) / palimpsest_age + \
                     palimpsest_done_total";
        assert_eq!(names.unknown(query), Vec::<String>::new());
        for missing in [
            "palimpsest_wait_seconds",
            "palimpsest_done",
            "palimpsest_age_bucket",
            "palimpsest_x",
        ] {
            assert_eq!(names.unknown(&format!("max({missing}[5m])")), [missing]);
        }
    }

    #[test]
    fn panels_and_alerts_are_checked() {
        let names = Names::parse(LIST).expect("well formed");
        let panel = |query: &str| json!({"panels": [{"title": "t", "targets": [{"expr": query}]}]});
        assert_eq!(
            panel_problems(&panel("palimpsest_age"), &names),
            Vec::<String>::new()
        );
        assert_eq!(panel_problems(&panel("palimpsest_ago"), &names).len(), 1);
        assert_eq!(panel_problems(&panel("up"), &names).len(), 1);
        assert_eq!(panel_problems(&json!({}), &names).len(), 1);
        let rule = |query: &str| {
            let rules = json!([{"alert": "A", "expr": query}]);
            let object = json!({
                "kind": "PrometheusRule", "metadata": {"name": "r"},
                "spec": {"groups": [{"rules": rules}]},
            });
            alert_problems(&Manifests::new(vec![object]), &names)
        };
        assert_eq!(rule("palimpsest_age > 1"), Vec::<String>::new());
        assert_eq!(rule("palimpsest_ago > 1").len(), 1);
    }

    #[test]
    fn lists_that_are_not_lists_are_refused() {
        for bad in [
            "palimpsest_x",
            "palimpsest_x counter",
            "palimpsest_x summary",
        ] {
            assert!(Names::parse(bad).is_err(), "{bad}");
        }
    }
}
