//! Training documents: real text with facts planted in it, and tables of facts.
//!
//! The facts use words and phrasings of their own. None of them is a template, key or value of the
//! evaluation in `eval/`, so no test data is trained on.

use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::draws::Draws;
use crate::{Error, Result};

/// Words that keys are made of.
const NAMES: [&str; 18] = [
    "amber", "birch", "cobalt", "dune", "ember", "fjord", "glade", "harbor", "iris", "jade",
    "kelp", "lotus", "maple", "nectar", "onyx", "pearl", "quartz", "raven",
];
/// Share of bytes that may be control characters before a file counts as binary.
const BINARY_SHARE: usize = 100;

/// Text files of a directory, by name, binary ones left out.
///
/// # Errors
/// [`Error::Io`] for a directory or file that cannot be read.
pub fn read_directory(dir: &Path) -> Result<String> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .map_err(io(dir))?
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "txt" || e == "md"))
        .collect();
    files.sort();
    let mut text = String::new();
    for file in files {
        let bytes = std::fs::read(&file).map_err(io(&file))?;
        let control = bytes
            .iter()
            .filter(|b| **b < 32 && !b"\n\r\t\x0c".contains(b))
            .count();
        if control * BINARY_SHARE <= bytes.len() {
            text.push_str(&String::from_utf8_lossy(&bytes));
            text.push('\n');
        }
    }
    Ok(text)
}

/// What the model's chat template puts around texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns {
    /// Before the first text of the user.
    pub opening: String,
    /// Between a user's text and the answer.
    pub answer: String,
    /// Between an answer and the user's next text.
    pub next: String,
}

impl Default for Turns {
    /// For models that have no template.
    fn default() -> Self {
        Self {
            opening: String::new(),
            answer: "\n".into(),
            next: "\n\n".into(),
        }
    }
}

/// How many documents, and how long.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Documents.
    pub documents: usize,
    /// Tokens of each at most.
    pub tokens: usize,
}

/// Documents as token ids; one in three plain text, one in four a table of facts, the rest text
/// with planted facts. Each begins with `prefix`.
///
/// # Errors
/// [`Error::TooShort`] when the text does not give one document, [`Error::Tokenizer`].
pub fn documents(
    text: &str,
    tokenizer: &Tokenizer,
    prefix: &str,
    amount: Amount,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let Amount {
        documents: count,
        tokens,
    } = amount;
    // Generous bytes for the tokens of a document: cut by tokens afterwards.
    let span = tokens * 14;
    if text.len() < 2 * span {
        let found = encode(tokenizer, text)?.len();
        return Err(Error::TooShort {
            found,
            needed: 2 * span / 4,
        });
    }
    let mut draws = Draws::new(seed);
    let mut documents = Vec::with_capacity(count);
    for index in 0..count {
        let start = floor_char(text, draws.between(0, text.len() - span));
        let passage = &text[start..floor_char(text, start + span)];
        let mut ids = encode(tokenizer, passage)?;
        ids.truncate(tokens);
        let passage = tokenizer
            .decode(&ids, false)
            .map_err(|e| Error::Tokenizer(e.to_string()))?;
        let body = match index % 12 {
            3 | 7 | 11 => table(&mut draws),
            0 | 6 | 9 => passage,
            _ => plant(&passage, &mut draws),
        };
        let mut ids = encode(tokenizer, &format!("{prefix}{body}"))?;
        ids.truncate(tokens);
        documents.push(ids);
    }
    Ok(documents)
}

fn plant(passage: &str, draws: &mut Draws) -> String {
    let mut sentences: Vec<String> = passage.split(". ").map(str::to_string).collect();
    for _ in 0..draws.between(3, 8) {
        let fact = fact(draws);
        let at = draws.between(0, sentences.len());
        sentences.insert(at, fact);
    }
    sentences.join(". ")
}

fn name(draws: &mut Draws) -> &'static str {
    NAMES[draws.between(0, NAMES.len() - 1)]
}

fn fact(draws: &mut Draws) -> String {
    let (a, b) = (name(draws), name(draws));
    match draws.between(0, 4) {
        0 => format!(
            "Locker {a} opens with the code {}",
            draws.between(1000, 99_999_999)
        ),
        1 => format!(
            "{a} was assigned room {} on floor {b}",
            draws.between(100, 99_999)
        ),
        2 => format!(
            "Record {}: {a} owes {b} {} coins",
            draws.between(100, 999),
            draws.between(10, 999_999)
        ),
        3 => format!(
            "Let {a}{} be {}",
            draws.between(1, 99),
            draws.between(100, 9_999_999)
        ),
        _ => format!(
            "Parcel {a}-{b} weighs {} grams and goes to dock {}",
            draws.between(10, 99_999),
            name(draws)
        ),
    }
}

fn table(draws: &mut Draws) -> String {
    let row = |draws: &mut Draws| {
        let (a, b) = (name(draws), name(draws));
        format!("{a}-{b} -> {}\n", draws.between(10_000, 9_999_999))
    };
    (0..150).map(|_| row(draws)).collect()
}

pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer
        .encode(text, false)
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

pub(crate) fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_files_are_left_out_and_order_is_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("b.txt"), "second").expect("written");
        std::fs::write(dir.path().join("a.md"), "first").expect("written");
        std::fs::write(dir.path().join("c.txt"), [0u8; 64]).expect("written");
        std::fs::write(dir.path().join("d.bin"), "not text").expect("written");
        assert_eq!(
            read_directory(dir.path()).expect("readable"),
            "first\nsecond\n"
        );
        assert!(matches!(
            read_directory(&dir.path().join("none")),
            Err(Error::Io { .. })
        ));
    }
}
