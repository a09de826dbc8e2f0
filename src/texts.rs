//! Text files, and the text that commands take when none was named.

use std::path::Path;

use anyhow::Context;

/// The GNU General Public License, version 3: a long text that may be copied verbatim.
pub const GPL: &str = include_str!("../assets/gpl-3.0.txt");

/// Reads a text file.
pub fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} as UTF-8 text", path.display()))
}
