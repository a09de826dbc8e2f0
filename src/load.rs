//! `palimpsest bench load`: measures any server that speaks OpenAI's completions.

use crate::term;

/// What to send, and how to print what came of it.
#[derive(Debug)]
pub struct Config {
    /// The load.
    pub load: palimpsest_load::Config,
    /// One JSON object instead of a table.
    pub json: bool,
}

/// Runs the load and prints the report. Ctrl-C ends the run early and prints what was measured.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let bar = term::progress(1, "load");
    let finished = palimpsest_load::run(&config.load, stop_signal(), |progress| {
        bar.set_length(progress.scheduled);
        bar.set_position(progress.finished);
    })
    .await;
    bar.finish_and_clear();

    let finished = finished?;
    let report = finished.report();
    if config.json {
        println!("{}", report.json());
        for warning in report.warnings() {
            eprintln!("warning: {warning}");
        }
    } else {
        print!("{}", report.text());
    }
    Ok(())
}

async fn stop_signal() {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
