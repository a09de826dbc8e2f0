//! Markdown tables of retrieval.

use std::fmt::Write;

use super::headline::Headline;
use super::prose::paragraph;
use crate::record::{CellResult, Metric, Protocol, Setting};
use crate::stats::distinct;
use crate::tasks::Task;

/// What lines of one table share.
#[derive(PartialEq)]
struct Heading<'a> {
    model: &'a str,
    tasks: &'a [Task],
    length: usize,
    protocol: Protocol,
    metric: Metric,
    stride: usize,
}

impl<'a> Heading<'a> {
    fn of(line: &'a Headline) -> Self {
        Self {
            model: &line.model,
            tasks: &line.tasks,
            length: line.length,
            protocol: line.protocol,
            metric: line.metric,
            stride: line.stride,
        }
    }
}

/// Means over tasks: a table for each model, length, protocol and list of tasks, a row per cache.
pub fn means(lines: &[Headline]) -> String {
    let mut text = String::new();
    for heading in distinct(lines.iter().map(Heading::of)) {
        let tasks: Vec<String> = heading.tasks.iter().map(ToString::to_string).collect();
        let legend = format!(
            "{}; stride {}, metric {}. n: samples, over all tasks. Score: percent of answers. \
             Difference: score less the full cache's on the same prompts, points. Of full: score \
             as a share of the full cache's, percent. Loss: log-likelihood per answer token less \
             the full cache's, nats. Held: share of a full cache of 16 bits. Brackets: 95 %, \
             paired bootstrap.",
            heading.model,
            heading.stride,
            heading.metric.name(),
        );
        let _ = writeln!(
            text,
            "### Mean over {}: {} tokens, {}\n\n{}\n",
            tasks.join(", "),
            heading.length,
            heading.protocol.name(),
            paragraph(&legend),
        );
        text.push_str(
            "| cache | budget | n | score | difference | of full | loss | held \
             |\n|---|---|---|---|---|---|---|---|\n",
        );
        for line in lines.iter().filter(|line| Heading::of(line) == heading) {
            text.push_str(&row(line));
        }
        text.push('\n');
    }
    text
}

fn row(line: &Headline) -> String {
    let percent = |value: f64| format!("{:.0}", value * 100.0);
    let points = |value: f64| format!("{:+.0}", value * 100.0);
    let nats = |value: f64| format!("{value:+.2}");
    let with = |show: &dyn Fn(f64) -> String, value: f64, interval: (f64, f64)| {
        let (low, high) = (show(interval.0), show(interval.1));
        format!("{} [{low}, {high}]", show(value))
    };

    let score = with(&percent, line.score, line.score_interval);
    let difference = with(&points, line.difference, line.difference_interval);
    let loss = with(&nats, line.loss, line.loss_interval);
    let of_full = match (line.of_full, line.of_full_interval) {
        (Some(share), Some(interval)) => with(&percent, share, interval),
        _ => "-".into(),
    };
    // The full cache has no difference from itself.
    let (difference, of_full, loss) = if line.is_reference() {
        let of_full = line.of_full.map_or("-", |_| "100");
        ("0".into(), of_full.into(), "0".into())
    } else {
        (difference, of_full, loss)
    };
    let budget = line.budget.map_or("all".to_string(), |b| b.to_string());
    format!(
        "| {} | {budget} | {} | {score} | {difference} | {of_full} | {loss} | {:.1} % |\n",
        line.cache,
        line.n,
        line.share * 100.0
    )
}

fn title(setting: &Setting) -> String {
    let depth = setting
        .depth
        .map_or(String::new(), |d| format!(" at {d} %"));
    format!(
        "{} {}{depth}, {}",
        setting.task,
        setting.length,
        setting.protocol.name()
    )
}

/// Every task by itself: a table per setting, a row per cache, a column per budget.
pub fn by_task(results: &[CellResult]) -> String {
    let mut text = String::new();
    for setting in distinct(results.iter().map(|r| &r.cell.setting)) {
        let of: Vec<&CellResult> = results
            .iter()
            .filter(|r| &r.cell.setting == setting)
            .collect();
        let budgets = distinct(of.iter().map(|r| r.cell.cache.budget));
        let n = of.iter().map(|r| r.n).min().unwrap_or(0);
        let name = |b: &Option<_>| b.as_ref().map_or("all".to_string(), ToString::to_string);
        let names: Vec<String> = budgets.iter().map(name).collect();
        let metric = setting.metric.name();
        let legend = format!(
            "{}; n = {n}, seed {}, stride {}. Cells: {metric} accuracy [95 % interval] / \
             log-likelihood per answer token ± standard error @ share really held.",
            setting.model, setting.seed, setting.stride
        );
        let _ = writeln!(text, "### {}\n\n{}\n", title(setting), paragraph(&legend));
        let _ = writeln!(
            text,
            "| cache | {} |\n|---|{}",
            names.join(" | "),
            "---|".repeat(names.len())
        );
        for line in distinct(of.iter().map(|r| r.cell.cache.line())) {
            let cell = |budget: &Option<_>| {
                let found = of
                    .iter()
                    .find(|r| r.cell.cache.line() == line && r.cell.cache.budget == *budget);
                found.map_or(String::new(), |r| show(r))
            };
            let cells: Vec<String> = budgets.iter().map(cell).collect();
            let _ = writeln!(text, "| {line} | {} |", cells.join(" | "));
        }
        text.push('\n');
    }
    text
}

fn show(r: &CellResult) -> String {
    let error = r
        .loglik_error
        .map_or(String::new(), |e| format!(" ± {e:.2}"));
    format!(
        "{:.0} [{:.0}, {:.0}] / {:.2}{error} @ {:.1} %",
        r.accuracy * 100.0,
        r.accuracy_low * 100.0,
        r.accuracy_high * 100.0,
        r.loglik,
        r.share * 100.0
    )
}
