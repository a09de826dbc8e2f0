//! The values of a service's options: those of the command line, then of the environment, then of
//! a configuration file, then the defaults of the program.
//!
//! ```text
//! command line, environment ─clap─▶ what was given ─┐
//! palimpsest.toml ─file─▶ what the file says ───────┴─▶ the rest as further flags ─clap─▶ Cli
//! ```
//! What a file may say is read off clap's own description of the commands, and what it says passes
//! through clap as flags do. So no option is described twice, and options that exclude or need each
//! other are told from one another wherever they were set.

mod file;
mod keys;
mod places;
mod show;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::exit;

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use self::file::{File, FileError, Setting};
use self::keys::Keys;
use self::places::Places;
pub use self::show::{Shown, show};
use crate::args::Cli;

/// Commands whose options a file may set. They run for long and unattended; others are typed.
pub const SERVICES: [&str; 3] = ["serve", "coordinator", "worker"];

/// Exit code of bad usage, clap's.
const BAD_USAGE: i32 = 2;

/// The command line of this process, with what a configuration file adds. Ends the process after
/// help that was asked for, and on bad usage with exit code 2.
pub fn parse() -> Cli {
    let argv = std::env::args_os().collect();
    match resolve(argv, &Places::here(), Strictness::Whole).and_then(Resolved::into_cli) {
        Ok((cli, file)) => {
            if let Some(file) = file {
                // A file in the working directory may be a surprise: it is always named.
                eprintln!("configuration: {}", file.display());
            }
            cli
        }
        Err(refusal) => refusal.exit(),
    }
}

/// Why a command line cannot be used.
#[derive(Debug)]
pub enum Refusal {
    /// The command line, the environment, or what they make together with the file.
    Usage {
        /// What clap says.
        error: clap::Error,
        /// Where a file sets what the error speaks of.
        notes: Vec<String>,
    },
    /// The configuration file alone.
    File(FileError),
}

impl Refusal {
    /// Says it and ends the process.
    fn exit(self) -> ! {
        match self {
            Self::Usage { error, notes } if notes.is_empty() => error.exit(),
            Self::Usage { error, notes } => {
                // Standard error that nobody reads is no reason for another exit code.
                let _ = error.print();
                for note in notes {
                    eprintln!("note: {note}");
                }
                exit(error.exit_code())
            }
            Self::File(error) => {
                eprintln!("error: {error}");
                exit(BAD_USAGE)
            }
        }
    }

    fn usage(error: clap::Error) -> Self {
        Self::Usage {
            error,
            notes: Vec::new(),
        }
    }
}

impl From<FileError> for Refusal {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

/// How much of a command line must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictness {
    /// All that the command needs.
    Whole,
    /// Options that a command cannot do without may be missing: its values are only looked at.
    Partial,
}

/// A command line with what the file adds to it.
#[derive(Debug)]
struct Resolved {
    matches: ArgMatches,
    /// The file, if one was read.
    file: Option<PathBuf>,
    /// What of the file is in force.
    settings: Vec<Setting>,
}

impl Resolved {
    fn into_cli(self) -> Result<(Cli, Option<PathBuf>), Refusal> {
        let cli = Cli::from_arg_matches(&self.matches).map_err(Refusal::usage)?;
        Ok((cli, self.file))
    }
}

/// Reads `argv` and, for a service, the configuration file.
fn resolve(
    mut argv: Vec<OsString>,
    places: &Places,
    strictness: Strictness,
) -> Result<Resolved, Refusal> {
    // What clap refuses here it refuses below, with everything in place.
    let given = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(&argv)
        .map_err(Refusal::usage)?;
    let service = given
        .subcommand()
        .filter(|(name, _)| SERVICES.contains(name));
    let mut file = None;
    let mut settings = Vec::new();
    if let Some((name, flags)) = service
        && let Some(path) = places.find(flags.get_one::<OsString>("config"))?
    {
        let keys = Keys::of(&SERVICES);
        settings = File::read(&path)?.settings(&keys, name)?;
        settings.retain(|setting| !is_given(flags, &setting.id));
        let flags = settings.iter().flat_map(Setting::flags);
        // Behind `--` they would not be flags.
        let end = argv.iter().position(|arg| arg == "--");
        let end = end.unwrap_or(argv.len());
        drop(argv.splice(end..end, flags));
        file = Some(path);
    }
    let matches = command(strictness).try_get_matches_from(&argv);
    Ok(Resolved {
        matches: matches.map_err(|error| blame(error, &settings))?,
        file,
        settings,
    })
}

/// Whether an option was typed or stands in the environment.
fn is_given(flags: &ArgMatches, id: &str) -> bool {
    matches!(
        flags.value_source(id),
        Some(ValueSource::CommandLine | ValueSource::EnvVariable)
    )
}

fn command(strictness: Strictness) -> Command {
    let command = Cli::command();
    match strictness {
        Strictness::Whole => command,
        Strictness::Partial => SERVICES.iter().fold(command, |command, service| {
            command.mut_subcommand(service, |service| {
                service.mut_args(|option| option.required(false))
            })
        }),
    }
}

/// A refusal of clap's, at the place of the file that it speaks of.
fn blame(error: clap::Error, settings: &[Setting]) -> Refusal {
    let mut named = Vec::new();
    for (kind, value) in error.context() {
        if !matches!(kind, ContextKind::InvalidArg | ContextKind::PriorArg) {
            continue;
        }
        match value {
            ContextValue::String(one) => named.push(one.as_str()),
            ContextValue::Strings(several) => named.extend(several.iter().map(String::as_str)),
            _ => {}
        }
    }
    // clap names an option with its value: `--kv-budget <KV_BUDGET>`.
    let is_named = |setting: &&Setting| {
        named
            .iter()
            .any(|name| name.split([' ', '=']).next() == Some(&format!("--{}", setting.key)))
    };
    let blamed: Vec<&Setting> = settings.iter().filter(is_named).collect();
    let is_value = matches!(
        error.kind(),
        clap::error::ErrorKind::InvalidValue | clap::error::ErrorKind::ValueValidation
    );
    if let ([setting], true) = (&blamed[..], is_value) {
        return Refusal::File(setting.at.refuse(reason(&error)));
    }
    let notes = blamed.iter().map(|setting| {
        let at = &setting.at;
        format!("{}:{} sets `{}`", at.path.display(), at.line, setting.key)
    });
    let notes = notes.collect();
    Refusal::Usage { error, notes }
}

/// What clap says of a value, without what surrounds it on a terminal.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let end = ["\n\nFor more information", "\n\nUsage"]
        .iter()
        .filter_map(|end| text.find(end))
        .min();
    let text = &text[..end.unwrap_or(text.len())];
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
