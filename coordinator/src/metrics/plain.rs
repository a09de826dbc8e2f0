//! Prometheus' older text format, which names counters by their samples and has no end.

/// The same figures as a text in the OpenMetrics format.
pub(super) fn of(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for line in text.lines().filter(|line| *line != "# EOF") {
        let described = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| {
            let (name, rest) = line.strip_prefix(kind)?.split_once(' ')?;
            let is_counter = text.contains(&format!("# TYPE {name} counter\n"));
            is_counter.then(|| format!("{kind}{name}_total {rest}"))
        });
        // The older format has no units.
        if !line.starts_with("# UNIT ") {
            plain.push_str(described.as_deref().unwrap_or(line));
            plain.push('\n');
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use crate::metrics::{Load, Metrics};

    #[test]
    fn the_older_format_names_counters_by_their_samples_and_has_no_end() {
        let metrics = Metrics::new();
        metrics.step(Load::default());
        let plain = metrics.encode_plain();
        for line in [
            "# TYPE palimpsest_steps_total counter",
            "palimpsest_steps_total 1",
            "# TYPE palimpsest_requests_running gauge",
            "# TYPE palimpsest_time_to_first_token_seconds histogram",
        ] {
            assert!(
                plain.lines().any(|found| found == line),
                "{line} in\n{plain}"
            );
        }
        assert!(
            !plain.contains("# EOF") && !plain.contains("# UNIT"),
            "{plain}"
        );
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(samples(&plain), samples(&metrics.encode()));
    }
}
