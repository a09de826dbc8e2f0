//! `config`: the settings of services, looked at.

use std::ffi::OsString;

use clap::{Args, Subcommand};

/// The settings of services.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub kind: ConfigKind,
}

/// What to do with settings.
#[derive(Debug, Subcommand)]
pub enum ConfigKind {
    /// Print every value that a service would start with, and whether it comes from a flag, the
    /// environment, the configuration file or the defaults.
    Show(ConfigShowArgs),
}

/// Settings to print.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  palimpsest config show
  palimpsest config show --json serve
  palimpsest --config palimpsest.toml config show serve --kv-budget 512")]
pub struct ConfigShowArgs {
    /// JSON instead of lines.
    #[arg(long)]
    pub json: bool,
    /// serve, coordinator or worker; all three when not given.
    pub service: Option<String>,
    /// Flags that it would be started with.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    pub flags: Vec<OsString>,
}
