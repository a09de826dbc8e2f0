//! Tables and plots of a grid.

use crate::Result;
use crate::contracts::FULL;
use crate::grid::{CellResult, Setting};
use crate::headline::{self, Headline};
use crate::plot::{self, HeatMap, Panel, Series};
use crate::store::write;
use std::fmt::Write;
use std::path::Path;

/// Writes `table.md`, `accuracy.svg`, `loglik.svg`, and `heat.svg` where depths were fixed.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn write_all(out: &Path, results: &[CellResult], headlines: &[Headline]) -> Result<()> {
    write(&out.join("table.md"), &format!("{}{}", headline::table(headlines), table(results)))?;
    let accuracy = panels(results, |r| (r.accuracy, r.accuracy_low, r.accuracy_high));
    let label = "share of the prompt kept";
    write(&out.join("accuracy.svg"), &plot::lines(&accuracy, label, "accuracy", Some((0.0, 1.0))))?;
    let loglik = panels(results, |r| {
        let error = r.loglik_error.unwrap_or(0.0);
        (r.loglik, r.loglik - error, r.loglik + error)
    });
    write(&out.join("loglik.svg"), &plot::lines(&loglik, label, "log-likelihood per answer token", None))?;
    if results.iter().any(|r| r.cell.setting.depth.is_some()) {
        write(&out.join("heat.svg"), &plot::heat(&heat_maps(results)))?;
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
    let depth = setting.depth.map_or(String::new(), |d| format!(" at {d} %"));
    format!("{} {}{depth}, {}", setting.task, setting.length, setting.protocol.name())
}

/// A Markdown table per setting: a row per cache, a column per budget.
pub fn table(results: &[CellResult]) -> String {
    let mut text = String::new();
    for setting in distinct(results.iter().map(|r| &r.cell.setting)) {
        let of: Vec<&CellResult> = results.iter().filter(|r| &r.cell.setting == setting).collect();
        let budgets = distinct(of.iter().map(|r| r.cell.cache.budget));
        let n = of.iter().map(|r| r.n).min().unwrap_or(0);
        let name = |b: &Option<_>| b.as_ref().map_or("all".to_string(), ToString::to_string);
        let names: Vec<String> = budgets.iter().map(name).collect();
        let metric = format!("{:?}", setting.metric).to_lowercase();
        let _ = writeln!(
            text,
            "### {}\n\n{}; n = {n}, seed {}, stride {}. Cells: {metric} accuracy [95 % interval] / log-likelihood per \
             answer token ± standard error @ share really held.\n",
            title(setting),
            setting.model,
            setting.seed,
            setting.stride
        );
        let _ = writeln!(text, "| cache | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
        for line in distinct(of.iter().map(|r| r.cell.cache.line())) {
            let cell = |budget: &Option<_>| {
                let found = of.iter().find(|r| r.cell.cache.line() == line && r.cell.cache.budget == *budget);
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
    let error = r.loglik_error.map_or(String::new(), |e| format!(" ± {e:.2}"));
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
        let of: Vec<&CellResult> = results.iter().filter(|r| &r.cell.setting == setting).collect();
        let series = distinct(of.iter().map(|r| r.cell.cache.line())).into_iter().map(|name| {
            let own = of.iter().filter(|r| r.cell.cache.line() == name);
            let mut points: Vec<_> = own
                .map(|r| {
                    let (y, low, high) = value(r);
                    (r.share, y, low, high)
                })
                .collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { reference: name == FULL, name, points }
        });
        Panel { title: title(setting), series: series.collect() }
    };
    distinct(results.iter().map(|r| &r.cell.setting)).into_iter().map(panel).collect()
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
        let budget = cache.budget.map_or("everything".to_string(), |b| b.to_string());
        HeatMap {
            title: format!("{task}, {}, {budget}: accuracy", cache.line()),
            columns: (lengths.iter().map(ToString::to_string).collect(), "tokens".into()),
            rows: (depths.iter().map(|d| format!("{d} %")).collect(), "depth".into()),
            values: depths.iter().map(|&d| lengths.iter().map(|&l| value(d, l)).collect()).collect(),
        }
    };
    maps.into_iter().map(map).collect()
}
