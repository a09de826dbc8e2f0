//! The `palimpsest` command line: arguments in, a configuration for the command, an exit code out.
//!
//! ```text
//! args (clap) ─ plain configurations ─▶ serve · coordinator · worker · generate · eval · …
//!                                            │ over front, group, model, client, registry
//! ```
#![forbid(unsafe_code)]

mod args;
mod bench;
mod calibrate;
mod chat;
mod client;
mod completions;
mod coordinator;
mod descriptors;
mod eval;
mod front;
mod generate;
mod group;
mod health;
mod indexer;
mod inspect;
mod intake;
mod load;
mod model;
mod place;
mod progress;
mod pull;
mod quickstart;
mod registry;
mod responses;
mod runtimes;
mod serve;
mod session;
mod sessions;
mod settings;
mod shelf;
mod signals;
mod term;
mod texts;
mod traces;
mod wording;
mod worker;

use std::process::ExitCode;
use std::time::Duration;

use args::{BenchKind, Cli, Command, ConfigKind};
use bench::Kind;
use palimpsest_coordinator::membership::Deposed;
use palimpsest_worker::device::{DeviceEnd, EXIT_CODE};
use tokio::task::JoinError;

/// Time for work that blocks a thread to end when the process does.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Bad usage ends here, with exit code 2.
    let cli = settings::parse();
    end_quietly_when_nobody_reads();
    init_tracing(&cli);
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", describe(&error));
            exit_code(&error)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Quickstart(args) => block_on(quickstart::run(args.config())),
        Command::Pull(args) => pull::run(&args.config()),
        Command::Serve(args) => block_on(serve::run(args.config())),
        Command::Coordinator(args) => block_on(coordinator::run(args.config())),
        Command::Worker(args) => block_on(worker::run(args.config())),
        Command::Chat(args) => block_on(chat::run(args.config())),
        Command::Completions(args) => completions::run(args.shell),
        Command::Generate(args) => block_on(generate::run(args.config()?)),
        Command::Session(args) => block_on(session::run(args.config()?)),
        Command::Health(args) => block_on(health::run(args.config())),
        Command::Bench(args) => match args.kind {
            BenchKind::Prefill(run) => bench::run(&run.config(Kind::Prefill)),
            BenchKind::Decode(run) => bench::run(&run.config(Kind::Decode)),
            BenchKind::Load(args) => block_on(load::run(args.config()?)),
        },
        Command::Calibrate(args) => calibrate::run(&args.config()),
        Command::Eval(args) => eval::run(args.config()),
        Command::Config(args) => match args.kind {
            ConfigKind::Show(args) => settings::show(&settings::Shown::of(args, cli.config)),
        },
        Command::Inspect(args) => inspect::run(&args.path, args.json),
    }
}

/// An error and its causes in one line. A cause that the text before it ends with already is left
/// out: many errors name their cause themselves.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// 1 for failures; another one when the supervisor should start the process anew.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    if has_given_up(error) {
        ExitCode::from(EXIT_CODE)
    } else {
        ExitCode::FAILURE
    }
}

/// Whether a part broke that a process cannot do without, and that a new process has whole.
fn has_given_up(error: &anyhow::Error) -> bool {
    let is_broken = |cause: &(dyn std::error::Error + 'static)| {
        let task: Option<&JoinError> = cause.downcast_ref();
        let lead: Option<&Deposed> = cause.downcast_ref();
        cause.is::<DeviceEnd>()
            || task.is_some_and(JoinError::is_panic)
            || matches!(lead, Some(Deposed::DriverLost | Deposed::KeeperLost(_)))
    };
    error.chain().any(is_broken)
}

/// `println!` panics when the reader of a pipe has gone: see [`term::end_unread`].
fn end_quietly_when_nobody_reads() {
    let of_faults = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic
            .payload()
            .downcast_ref::<String>()
            .map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") && message.contains("Broken pipe") {
            term::end_unread();
        }
        of_faults(panic);
    }));
}

/// Runs a command that waits for others. Few threads: the kernels have their own, and this
/// machine's cores are theirs. What clients may keep busy has threads of its own: see
/// [`runtimes`].
fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let done = runtime.block_on(command);
    // A thread that waits for another rank must not keep the process from its end.
    runtime.shutdown_timeout(LEAVE_LIMIT);
    done
}

fn init_tracing(cli: &Cli) {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log).unwrap_or_else(|_| "warn".into());
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(term::is_terminal())
        .with_writer(std::io::stderr);
    if cli.log_json {
        logs.json().init()
    } else {
        logs.init()
    }
}
