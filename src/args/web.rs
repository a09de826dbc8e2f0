//! What clients call the model, whose pages may ask, and the page of our own.

use clap::Args;
use palimpsest_coordinator::origins::{AllowedOrigins, BadOrigin};

/// Bytes of a model's name at most: requests and answers repeat it.
const MAX_NAME_BYTES: usize = 256;

/// What clients call the model, whose pages may ask, and the page of our own.
#[derive(Debug, Args)]
pub struct WebArgs {
    /// What clients call the model, instead of the name that it has: several names are all
    /// taken, and answers show the first.
    #[arg(
        long,
        env = "PALIMPSEST_SERVED_MODEL_NAME",
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = model_name,
        help_heading = "Listening"
    )]
    pub served_model_name: Vec<String>,
    /// Pages of this origin, such as `https://app.example`, may ask over HTTP and read the answers
    /// (several; `*` for any). Keys are asked for as before.
    #[arg(
        long,
        env = "PALIMPSEST_CORS",
        value_name = "ORIGIN",
        num_args = 1..,
        value_delimiter = ',',
        value_parser = origin,
        help_heading = "Who may ask"
    )]
    pub cors: Vec<String>,
    /// No page for people at `/console`.
    #[arg(long, env = "PALIMPSEST_NO_CONSOLE", help_heading = "Listening")]
    pub no_console: bool,
}

/// A page's origin, or `*`.
fn origin(text: &str) -> Result<String, BadOrigin> {
    AllowedOrigins::new([text]).map(|_| text.to_owned())
}

/// A name that fits into requests, answers and logs.
fn model_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty()
        && text.len() <= MAX_NAME_BYTES
        && !text.contains(|c: char| c.is_control() || c.is_whitespace());
    if is_name {
        return Ok(text.to_owned());
    }
    Err(format!(
        "give a name of 1 to {MAX_NAME_BYTES} bytes without spaces"
    ))
}
