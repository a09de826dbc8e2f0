//! Where a configuration file is looked for, and whose it may be.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::file::FileError;

/// Name of a file that is found without being named.
const NAME: &str = "palimpsest.toml";
/// Permission of everybody to write.
const WORLD_WRITABLE: u32 = 0o002;

/// Directories in which a file is found without being named.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Looked at first.
    pub working: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`, else `~/.config`.
    pub config_home: Option<PathBuf>,
}

impl Places {
    /// Those of this process.
    pub fn here() -> Self {
        let directory = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let home = || Some(directory("HOME")?.join(".config"));
        Self {
            working: Some(PathBuf::from(".")),
            config_home: directory("XDG_CONFIG_HOME").or_else(home),
        }
    }

    /// The file to read. One that was `named` must be there; an empty name stands for none. One
    /// that is found must be this user's or root's, and not everybody's to write: whoever can put
    /// a file into a directory could otherwise choose keys and ports of a service started there.
    ///
    /// # Errors
    /// When one is found that is somebody else's.
    pub fn find(&self, named: Option<&OsString>) -> Result<Option<PathBuf>, FileError> {
        if let Some(named) = named {
            return Ok((!named.is_empty()).then(|| PathBuf::from(named)));
        }
        let working = self.working.as_ref().map(|place| in_directory(place));
        let home = self.config_home.as_ref();
        let home = home.map(|place| place.join("palimpsest").join(NAME));
        for path in working.into_iter().chain(home) {
            if is_there(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}

/// `palimpsest.toml` rather than `./palimpsest.toml`, as people name it.
fn in_directory(place: &Path) -> PathBuf {
    if place.as_os_str() == OsStr::new(".") {
        PathBuf::from(NAME)
    } else {
        place.join(NAME)
    }
}

fn is_there(path: &Path) -> Result<bool, FileError> {
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(false);
        }
        Err(error) => return Err(FileError::of(path, format!("cannot be read: {error}"))),
    };
    let own = [rustix::process::geteuid().as_raw(), 0].contains(&meta.uid());
    if !own || meta.mode() & WORLD_WRITABLE != 0 {
        let whose = if own {
            "everybody may write to it"
        } else {
            "it is another user's"
        };
        let what = format!(
            "not read, because {whose}: name it with --config if it is meant, or leave it out \
             with PALIMPSEST_CONFIG= (nothing behind the sign)"
        );
        return Err(FileError::of(path, what));
    }
    Ok(true)
}
