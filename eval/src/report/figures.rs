//! Plots of retrieval.

use std::path::Path;

use super::headline::Headline;
use crate::Result;
use crate::contracts::{Budget, CacheShape, FULL};
use crate::plot::{self, Axis, Bar, Bars, Group, HeatMap, Panel, Point, Series};
use crate::record::{CellResult, Protocol, Setting};
use crate::stats::{Estimate, distinct};
use crate::store::write;
use crate::tasks::Task;

/// Writes `headline.svg`, `accuracy.svg`, `loglik.svg`, `bars.svg` where there are several tasks,
/// and `heat.svg` where depths were fixed.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn write_all(out: &Path, results: &[CellResult], headlines: &[Headline]) -> Result<()> {
    let over = "over the share of the prompt that is kept";
    let mean = headline_panels(headlines);
    let heading = "Share of the full cache's score, over the share kept";
    write(
        &out.join("headline.svg"),
        &plot::lines(&mean, heading, Some((0.0, 1.0))),
    )?;
    let accuracy = panels(results, accuracy);
    let heading = format!("Accuracy {over}, 95 % intervals");
    write(
        &out.join("accuracy.svg"),
        &plot::lines(&accuracy, &heading, Some((0.0, 1.0))),
    )?;
    let loglik = panels(results, loglik);
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

fn accuracy(r: &CellResult) -> Estimate {
    Estimate {
        value: r.accuracy,
        low: r.accuracy_low,
        high: r.accuracy_high,
    }
}

/// With its standard error.
fn loglik(r: &CellResult) -> Estimate {
    let error = r.loglik_error.unwrap_or(0.0);
    Estimate {
        value: r.loglik,
        low: r.loglik - error,
        high: r.loglik + error,
    }
}

fn at_depth(depth: Option<u32>) -> String {
    depth.map_or(String::new(), |d| format!(", needle at {d} %"))
}

/// A panel per setting, a line per cache.
fn panels(results: &[CellResult], value: fn(&CellResult) -> Estimate) -> Vec<Panel> {
    let panel = |setting: &Setting| {
        let of: Vec<&CellResult> = results
            .iter()
            .filter(|r| &r.cell.setting == setting)
            .collect();
        let series = distinct(of.iter().map(|r| r.cell.cache.line()))
            .into_iter()
            .map(|name| {
                let own = of.iter().filter(|r| r.cell.cache.line() == name);
                let points = own.map(|r| Point {
                    x: r.share,
                    y: value(r),
                });
                series(&name, points.collect())
            });
        let depth = at_depth(setting.depth);
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

fn series(name: &str, mut points: Vec<Point>) -> Series {
    points.sort_by(|a, b| a.x.total_cmp(&b.x));
    Series {
        reference: name == FULL,
        name: name.into(),
        points,
    }
}

/// A panel per length and protocol: the share of the full cache's score.
fn headline_panels(lines: &[Headline]) -> Vec<Panel> {
    let point = |l: &Headline| {
        let (low, high) = l.of_full_interval?;
        let value = l.of_full?;
        Some(Point {
            x: l.share,
            y: Estimate { value, low, high },
        })
    };
    let panel = |(length, protocol): (usize, Protocol)| {
        let own: Vec<&Headline> = lines
            .iter()
            .filter(|l| (l.length, l.protocol) == (length, protocol))
            .collect();
        let series = distinct(own.iter().map(|l| &*l.cache))
            .into_iter()
            .map(|name| {
                let points = own.iter().filter(|l| l.cache == name);
                series(name, points.filter_map(|l| point(l)).collect())
            });
        let tasks = own.first().map_or(0, |l| l.tasks.len());
        Panel {
            title: format!("mean over {tasks} tasks"),
            subtitle: format!("{length} tokens, {}", protocol.name()),
            series: series.collect(),
        }
    };
    distinct(lines.iter().map(|l| (l.length, l.protocol)))
        .into_iter()
        .map(panel)
        .collect()
}

/// What a row of bars shares beside its budget.
#[derive(Clone, Copy, PartialEq)]
struct Asked {
    length: usize,
    protocol: Protocol,
    depth: Option<u32>,
}

impl Asked {
    fn of(r: &CellResult) -> Self {
        let setting = &r.cell.setting;
        Self {
            length: setting.length,
            protocol: setting.protocol,
            depth: setting.depth,
        }
    }
}

/// A row of tasks per length, protocol, depth and budget.
fn task_bars(results: &[CellResult]) -> Vec<Bars> {
    let mut rows = Vec::new();
    for asked in distinct(results.iter().map(Asked::of)) {
        let own: Vec<&CellResult> = results.iter().filter(|r| Asked::of(r) == asked).collect();
        let tasks = distinct(own.iter().map(|r| r.cell.setting.task));
        for budget in distinct(own.iter().filter_map(|r| r.cell.cache.budget)) {
            let groups = tasks.iter().map(|task| group(&own, *task, budget));
            let (length, protocol) = (asked.length, asked.protocol.name());
            let depth = at_depth(asked.depth);
            rows.push(Bars {
                title: format!("{budget} of {length} tokens{depth}, {protocol}"),
                groups: groups.collect(),
            });
        }
    }
    rows
}

/// The bars of a task at a budget.
fn group(results: &[&CellResult], task: Task, budget: Budget) -> Group {
    let here = || results.iter().filter(|r| r.cell.setting.task == task);
    let bars = here()
        .filter(|r| r.cell.cache.budget == Some(budget))
        .map(|r| Bar {
            name: r.cell.cache.line(),
            value: accuracy(r),
        });
    Group {
        name: task.to_string(),
        bars: bars.collect(),
        full: here()
            .find(|r| r.cell.cache.policy == FULL)
            .map(|r| r.accuracy),
    }
}

/// Accuracy over depth and length, a map per task, cache and budget.
fn heat_maps(results: &[CellResult]) -> Vec<HeatMap> {
    let lengths = distinct(results.iter().map(|r| r.cell.setting.length));
    let depths = distinct(results.iter().filter_map(|r| r.cell.setting.depth));
    let maps = distinct(results.iter().map(|r| (r.cell.setting.task, &r.cell.cache)));
    let map = |(task, cache): (Task, &CacheShape)| {
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
            columns: Axis {
                name: "tokens".into(),
                labels: lengths.iter().map(ToString::to_string).collect(),
            },
            rows: Axis {
                name: "depth".into(),
                labels: depths.iter().map(|d| format!("{d} %")).collect(),
            },
            values: depths
                .iter()
                .map(|&d| lengths.iter().map(|&l| value(d, l)).collect())
                .collect(),
        }
    };
    maps.into_iter().map(map).collect()
}
