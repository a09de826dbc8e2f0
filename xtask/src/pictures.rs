//! `cargo xtask pictures`: what documents show of the console, made anew with the default model.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process::{cargo_with, run};
use crate::test::{CHROMIUM, CHROMIUM_VARIABLE, CLUSTER, MODEL_VARIABLE, fetch_model};
use crate::tools;

/// Where they are kept.
const FOLDER: &str = "docs/src/images";
/// Bytes of each at most: everybody who clones the repository has them.
const MOST_BYTES: u64 = 160_000;

/// Makes the pictures.
///
/// # Errors
/// When a browser or the model is missing, the console does not do what is shown, or a picture is
/// too large.
pub fn make() -> Result<()> {
    tools::install_system_packages()?;
    let model = fetch_model()?;
    let folder = std::path::absolute(FOLDER)?;
    let mut test = cargo_with(&["test", "--locked", "--test", "console", "pictures"]);
    // With the features that all was built with already.
    test.args(CLUSTER)
        .args(["--", "--ignored", "--nocapture"])
        .env(CHROMIUM_VARIABLE, CHROMIUM)
        .env(MODEL_VARIABLE, &model)
        .env("PALIMPSEST_PICTURES", &folder);
    run(&mut test)?;
    for entry in folder.read_dir().context(FOLDER)? {
        check_size(&entry?.path())?;
    }
    Ok(())
}

/// Refuses a picture that is too large.
fn check_size(path: &Path) -> Result<()> {
    let bytes = path.metadata()?.len();
    let name = path.display();
    ensure!(
        bytes <= MOST_BYTES,
        "{name} has {bytes} bytes, over {MOST_BYTES}"
    );
    Ok(())
}
