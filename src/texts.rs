//! Text files, and the text that commands take when none was named.

use std::path::Path;

use anyhow::Context;

/// The GNU General Public License, version 3: a long text that may be copied verbatim.
pub const GPL: &str = include_str!("../assets/gpl-3.0.txt");

/// Texts that the program has in it, enough to train an indexer from: its book. No evaluation
/// measures on them.
pub const OWN: [&str; 10] = [
    include_str!("../docs/src/concepts.md"),
    include_str!("../docs/src/operating.md"),
    include_str!("../docs/src/api.md"),
    include_str!("../docs/src/troubleshooting.md"),
    include_str!("../docs/src/sessions.md"),
    include_str!("../docs/src/reuse.md"),
    include_str!("../docs/src/models.md"),
    include_str!("../docs/src/budget.md"),
    include_str!("../docs/src/protocols.md"),
    include_str!("../ARCHITECTURE.md"),
];

/// Reads a text file.
pub fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {} as UTF-8 text", path.display()))
}
