//! The `palimpsest` command line: parse, run, one place that turns errors into exit codes.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod calibrate;
mod cluster;
mod embedded;
mod eval;
mod front;
mod generate;
mod health;
mod inspect;
mod load;
mod progress;
mod pull;
mod quickstart;
mod serve;
mod show;
mod term;
mod traces;

use std::process::ExitCode;

use args::{BenchKind, Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    // Bad usage ends here, with exit code 2.
    let cli = Cli::parse();
    end_quietly_when_nobody_reads();
    init_tracing(&cli);
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Quickstart(args) => runtime()?.block_on(quickstart::run(args)),
        Command::Pull(args) => {
            let path = pull::pull(&args.options())?;
            println!("{}", path.display());
            Ok(())
        }
        Command::Serve(args) => runtime()?.block_on(serve::run(args)),
        Command::Coordinator(args) => runtime()?.block_on(cluster::coordinator(args)),
        Command::Worker(args) => runtime()?.block_on(cluster::worker(args)),
        Command::Generate(args) => runtime()?.block_on(generate::run(args)),
        Command::Health(args) => runtime()?.block_on(health::run(args)),
        Command::Bench(args) => match args.kind {
            BenchKind::Prefill(run) => bench::run("prefill", &run),
            BenchKind::Decode(run) => bench::run("decode", &run),
            BenchKind::Load(args) => runtime()?.block_on(load::run(&args)),
        },
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Eval(args) => eval::run(*args),
        Command::Inspect(args) => inspect::run(&args),
    }
}

/// `println!` panics when the reader of a pipe has gone, as `head` does when it has enough: no
/// fault of ours, and an end with the code that a process has which the signal for this (SIGPIPE,
/// which Rust ignores) ended.
fn end_quietly_when_nobody_reads() {
    const CODE: i32 = 128 + 13;
    let of_faults = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic
            .payload()
            .downcast_ref::<String>()
            .map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            std::process::exit(CODE);
        }
        of_faults(panic);
    }));
}

/// Few threads: the kernels have their own, and this machine's cores are theirs.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
}

fn init_tracing(cli: &Cli) {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log).unwrap_or_else(|_| "warn".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if cli.log_json {
        logs.json().init()
    } else {
        logs.init()
    }
}
