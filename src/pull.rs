//! `palimpsest pull`, and models of other commands that are fetched when they are needed.

use std::cell::RefCell;
use std::path::PathBuf;

use palimpsest_models::fetch::{FetchOptions, Progress, Stage, fetch};

use crate::term;

/// Fetches a model and prints the path of its file.
pub fn run(model: &str) -> anyhow::Result<()> {
    println!("{}", model_file(model)?.display());
    Ok(())
}

/// The path of a model's file or directory. A known model is fetched first, with a progress bar,
/// when it is not in the cache.
pub fn model_file(model: &str) -> anyhow::Result<PathBuf> {
    let options = FetchOptions {
        model: model.into(),
        cache_dir: None,
    };
    let bar = RefCell::new(None);
    let draw = |progress: Progress| {
        let mut bar = bar.borrow_mut();
        let (stage, bar) = bar.get_or_insert_with(|| start(progress));
        if *stage != progress.stage {
            bar.finish_and_clear();
            (*stage, *bar) = start(progress);
        }
        bar.set_position(progress.done);
    };
    let fetched = fetch(&options, &draw);
    if let Some((_, bar)) = bar.into_inner() {
        bar.finish_and_clear();
    }
    Ok(fetched?)
}

/// A stage and its bar.
fn start(progress: Progress) -> (Stage, indicatif::ProgressBar) {
    let what = match progress.stage {
        Stage::Download => "downloading",
        Stage::Extract => "extracting",
        Stage::Verify => "verifying",
    };
    (progress.stage, term::transfer(progress.total, what))
}
