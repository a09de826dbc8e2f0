//! How a model is named: `owner/name`, with a tag of a quantisation and a revision.

use std::fmt;
use std::str::FromStr;

/// Characters of an owner or a name at most, the hub's own limit.
const LONGEST: usize = 96;
/// Characters of a revision at most.
const LONGEST_REVISION: usize = 255;
/// What other programs write before a name.
const PREFIXES: [&str; 3] = ["hf://", "hf.co/", "huggingface.co/"];

/// `owner/name`, `owner/name:TAG`, `owner/name:TAG@REVISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    owner: String,
    name: String,
    /// Of several files the one with this quantisation, or of this name.
    pub tag: Option<String>,
    /// Branch, tag or commit of the repository; `main` when `None`.
    pub revision: Option<String>,
}

impl ModelName {
    /// `owner/name`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// The revision that is meant.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Folder of the repository in a cache: `models--owner--name`.
    pub(crate) fn folder(&self) -> String {
        format!("models--{}--{}", self.owner, self.name)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// Why a text is no name of a model on a hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not two parts.
    #[error("a model of a hub is named owner/name, owner/name:TAG or owner/name:TAG@REVISION")]
    Form,
    /// A part with other characters, or too long.
    #[error(
        "`{0}` is no name on a hub: letters, digits, `-`, `_` and single dots, at most {LONGEST}"
    )]
    Part(String),
    /// A tag with other characters.
    #[error("`{0}` is no tag of a file, such as Q4_K_M")]
    Tag(String),
    /// A revision with other characters.
    #[error("`{0}` is no revision: a branch, a tag or a commit")]
    Revision(String),
}

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let text = PREFIXES
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        let (text, revision) = split(text, '@');
        let (revision, late_tag) = match revision.map(|revision| split(revision, ':')) {
            Some((revision, tag)) => (Some(revision), tag),
            None => (None, None),
        };
        let (text, tag) = split(text, ':');
        if tag.is_some() && late_tag.is_some() {
            return Err(NameError::Form);
        }
        let (owner, name) = text.split_once('/').ok_or(NameError::Form)?;
        if name.contains('/') {
            return Err(NameError::Form);
        }
        for part in [owner, name] {
            // A host of a hub is nobody's name: written twice, it would be read once.
            let is_host = PREFIXES
                .iter()
                .any(|prefix| prefix.trim_end_matches('/') == part);
            if !is_part(part) || is_host {
                return Err(NameError::Part(part.to_owned()));
            }
        }
        // Ollama's name for the one that is taken when none is named.
        let tag = tag.or(late_tag).filter(|tag| *tag != "latest");
        if let Some(bad) = tag.filter(|tag| !is_word(tag)) {
            return Err(NameError::Tag(bad.to_owned()));
        }
        if let Some(bad) = revision.filter(|revision| !is_revision(revision)) {
            return Err(NameError::Revision(bad.to_owned()));
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
            revision: revision.map(str::to_owned),
        })
    }
}

fn split(text: &str, at: char) -> (&str, Option<&str>) {
    match text.split_once(at) {
        Some((before, after)) => (before, Some(after)),
        None => (text, None),
    }
}

fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    !text.is_empty() && text.chars().all(allowed) && !text.contains("..")
}

/// `--` would make two repositories one folder of the cache.
fn is_part(text: &str) -> bool {
    let ends = ['.', '-'];
    is_word(text)
        && text.len() <= LONGEST
        && !text.contains("--")
        && !text.starts_with(ends)
        && !text.ends_with(ends)
}

/// It becomes a part of an address and a file below `refs`.
fn is_revision(text: &str) -> bool {
    text.len() <= LONGEST_REVISION
        && text
            .split('/')
            .all(|part| is_word(part) && !part.starts_with('.'))
}

/// Whether a revision names a commit, which never changes.
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && is_hex(revision)
}

pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_other_programs_write_them() {
        for (text, repository, tag, revision) in [
            (
                "Qwen/Qwen2.5-0.5B-Instruct",
                "Qwen/Qwen2.5-0.5B-Instruct",
                None,
                "main",
            ),
            (
                "unsloth/Qwen3-8B-GGUF:Q4_K_M",
                "unsloth/Qwen3-8B-GGUF",
                Some("Q4_K_M"),
                "main",
            ),
            ("hf.co/a/b:latest", "a/b", None, "main"),
            ("a/b@v1.0", "a/b", None, "v1.0"),
            ("a/b:Q8_0@refs/pr/1", "a/b", Some("Q8_0"), "refs/pr/1"),
            ("a/b@refs/pr/1:Q8_0", "a/b", Some("Q8_0"), "refs/pr/1"),
            ("a/b:model.gguf", "a/b", Some("model.gguf"), "main"),
        ] {
            let name: ModelName = text.parse().expect(text);
            assert_eq!(name.repository(), repository);
            assert_eq!(name.tag.as_deref(), tag);
            assert_eq!(name.revision(), revision);
        }
    }

    #[test]
    fn what_could_leave_the_cache_is_no_name() {
        for text in [
            "",
            "a",
            "a/b/c",
            "/b",
            "a/",
            "../b",
            "a/..",
            "a/b--c",
            "a/.b",
            "a/b:",
            "a/b:../c",
            "a/b@",
            "a/b@../main",
            "a/b@/main",
            "a/b@a//b",
            "a/b:Q4@x:Q8",
            "a b/c",
            "a/b\n",
            "a/b@main\0",
            "hf.co/hf.co/a",
        ] {
            assert!(text.parse::<ModelName>().is_err(), "{text:?}");
        }
        let long = format!("a/{}", "b".repeat(97));
        assert_eq!(
            long.parse::<ModelName>(),
            Err(NameError::Part("b".repeat(97)))
        );
    }
}
