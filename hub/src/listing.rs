//! What a repository holds at a revision, as the hub tells it.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::name::{is_commit, is_hex};

/// Bytes of a repository's name that a message may show.
const LONGEST_ID: usize = 200;

/// Files of a repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The commit, 40 hexadecimal digits.
    pub commit: String,
    /// Files in the order of their paths.
    pub files: Vec<Entry>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path within the repository, checked to stay within it.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// What its content hashes to; `None` where the hub does not tell.
    pub hash: Option<Hash>,
}

/// What the content of a file hashes to, in lower-case hexadecimal digits. It is the file's name in
/// a cache, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 of the content, of large files.
    Sha256(String),
    /// SHA-1 of git's object, of small ones.
    Git(String),
}

impl Hash {
    /// The digits.
    pub fn digits(&self) -> &str {
        match self {
            Self::Sha256(digits) | Self::Git(digits) => digits,
        }
    }
}

/// Why an answer is no list of files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Not the JSON that a hub sends.
    #[error("its list of files cannot be read: {0}")]
    Json(String),
    /// No commit.
    #[error("its list of files is of `{0}`, which is no commit")]
    Commit(String),
    /// A path that leaves the repository.
    #[error("its list of files has the path `{0}`, which leads out of the repository")]
    Path(String),
    /// One path twice.
    #[error("its list of files has `{0}` twice")]
    Twice(String),
    /// Something else than a hash.
    #[error("its list of files gives `{0}` another hash than SHA-256 or git's SHA-1")]
    Hash(String),
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default, rename = "blobId")]
    blob_id: Option<String>,
    #[serde(default)]
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl Listing {
    /// Reads what a hub answers to `/api/models/{repository}/revision/{revision}?blobs=true`.
    ///
    /// # Errors
    /// [`ListingError`]; nothing in an answer is trusted.
    pub fn parse(json: &[u8]) -> Result<Self, ListingError> {
        let info: Info =
            serde_json::from_slice(json).map_err(|error| ListingError::Json(error.to_string()))?;
        if !is_commit(&info.sha) {
            return Err(ListingError::Commit(info.sha));
        }
        let files: Result<Vec<_>, _> = info.siblings.into_iter().map(entry).collect();
        let mut files = files?;
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let mut seen = BTreeSet::new();
        if let Some(twice) = files.iter().find(|file| !seen.insert(&file.path)) {
            return Err(ListingError::Twice(twice.path.clone()));
        }
        Ok(Self {
            commit: info.sha,
            files,
        })
    }
}

fn entry(sibling: Sibling) -> Result<Entry, ListingError> {
    let path = sibling.rfilename;
    let is_plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', '\n'])
    };
    if !path.split('/').all(is_plain) {
        return Err(ListingError::Path(path.escape_debug().to_string()));
    }
    let (hash, bytes) = match (sibling.lfs, sibling.blob_id) {
        (Some(lfs), _) => (Some(Hash::Sha256(lfs.sha256)), lfs.size),
        // Git hashes the size too: without it nothing can be compared.
        (None, id) => match sibling.size {
            Some(size) => (id.map(Hash::Git), size),
            None => (None, 0),
        },
    };
    let is_hash = match &hash {
        Some(Hash::Sha256(digits)) => digits.len() == 64 && is_hex(digits),
        Some(Hash::Git(digits)) => digits.len() == 40 && is_hex(digits),
        None => true,
    };
    if !is_hash {
        return Err(ListingError::Hash(path));
    }
    Ok(Entry { path, bytes, hash })
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// Reads what a hub answers to `/api/models?…`: names of repositories. Whatever is no such list
/// has none.
pub fn ids(json: &[u8]) -> Vec<String> {
    let models: Vec<Model> = serde_json::from_slice(json).unwrap_or_default();
    let is_plain = |id: &String| id.len() <= LONGEST_ID && !id.contains(char::is_control);
    models
        .into_iter()
        .map(|model| model.id)
        .filter(is_plain)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn list(siblings: &str) -> Result<Listing, ListingError> {
        Listing::parse(format!(r#"{{"sha": "{COMMIT}", "siblings": [{siblings}]}}"#).as_bytes())
    }

    #[test]
    fn files_have_sizes_and_hashes() {
        let sha256 = "a".repeat(64);
        let listing = list(&format!(
            r#"{{"rfilename": "b/c.gguf", "size": 134, "blobId": "{COMMIT}",
                 "lfs": {{"sha256": "{sha256}", "size": 5, "pointerSize": 134}}}},
               {{"rfilename": "a.json", "size": 3, "blobId": "{COMMIT}"}},
               {{"rfilename": "c"}}"#
        ))
        .expect("a listing");
        assert_eq!(listing.commit, COMMIT);
        let entry = |path: &str, bytes, hash| Entry {
            path: path.into(),
            bytes,
            hash,
        };
        assert_eq!(
            listing.files,
            [
                entry("a.json", 3, Some(Hash::Git(COMMIT.into()))),
                entry("b/c.gguf", 5, Some(Hash::Sha256(sha256))),
                entry("c", 0, None),
            ]
        );
    }

    #[test]
    fn paths_and_hashes_that_would_leave_the_cache_are_refused() {
        for path in [
            "../x", "/x", "a//b", "a/./b", "a/..", "", r"a\\b", r"a\u0000",
        ] {
            let refused = list(&format!(r#"{{"rfilename": "{path}"}}"#));
            assert!(
                matches!(refused, Err(ListingError::Path(_))),
                "{path}: {refused:?}"
            );
        }
        for id in ["../../x", "abc", "A123456789abcdef0123456789abcdef01234567"] {
            let refused = list(&format!(
                r#"{{"rfilename": "a", "size": 1, "blobId": "{id}"}}"#
            ));
            assert_eq!(refused, Err(ListingError::Hash("a".into())), "{id}");
        }
        let twice = r#"{"rfilename": "a"}, {"rfilename": "a"}"#;
        assert_eq!(list(twice), Err(ListingError::Twice("a".into())));
        let other = Listing::parse(br#"{"sha": "main"}"#);
        assert_eq!(other, Err(ListingError::Commit("main".into())));
        assert!(matches!(
            Listing::parse(b"<html>"),
            Err(ListingError::Json(_))
        ));
    }

    #[test]
    fn names_of_repositories_are_read() {
        let json = br#"[{"id": "a/b", "likes": 1}, {"id": "c\u001b[0m/d"}, {"id": "e/f"}]"#;
        assert_eq!(ids(json), ["a/b", "e/f"]);
        assert!(ids(b"<html>").is_empty());
    }

    #[test]
    fn a_file_of_unknown_size_has_no_checksum() {
        let listing = list(&format!(r#"{{"rfilename": "a", "blobId": "{COMMIT}"}}"#));
        assert_eq!(listing.expect("a listing").files[0].hash, None);
    }

    proptest! {
        #[test]
        fn whatever_a_hub_says_is_read_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = Listing::parse(&bytes);
            let _ = ids(&bytes);
        }
    }
}
