//! `palimpsest completions`: what a shell needs to complete options.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Prints it.
pub fn run(shell: Shell) -> anyhow::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    crate::term::emit(&String::from_utf8(script)?)?;
    Ok(())
}
