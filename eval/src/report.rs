//! Tables and plots of a grid.

use std::fmt::Write;
use std::path::Path;

use crate::Result;
use crate::contracts::FULL;
use crate::grid::{CellResult, Setting};
use crate::headline::{self, Headline};
use crate::plot::{self, Bars, Group, HeatMap, Panel, Series};
use crate::store::write;

/// Writes `table.md`, `headline.svg`, `accuracy.svg`, `loglik.svg`, `bars.svg` where there are
/// several tasks, and `heat.svg` where depths were fixed.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn write_all(out: &Path, results: &[CellResult], headlines: &[Headline]) -> Result<()> {
    write(
        &out.join("table.md"),
        &format!("{}{}", headline::table(headlines), table(results)),
    )?;
    let over = "over the share of the prompt that is kept";
    let mean = headline_panels(headlines);
    let heading = "Share of the full cache's score, over the share kept";
    write(
        &out.join("headline.svg"),
        &plot::lines(&mean, heading, Some((0.0, 1.0))),
    )?;
    let accuracy = panels(results, |r| (r.accuracy, r.accuracy_low, r.accuracy_high));
    let heading = format!("Accuracy {over}, 95 % intervals");
    write(
        &out.join("accuracy.svg"),
        &plot::lines(&accuracy, &heading, Some((0.0, 1.0))),
    )?;
    let loglik = panels(results, |r| {
        let error = r.loglik_error.unwrap_or(0.0);
        (r.loglik, r.loglik - error, r.loglik + error)
    });
    let heading = format!("Log-likelihood per answer token, nats, {over}, \u{b1} standard error");
    write(
        &out.join("loglik.svg"),
        &plot::lines(&loglik, &heading, None),
    )?;
    if distinct(results.iter().map(|r| r.cell.setting.task)).len() > 1 {
        write(
            &out.join("bars.svg"),
            &plot::bars(&task_bars(results), "Accuracy by task, 95 % intervals"),
        )?;
    }
    if results.iter().any(|r| r.cell.setting.depth.is_some()) {
        write(
            &out.join("heat.svg"),
            &plot::heat(
                &heat_maps(results),
                "Accuracy in percent by depth and length",
            ),
        )?;
    }
    Ok(())
}

/// Different values in the order they come.
pub(crate) fn distinct<T: PartialEq>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
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

/// A Markdown table per setting: a row per cache, a column per budget.
pub fn table(results: &[CellResult]) -> String {
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
        let metric = format!("{:?}", setting.metric).to_lowercase();
        let _ = writeln!(
            text,
            "### {}\n\n{}; n = {n}, seed {}, stride {}. Cells: {metric} accuracy [95 % interval] \
             / log-likelihood per answer token ± standard error @ share really held.\n",
            title(setting),
            setting.model,
            setting.seed,
            setting.stride
        );
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

fn panels(results: &[CellResult], value: fn(&CellResult) -> (f64, f64, f64)) -> Vec<Panel> {
    let panel = |setting: &Setting| {
        let of: Vec<&CellResult> = results
            .iter()
            .filter(|r| &r.cell.setting == setting)
            .collect();
        let series = distinct(of.iter().map(|r| r.cell.cache.line()))
            .into_iter()
            .map(|name| {
                let own = of.iter().filter(|r| r.cell.cache.line() == name);
                let mut points: Vec<_> = own
                    .map(|r| {
                        let (y, low, high) = value(r);
                        (r.share, y, low, high)
                    })
                    .collect();
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                Series {
                    reference: name == FULL,
                    name,
                    points,
                }
            });
        let depth = setting
            .depth
            .map_or(String::new(), |d| format!(", needle at {d} %"));
        let subtitle = format!(
            "{} tokens{depth}, {}",
            setting.length,
            setting.protocol.name()
        );
        Panel {
            title: setting.task.to_string(),
            subtitle,
            series: series.collect(),
        }
    };
    distinct(results.iter().map(|r| &r.cell.setting))
        .into_iter()
        .map(panel)
        .collect()
}

/// A panel per length and protocol: the share of the full cache's score.
fn headline_panels(lines: &[Headline]) -> Vec<Panel> {
    let panel = |of: (usize, _)| {
        let own: Vec<&Headline> = lines
            .iter()
            .filter(|l| (l.length, l.protocol) == of)
            .collect();
        let series = |name: &str| {
            let point = |l: &Headline| {
                let (low, high) = l.of_full_interval?;
                Some((l.share, l.of_full?, low, high))
            };
            let mut points: Vec<_> = own
                .iter()
                .filter(|l| l.cache == name)
                .filter_map(|l| point(l))
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series {
                reference: name == FULL,
                name: name.into(),
                points,
            }
        };
        let names = distinct(own.iter().map(|l| &*l.cache));
        let tasks = own.first().map_or(0, |l| l.tasks.len());
        Panel {
            title: format!("mean over {tasks} tasks"),
            subtitle: format!("{} tokens, {}", of.0, of.1.name()),
            series: names.into_iter().map(series).collect(),
        }
    };
    distinct(lines.iter().map(|l| (l.length, l.protocol)))
        .into_iter()
        .map(panel)
        .collect()
}

/// A row of tasks per length, protocol, depth and budget.
fn task_bars(results: &[CellResult]) -> Vec<Bars> {
    let of = |r: &CellResult| {
        (
            r.cell.setting.length,
            r.cell.setting.protocol,
            r.cell.setting.depth,
        )
    };
    let mut rows = Vec::new();
    for (length, protocol, depth) in distinct(results.iter().map(of)) {
        let own: Vec<&CellResult> = results
            .iter()
            .filter(|r| of(r) == (length, protocol, depth))
            .collect();
        for budget in distinct(own.iter().filter_map(|r| r.cell.cache.budget)) {
            let group = |task: crate::tasks::Task| {
                let here = || own.iter().filter(move |r| r.cell.setting.task == task);
                let bar = |r: &&CellResult| {
                    (
                        r.cell.cache.line(),
                        r.accuracy,
                        r.accuracy_low,
                        r.accuracy_high,
                    )
                };
                Group {
                    name: task.to_string(),
                    bars: here()
                        .filter(|r| r.cell.cache.budget == Some(budget))
                        .map(bar)
                        .collect(),
                    full: here()
                        .find(|r| r.cell.cache.policy == FULL)
                        .map(|r| r.accuracy),
                }
            };
            let tasks = distinct(own.iter().map(|r| r.cell.setting.task));
            let depth = depth.map_or(String::new(), |d| format!(", needle at {d} %"));
            rows.push(Bars {
                title: format!("{budget} of {length} tokens{depth}, {}", protocol.name()),
                groups: tasks.into_iter().map(group).collect(),
            });
        }
    }
    rows
}

/// Accuracy over depth and length, a map per task, cache and budget.
fn heat_maps(results: &[CellResult]) -> Vec<HeatMap> {
    let lengths = distinct(results.iter().map(|r| r.cell.setting.length));
    let depths = distinct(results.iter().filter_map(|r| r.cell.setting.depth));
    let maps = distinct(results.iter().map(|r| (r.cell.setting.task, &r.cell.cache)));
    let map = |(task, cache): (_, &crate::CacheShape)| {
        let value = |depth: u32, length: usize| {
            let found = results.iter().find(|r| {
                let s = &r.cell.setting;
                (s.task, &r.cell.cache, s.depth, s.length) == (task, cache, Some(depth), length)
            });
            found.map(|r| r.accuracy)
        };
        let budget = cache
            .budget
            .map_or("everything".to_string(), |b| b.to_string());
        HeatMap {
            title: format!("{task}: {}, {budget}", cache.line()),
            columns: (
                lengths.iter().map(ToString::to_string).collect(),
                "tokens".into(),
            ),
            rows: (
                depths.iter().map(|d| format!("{d} %")).collect(),
                "depth".into(),
            ),
            values: depths
                .iter()
                .map(|&d| lengths.iter().map(|&l| value(d, l)).collect())
                .collect(),
        }
    };
    maps.into_iter().map(map).collect()
}
