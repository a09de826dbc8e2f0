//! Files of the cache directory, which others may be able to write to: a symbolic link in the place
//! of one is refused, not followed, and what is written is renamed into place.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

fn options(flags: OFlags) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags((OFlags::NOFOLLOW | flags).bits() as i32);
    options
}

/// Opens a regular file for reading.
///
/// # Errors
/// What the system says; `InvalidInput` for a directory, a device or a pipe.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // A pipe that nobody writes to must not hold this process up.
    let file = options(OFlags::NONBLOCK).read(true).open(path)?;
    regular(file)
}

/// The file, if it is a regular one.
fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let kind = io::ErrorKind::InvalidInput;
    Err(io::Error::new(kind, "not a regular file"))
}

/// Reads a short text that this user or root has written, because others may say what they like;
/// an error when it is longer than `most` bytes.
///
/// # Errors
/// As [`open`], `PermissionDenied` for another user's file, and `InvalidData` for what is no text
/// or too long.
pub(crate) fn read_own(path: &Path, most: u64) -> io::Result<String> {
    let file = open(path)?;
    let owner = file.metadata()?.uid();
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        let kind = io::ErrorKind::PermissionDenied;
        return Err(io::Error::new(kind, "another user's file"));
    }
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    Ok(text)
}

/// Opens a lock file, which is made where there is none. What it holds stays: it may be another's.
///
/// # Errors
/// What the system says.
pub(crate) fn open_lock(path: &Path) -> io::Result<File> {
    // As in `open`: a pipe that nobody reads must not hold this process up.
    let file = options(OFlags::NONBLOCK)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    regular(file)
}

/// A new file in `directory` that is to be renamed into place, as readable as any other.
///
/// # Errors
/// What the system says.
pub(crate) fn staged(directory: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(directory)
}
