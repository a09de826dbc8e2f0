//! Incremental decoding: token by token, never half a character.

use std::sync::Arc;

use super::tokenizer::{Decoding, Tokenizer};

/// Turns a growing list of token ids into text whose concatenation is the decoding of the whole
/// list.
///
/// Byte-level tokenizers are exact for every sequence of tokens, valid UTF-8 or not: their decoding
/// is the lossy UTF-8 decoding of concatenated bytes. Others (SentencePiece and the like) decode a
/// token by its neighbours; for them a window of recent tokens is decoded with and without the new
/// one, and the difference is the new text (as vLLM and TGI do). There the result is exact for text
/// that is valid UTF-8; their decoders turn a whole run of bytes into U+FFFD if its end is invalid,
/// which no incremental decoder can foresee.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Bytes of a character that is not complete yet.
    pending: Vec<u8>,
    /// Recent ids; `window[..read]` have been given out as text.
    window: Vec<u32>,
    read: usize,
    shown: Shown,
}

/// Control tokens whose text is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Shown {
    /// None of them.
    #[default]
    None,
    /// These.
    Some(Vec<u32>),
    /// All.
    All,
}

/// Prompt tokens that give the first generated ones their neighbours.
const CONTEXT_TOKENS: usize = 6;
/// Tokens of one unfinished character: at most 4 bytes, but a run of undecodable bytes looks the
/// same.
const MAX_UNFINISHED: usize = 16;

impl Detokenizer {
    /// A decoder of what follows `prompt`.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let window = match tokenizer.decoding {
            Decoding::Bytes => Vec::new(),
            Decoding::Chain => prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..].to_vec(),
        };
        Self {
            tokenizer,
            pending: Vec::new(),
            read: window.len(),
            window,
            shown: Shown::None,
        }
    }

    /// The same decoder, which shows the text of some control tokens.
    #[must_use]
    pub fn showing(self, shown: Shown) -> Self {
        Self { shown, ..self }
    }

    /// Text that is complete with this token; often empty.
    pub fn push(&mut self, id: u32) -> String {
        let is_shown = match &self.shown {
            Shown::None => false,
            Shown::Some(ids) => ids.contains(&id),
            Shown::All => self.tokenizer.is_special(id),
        };
        match self.tokenizer.decoding {
            Decoding::Bytes => {
                if is_shown || !self.tokenizer.is_special(id) {
                    self.pending.extend(self.tokenizer.bytes(id));
                }
                take_characters(&mut self.pending)
            }
            Decoding::Chain => {
                let mut text = String::new();
                if is_shown {
                    // The library gives it no text, so it only parts what is before and behind it.
                    text = self.advance(true);
                    text.push_str(&String::from_utf8_lossy(&self.tokenizer.bytes(id)));
                }
                self.window.push(id);
                text.push_str(&self.advance(false));
                text
            }
        }
    }

    /// Whether all text of the tokens so far was given out: no part of a character waits.
    pub fn is_whole(&self) -> bool {
        self.pending.is_empty() && self.read == self.window.len()
    }

    /// What is left at the end: U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> String {
        match self.tokenizer.decoding {
            Decoding::Bytes => {
                String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
            }
            Decoding::Chain => self.advance(true),
        }
    }

    fn advance(&mut self, all: bool) -> String {
        let before = self.tokenizer.decode(&self.window[..self.read]);
        let after = self.tokenizer.decode(&self.window);
        let unfinished =
            after.ends_with('\u{FFFD}') && self.window.len() - self.read < MAX_UNFINISHED;
        if unfinished && !all {
            return String::new();
        }
        let new = after.get(before.len()..).unwrap_or_default().to_owned();
        if !new.is_empty() {
            // Keep what was just read as the context of the next token.
            self.window.drain(..self.read);
            self.read = self.window.len();
        } else if self.window.len() > 4 * MAX_UNFINISHED {
            // Only tokens without text, such as special ones: they need no context.
            self.window.drain(..self.window.len() - CONTEXT_TOKENS);
            self.read = self.window.len();
        }
        new
    }
}

/// Takes the complete characters out of `bytes`, and U+FFFD for what cannot become one, exactly as
/// lossy decoding of the whole would.
fn take_characters(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut taken = 0;
    loop {
        match std::str::from_utf8(&bytes[taken..]) {
            Ok(valid) => {
                text.push_str(valid);
                taken = bytes.len();
                break;
            }
            Err(error) => {
                let valid = taken + error.valid_up_to();
                text.push_str(std::str::from_utf8(&bytes[taken..valid]).expect("valid up to here"));
                taken = valid;
                let Some(invalid) = error.error_len() else {
                    break;
                };
                text.push('\u{FFFD}');
                taken += invalid;
            }
        }
    }
    bytes.drain(..taken);
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tokenizer::tests::*;
    use super::*;

    fn pieces(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), prompt);
        let mut out: Vec<_> = ids.iter().map(|&id| detokenizer.push(id)).collect();
        out.push(detokenizer.finish());
        out
    }

    fn byte_level() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::from_bytes(&byte_level_json()).unwrap())
    }

    fn sentencepiece() -> Arc<Tokenizer> {
        Arc::new(Tokenizer::from_bytes(&sentencepiece_json()).unwrap())
    }

    proptest! {
        #[test]
        fn byte_level_is_exact_for_any_ids(ids in prop::collection::vec(0..270u32, 0..60)) {
            let tokenizer = byte_level();
            prop_assert_eq!(pieces(&tokenizer, &[], &ids).concat(), tokenizer.decode(&ids));
        }

        #[test]
        fn texts_come_back_whole_from_both_kinds(text in "( |hello|world|é|👍🏽|字|\n|a|  ){0,20}") {
            for tokenizer in [byte_level(), sentencepiece()] {
                let ids = tokenizer.encode(&text, false).unwrap();
                let pieces = pieces(&tokenizer, &[], &ids);
                prop_assert_eq!(pieces.concat(), tokenizer.decode(&ids));
                prop_assert_eq!(pieces.concat(), text.clone());
                let whole = pieces.iter().all(|piece| !piece.contains(char::REPLACEMENT_CHARACTER));
                prop_assert!(whole);
            }
        }
    }

    #[test]
    fn an_emoji_over_four_tokens_comes_with_the_last() {
        let tokenizer = byte_level();
        let ids: Vec<u32> = "x👍"
            .bytes()
            .map(|b| (0..256).find(|&id| tokenizer.bytes(id) == [b]).unwrap())
            .collect();
        assert_eq!(pieces(&tokenizer, &[], &ids), ["x", "", "", "", "👍", ""]);
        assert_eq!(
            pieces(&tokenizer, &[], &ids[..3]),
            ["x", "", "", "\u{FFFD}"]
        );
    }

    #[test]
    fn control_tokens_show_where_that_is_asked_for() {
        for (tokenizer, id, text) in [
            (byte_level(), 267, "<|im_end|>"),
            (sentencepiece(), 2, "</s>"),
        ] {
            let mut ids = tokenizer.encode("hello", false).unwrap();
            ids.push(id);
            ids.extend(tokenizer.encode("world", false).unwrap());
            for (shown, expected) in [
                (Shown::None, String::new()),
                (Shown::Some(vec![id]), text.to_owned()),
                (Shown::All, text.to_owned()),
            ] {
                let decoder = Detokenizer::new(tokenizer.clone(), &[]);
                let mut decoder = decoder.showing(shown);
                let mut out: String = ids.iter().map(|&id| decoder.push(id)).collect();
                out.push_str(&decoder.finish());
                let (before, behind) = out.split_once("hello").unwrap();
                assert_eq!((before, behind.contains("world")), ("", true));
                assert_eq!(behind.contains(text), !expected.is_empty(), "{out}");
            }
        }
    }

    #[test]
    fn a_first_word_keeps_its_space_after_a_prompt() {
        let tokenizer = sentencepiece();
        let prompt = tokenizer.encode("hello", false).unwrap();
        let whole = tokenizer.encode("hello world", false).unwrap();
        let answer = &whole[prompt.len()..];
        assert_eq!(pieces(&tokenizer, &prompt, answer).concat(), " world");
        assert_eq!(tokenizer.decode(answer), "world");
    }
}
