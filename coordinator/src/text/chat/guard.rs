//! Control tokens that clients spell stay text.
//!
//! Templates look at texts: they strip them, take them apart at `</think>`, ask what they begin
//! with. So a client's words cannot be replaced while the template runs. They go through it with a
//! mark behind each character that could begin a control token. No control token of the model is
//! then found in them, also not after the template has put pieces of them together or left some
//! out. The mark is a noncharacter that neither the conversation nor the template has, and is gone
//! before words are cut into tokens, so these are the tokens of plain text.
//!
//! What the template itself looks for (a literal of its source, such as `'</think>'`) and what the
//! tokenizer has as text beside its vocabulary (`special: false`) stays as it is.
//!
//! This holds for tokens that the tokenizer calls special, and for those between `<|` and `|>` or
//! between `<｜` and `｜>` whatever it calls them: some files have the marks of roles as text
//! (`<｜User｜>` of DeepSeek's distilled models). A model whose roles are set apart by
//! plain text (`[INST]` of the first Mistral models, `### User:`) has nothing that could be told
//! from a client's words.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;

use crate::text::error::Error;
use crate::text::rendered::unused_marks;
use crate::text::tokenizer::{Tokenizer, beginnings, begins_with_any};

/// Literals shorter than this say nothing.
const LEAST_LITERAL: usize = 3;

/// Where marks go in a client's words.
#[derive(Debug, Clone, Default)]
pub(super) struct Guard {
    /// First characters of control tokens.
    openings: Vec<char>,
    /// Finds what begins with one of them and is none.
    kept: Option<AhoCorasick>,
}

impl Guard {
    /// The guard for a template and the tokenizer of its model.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] for a template of more literals than can be found.
    pub(super) fn new(source: &str, tokenizer: &Tokenizer) -> Result<Self, Error> {
        let controls: Vec<&str> = tokenizer
            .added(true)
            .filter(|text| !text.is_empty())
            .collect();
        let mut openings: Vec<char> = controls
            .iter()
            .filter_map(|text| text.chars().next())
            .collect();
        openings.sort_unstable();
        openings.dedup();
        let own = literals(source).into_iter();
        let texts = tokenizer.added(false).map(str::to_owned);
        let kept: BTreeSet<String> = own
            .chain(texts)
            .filter_map(|text| keepable(&text, &openings, &controls))
            .collect();
        let kept = beginnings(kept.iter().map(String::as_str))?;
        Ok(Self {
            openings,
            kept: Some(kept),
        })
    }

    /// Adds a client's words to `out`, with their marks.
    pub(super) fn push(&self, out: &mut String, words: &str, mark: char) {
        let mut from = 0;
        for (at, opening) in words.match_indices(&self.openings[..]) {
            let kept = self.kept.as_ref();
            if kept.is_some_and(|kept| begins_with_any(kept, &words[at..])) {
                continue;
            }
            let end = at + opening.len();
            out.push_str(&words[from..end]);
            out.push(mark);
            from = end;
        }
        out.push_str(&words[from..]);
    }

    /// Whether nothing is ever marked.
    pub(super) fn is_empty(&self) -> bool {
        self.openings.is_empty()
    }
}

/// A mark for places, and one for the end of a message, that nobody has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    pub(super) place: char,
    pub(super) end: char,
}

impl Marks {
    pub(super) fn unused(has: impl Fn(char) -> bool) -> Option<Self> {
        unused_marks(has).map(|[place, end]| Self { place, end })
    }
}

/// As much of a text as can stay unmarked: up to its second opening, if no control token can begin
/// with its first.
fn keepable(text: &str, openings: &[char], controls: &[&str]) -> Option<String> {
    let first = text.chars().next().filter(|c| openings.contains(c))?;
    let rest = &text[first.len_utf8()..];
    let end = rest
        .find(openings)
        .map_or(text.len(), |at| first.len_utf8() + at);
    let kept = &text[..end];
    let is_risky = |control: &&str| control.starts_with(kept) || kept.starts_with(*control);
    let is_kept = kept.chars().count() >= LEAST_LITERAL && !controls.iter().any(is_risky);
    is_kept.then(|| kept.to_owned())
}

/// Strings of a template's expressions, each up to its first escape.
fn literals(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        let mut chars = rest[at + 2..].char_indices();
        let (mut literal, mut quote): (Option<String>, Option<char>) = (None, None);
        let mut last = '\0';
        let mut end = rest.len();
        while let Some((place, c)) = chars.next() {
            match quote {
                None if last != '\0' && matches!((last, c), ('}' | '%', '}')) => {
                    end = at + 2 + place + 1;
                    break;
                }
                None if c == '\'' || c == '"' => (quote, literal) = (Some(c), Some(String::new())),
                None => {}
                Some(open) if c == open => {
                    found.extend(literal.take());
                    quote = None;
                }
                Some(_) if c == '\\' => {
                    found.extend(literal.take());
                    chars.next();
                }
                Some(_) => {
                    if let Some(literal) = &mut literal {
                        literal.push(c);
                    }
                }
            }
            last = c;
        }
        rest = &rest[end..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_expressions_are_found_and_those_of_the_text_are_not() {
        let source = "it's {{ 'a' + \"b'\" }} isn't {% if x == '</think>\\n' %}{{- 'c}}' -}}";
        assert_eq!(literals(source), ["a", "b'", "</think>", "c}}"]);
        assert!(literals("{{ 'open").is_empty());
    }

    #[test]
    fn what_could_become_a_control_token_is_not_kept() {
        let controls = ["<|im_end|>", "</s>"];
        let kept = |text| keepable(text, &['<'], &controls);
        assert_eq!(kept("</think>").as_deref(), Some("</think>"));
        assert_eq!(kept("<a><|im").as_deref(), Some("<a>"));
        for text in ["<|", "<|im_end|>\n", "</s>", "</s", "plain", "<a", ""] {
            assert_eq!(kept(text), None, "{text}");
        }
    }
}
