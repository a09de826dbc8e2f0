//! JSON lines on disk: what lets a run go on where it stopped.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// Wraps an I/O error with the path.
pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { path, source }
}

/// A file of records, appended to one line at a time.
pub struct Store {
    path: PathBuf,
    file: std::fs::File,
}

impl Store {
    /// Opens or creates a file and reads what is in it. A last line without its end, left by a run
    /// that was killed, is removed.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Record`] for a line that is none of this kind.
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, Vec<T>)> {
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .create(true)
            .append(true)
            .open(path)
            .map_err(io(path))?;
        let text = std::fs::read_to_string(path).map_err(io(path))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(io(path))?;
        }
        let records = parse(path, &text[..whole])?;
        Ok((
            Self {
                path: path.into(),
                file,
            },
            records,
        ))
    }

    /// Appends a record and hands it to the system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let mut line = to_json(record);
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(io(&self.path))
    }
}

/// The records of a file. A last line without its end, left by a run that was killed or is still
/// going on, is left out.
///
/// # Errors
/// [`Error::Io`]; [`Error::Record`] for a line that is none of this kind.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    parse(path, &text[..whole])
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<Vec<T>> {
    let record = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| Error::Record {
            path: path.into(),
            line: index + 1,
            message: e.to_string(),
        })
    };
    text.lines().enumerate().map(record).collect()
}

/// Writes a file of records anew.
///
/// # Errors
/// [`Error::Io`].
pub fn write_lines<T: Serialize>(path: &Path, records: &[T]) -> Result<()> {
    let text: String = records.iter().map(|r| to_json(r) + "\n").collect();
    write(path, &text)
}

/// Writes a text file.
///
/// # Errors
/// [`Error::Io`].
pub fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(io(path))
}

fn to_json<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("records are plain structures with string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_line_is_dropped_and_a_wrong_one_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, "1\n2\n3").expect("written");
        let (mut store, records) = Store::open::<u32>(&path).expect("readable");
        assert_eq!(records, [1, 2]);
        store.append(&4u32).expect("written");
        drop(store);
        let (_, records) = Store::open::<u32>(&path).expect("readable");
        assert_eq!(records, [1, 2, 4]);
        std::fs::write(&path, "1\nx\n2\n").expect("written");
        assert!(matches!(
            Store::open::<u32>(&path),
            Err(Error::Record { line: 2, .. })
        ));
    }
}
