//! The model's tokenizer, from the `tokenizer.json` that the worker sends.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::panic::catch_unwind;
use std::sync::OnceLock;

use aho_corasick::{AhoCorasick, Anchored, Input, StartKind};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokenizers::{Model, OffsetType, PreTokenizer as _};

use super::error::Error;
use super::rendered::{Rendered, unused_marks, with_marks};

/// A character whose tokens stand apart from those behind them.
const LEAD: &str = "☺";

/// How token strings become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoding {
    /// GPT-2's byte-level alphabet: every token is a run of bytes, whatever its neighbours are.
    Bytes,
    /// Anything else (SentencePiece and the like): text depends on neighbours.
    Chain,
}

struct Added {
    content: String,
    special: bool,
}

impl Added {
    /// Whether only a template writes it: a control token, or one that is called text and sets
    /// roles apart all the same, such as `<｜User｜>`.
    fn is_guarded(&self) -> bool {
        let is_between = |(open, close): &(&str, &str)| {
            let inner = self.content.strip_prefix(open);
            inner.is_some_and(|inner| inner.ends_with(close) && inner.len() > close.len())
        };
        let is_role = [("<|", "|>"), ("<｜", "｜>")].iter().any(is_between);
        !self.content.is_empty() && (self.special || is_role)
    }
}

/// A model's tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Tokens beside the model's own, and whether they never show in text. The library gives only
    /// copies of its list.
    added: HashMap<u32, Added>,
    /// Finds which texts begin with a token that a client must not spell.
    guarded: AhoCorasick,
    pub(super) decoding: Decoding,
    longest: Option<usize>,
    /// Texts that were tokenised.
    #[cfg(test)]
    pub(crate) encoded: std::sync::atomic::AtomicUsize,
}

/// Reads a file by the library, which panics on some damaged ones.
fn read(json: &[u8]) -> Result<tokenizers::Tokenizer, Error> {
    let bad = |error: &dyn fmt::Display| Error::Tokenizer(error.to_string());
    // It takes for granted that parts which it reads later are JSON.
    serde_json::from_slice::<IgnoredAny>(json).map_err(|error| bad(&error))?;
    // Nothing that it has half read is used afterwards.
    catch_unwind(|| tokenizers::Tokenizer::from_bytes(json))
        .map_err(|_| bad(&"a part of it makes no sense"))?
        .map_err(|error| bad(&error))
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if it is not one.
    pub fn from_bytes(json: &[u8]) -> Result<Self, Error> {
        let mut inner = read(json)?;
        // A file may ask for these for the sake of training; a prompt must reach the model as it
        // is.
        inner
            .with_truncation(None)
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        inner.with_padding(None);
        let decoding = match inner.get_decoder() {
            Some(tokenizers::DecoderWrapper::ByteLevel(_)) => Decoding::Bytes,
            _ => Decoding::Chain,
        };
        let added = inner.get_added_tokens_decoder().into_iter();
        let added: HashMap<u32, Added> = added
            .map(|(id, token)| {
                let added = Added {
                    content: token.content,
                    special: token.special,
                };
                (id, added)
            })
            .collect();
        let guarded = added.values().filter(|token| token.is_guarded());
        let guarded = beginnings(guarded.map(|token| token.content.as_str()))?;
        let mut tokenizer = Self {
            inner,
            added,
            guarded,
            decoding,
            longest: None,
            #[cfg(test)]
            encoded: std::sync::atomic::AtomicUsize::new(0),
        };
        if decoding == Decoding::Bytes && keeps_all_text(json) {
            tokenizer.longest = tokenizer.measure();
        }
        Ok(tokenizer)
    }

    /// Token ids of a text. `special`: with what the tokenizer adds around a text of its own, such
    /// as BOS.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, Error> {
        #[cfg(test)]
        self.encoded
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let encoding = self
            .inner
            .encode_fast(text, special)
            .map_err(|error| Error::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a conversation: the control tokens are those that its template wrote, and what
    /// a client's words spell has the tokens of plain text.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<u32>, Error> {
        let text = rendered.text();
        let breaks: Vec<usize> = rendered
            .breaks()
            .iter()
            .copied()
            .filter(|&at| self.is_control_across(text, at))
            .collect();
        if breaks.is_empty() {
            return self.encode(text, false);
        }
        let marks = unused_marks(|mark| text.contains(mark));
        let [mark] = marks.ok_or(Error::NoMark)?;
        self.encode_marked(&with_marks(text, &breaks, mark), mark)
    }

    /// Whether a control token of the text begins with the character before this place, and would
    /// go on behind it.
    fn is_control_across(&self, text: &str, at: usize) -> bool {
        let Some(first) = text[..at].chars().next_back() else {
            return false;
        };
        begins_with_any(&self.guarded, &text[at - first.len_utf8()..])
    }

    /// Token ids of a text as plain text, whatever it spells: it has no control token, and none of
    /// the tokens `reserved`.
    ///
    /// # Errors
    /// [`Error::Encode`].
    pub fn encode_plain(&self, text: &str, reserved: &[&str]) -> Result<Vec<u32>, Error> {
        let controls = self.added(true).chain(reserved.iter().copied());
        // SentencePiece's tokenizers read a space as this.
        let as_written = |text: &str| [text.to_owned(), text.replace('▁', " ")];
        let controls: HashSet<String> = controls.flat_map(as_written).collect();
        let openings: HashSet<char> = controls
            .iter()
            .filter_map(|text| text.chars().next())
            .collect();
        let breaks: Vec<usize> = text
            .match_indices(|c| openings.contains(&c))
            .filter(|(at, _)| controls.iter().any(|one| text[*at..].starts_with(&**one)))
            .map(|(at, opening)| at + opening.len())
            .collect();
        if breaks.is_empty() {
            return self.encode(text, false);
        }
        let [mark] = unused_marks(|mark| text.contains(mark)).ok_or(Error::NoMark)?;
        self.encode_marked(&with_marks(text, &breaks, mark), mark)
    }

    /// Token ids of a text that goes on from another one, as `encode` makes them of a text:
    /// SentencePiece's tokenizers put a space before every text, and here it would stand within.
    ///
    /// # Errors
    /// As `encode`.
    pub fn encode_behind(
        &self,
        text: &str,
        encode: impl Fn(&str) -> Result<Vec<u32>, Error>,
    ) -> Result<Vec<u32>, Error> {
        let alone = encode(text)?;
        let spelled = alone.iter().flat_map(|&id| self.bytes(id));
        if spelled.eq(text.bytes()) {
            return Ok(alone);
        }
        let lead = encode(LEAD)?;
        let behind = encode(&format!("{LEAD}{text}"))?;
        Ok(match behind.strip_prefix(&lead[..]) {
            Some(rest) => rest.to_vec(),
            None => alone,
        })
    }

    /// The id of the token with this text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Token ids of a text in which a mark keeps control tokens from being found. The marks go
    /// before anything is cut into words, so they leave no trace.
    fn encode_marked(&self, text: &str, mark: char) -> Result<Vec<u32>, Error> {
        #[cfg(test)]
        self.encoded
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let encoded = || {
            let added = self.inner.get_added_vocabulary();
            let mut pieces = added.extract_and_normalize(self.inner.get_normalizer(), text);
            pieces.normalize(|piece| {
                piece.filter(|c| c != mark);
                Ok(())
            })?;
            if let Some(step) = self.inner.get_pre_tokenizer() {
                step.pre_tokenize(&mut pieces)?;
            }
            let model = self.inner.get_model();
            pieces.tokenize(|piece| model.tokenize(piece.get()))?;
            pieces.into_encoding(None, 0, OffsetType::None)
        };
        let encoding: tokenizers::Result<tokenizers::Encoding> = encoded();
        let encoding = encoding.map_err(|error| Error::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of the ids, without special tokens. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, true).unwrap_or_default()
    }

    /// Bytes of one token, which need not be whole characters; empty for an id that the tokenizer
    /// does not know.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        if let Some(added) = self.added.get(&id) {
            return added.content.clone().into_bytes();
        }
        let Some(token) = self.inner.id_to_token(id) else {
            return Vec::new();
        };
        match self.decoding {
            Decoding::Bytes => byte_level(&token),
            Decoding::Chain => match fallback_byte(&token) {
                Some(byte) => vec![byte],
                None => token.replace('▁', " ").into_bytes(),
            },
        }
    }

    /// Bytes of the longest token, where every text has at least as many tokens as its bytes
    /// divided by them; `None` where that is not certain, because the tokenizer may drop text.
    pub fn longest_token(&self) -> Option<usize> {
        self.longest
    }

    /// Bytes of the longest token, if every byte has a token of its own.
    fn measure(&self) -> Option<usize> {
        let mut has_token = [false; 256];
        let mut longest = 0;
        for id in self.inner.get_vocab(true).into_values() {
            let bytes = self.bytes(id);
            longest = longest.max(bytes.len());
            if let [byte] = bytes[..] {
                has_token[usize::from(byte)] = true;
            }
        }
        has_token.iter().all(|has| *has).then_some(longest)
    }

    /// Texts of the tokens beside the model's own vocabulary: those that only a template writes, or
    /// those that are text.
    pub fn added(&self, guarded: bool) -> impl Iterator<Item = &str> {
        let added = self.added.values();
        added
            .filter(move |token| token.is_guarded() == guarded)
            .map(|token| token.content.as_str())
    }

    /// Ids of the control tokens among these texts.
    pub fn control_ids(&self, texts: &[&str]) -> Vec<u32> {
        let added = self.added.iter();
        added
            .filter(|(_, token)| token.special && texts.contains(&token.content.as_str()))
            .map(|(id, _)| *id)
            .collect()
    }

    /// Whether the id is a control token that never shows in text.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.get(&id).is_some_and(|added| added.special)
    }
}

/// Finds whether a text begins with one of these, in time that does not grow with their number.
///
/// # Errors
/// [`Error::Tokenizer`] for more than can be found.
pub(super) fn beginnings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<AhoCorasick, Error> {
    let built = AhoCorasick::builder()
        .start_kind(StartKind::Anchored)
        .build(texts);
    built.map_err(|error| Error::Tokenizer(error.to_string()))
}

/// Whether the text begins with one of those that `finder` was made for.
pub(super) fn begins_with_any(finder: &AhoCorasick, text: &str) -> bool {
    finder.is_match(Input::new(text).anchored(Anchored::Yes))
}

/// What of a `tokenizer.json` may drop text before it has tokens.
#[derive(Deserialize)]
struct Steps {
    normalizer: Option<IgnoredAny>,
    pre_tokenizer: Option<PreTokenizer>,
    #[serde(default)]
    added_tokens: Vec<AddedStep>,
}

#[derive(Deserialize)]
struct PreTokenizer {
    #[serde(rename = "type")]
    kind: String,
    behavior: Option<String>,
    #[serde(default)]
    pretokenizers: Vec<PreTokenizer>,
}

#[derive(Deserialize)]
struct AddedStep {
    lstrip: bool,
    rstrip: bool,
}

impl PreTokenizer {
    fn keeps_all_text(&self) -> bool {
        match self.kind.as_str() {
            "ByteLevel" | "Digits" => true,
            "Split" => self.behavior.as_deref().is_some_and(|how| how != "Removed"),
            "Sequence" => self.pretokenizers.iter().all(Self::keeps_all_text),
            _ => false,
        }
    }
}

/// Whether it is certain that all bytes of a text reach the model.
fn keeps_all_text(json: &[u8]) -> bool {
    serde_json::from_slice::<Steps>(json).is_ok_and(|steps| {
        steps.normalizer.is_none()
            && steps.pre_tokenizer.is_none_or(|step| step.keeps_all_text())
            && steps
                .added_tokens
                .iter()
                .all(|token| !token.lstrip && !token.rstrip)
    })
}

/// `<0x0A>` as SentencePiece writes a byte that has no token of its own.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Bytes of a token in GPT-2's alphabet; a token with other characters stands for itself.
fn byte_level(token: &str) -> Vec<u8> {
    static TABLE: OnceLock<[Option<u8>; ALPHABET]> = OnceLock::new();
    let table = TABLE.get_or_init(byte_level_table);
    let bytes: Option<Vec<u8>> = token
        .chars()
        .map(|c| table.get(c as usize).copied().flatten())
        .collect();
    bytes.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Characters below this make up GPT-2's alphabet: 256, and one for each of the 68 bytes that are
/// not printable.
const ALPHABET: usize = 256 + 68;

/// GPT-2's `bytes_to_unicode`, inverted: printable bytes stand for themselves, the others follow
/// from U+0100 on.
fn byte_level_table() -> [Option<u8>; ALPHABET] {
    let mut table = [None; ALPHABET];
    let mut next = 256;
    for byte in 0..=u8::MAX {
        if matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF) {
            table[usize::from(byte)] = Some(byte);
        } else {
            table[next] = Some(byte);
            next += 1;
        }
    }
    table
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("decoding", &self.decoding)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A byte-level BPE tokenizer: 256 bytes (id = byte), some merges, `<|im_start|>` and
    /// `<|im_end|>`.
    pub(crate) fn byte_level_json() -> Vec<u8> {
        crate::executor::fake::byte_level_tokenizer()
    }

    /// A SentencePiece-like tokenizer: `▁` for spaces, bytes as `<0xXX>`, the first space stripped.
    pub(crate) fn sentencepiece_json() -> Vec<u8> {
        let mut vocab: Vec<String> = vec!["<unk>".into(), "<s>".into(), "</s>".into()];
        vocab.extend((0..=255u8).map(|b| format!("<0x{b:02X}>")));
        vocab.extend(["▁", "h", "e", "l", "o", "▁w", "r", "d", "é", "▁▁"].map(String::from));
        let map: serde_json::Map<_, _> = vocab
            .iter()
            .cloned()
            .zip((0..).map(|i: u32| i.into()))
            .collect();
        let added = |id: u32, content: &str| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        };
        serde_json::to_vec(&json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
            "pre_tokenizer": null, "post_processor": null,
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ]},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>",
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                "byte_fallback": true, "vocab": map, "merges": [],
            },
        }))
        .unwrap()
    }

    /// The library panics on a decoder that is no JSON; so did the coordinator, on what a worker
    /// sent. Found by fuzzing.
    #[test]
    fn a_damaged_file_is_refused_and_does_not_panic() {
        let json = String::from_utf8(crate::executor::fake::byte_level_tokenizer()).unwrap();
        let at = json.find("\"decoder\"").unwrap();
        let colon = at + json[at..].find("\":").unwrap() + 1;
        let inner = colon + 1 + json[colon + 1..].find("\":").unwrap() + 1;
        for cut in [colon, inner] {
            let mut bytes = json.clone().into_bytes();
            bytes[cut] = b' ';
            assert!(matches!(
                Tokenizer::from_bytes(&bytes),
                Err(Error::Tokenizer(_))
            ));
        }
    }

    #[test]
    fn the_byte_alphabet_is_the_decoders_own() {
        let tokenizer = Tokenizer::from_bytes(&byte_level_json()).unwrap();
        for byte in 0..=255u8 {
            let id = (0..256)
                .find(|&id| tokenizer.bytes(id) == [byte])
                .expect("every byte has a token");
            assert_eq!(tokenizer.decode(&[id]), String::from_utf8_lossy(&[byte]));
        }
    }

    #[test]
    fn a_text_behind_another_begins_with_no_space_of_the_tokenizer() {
        for file in [byte_level_json(), sentencepiece_json()] {
            let tokenizer = Tokenizer::from_bytes(&file).unwrap();
            for text in ["lo", " lo", "  ", "é", "."] {
                let ids = tokenizer.encode_behind(text, |text| tokenizer.encode(text, false));
                let ids = ids.unwrap();
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.bytes(id)).collect();
                assert_eq!(String::from_utf8(bytes).unwrap(), text);
            }
        }
    }

    #[test]
    fn text_comes_back_and_special_tokens_do_not_show() {
        let tokenizer = Tokenizer::from_bytes(&byte_level_json()).unwrap();
        let ids = tokenizer.encode("<|im_start|>the é 👍🏽\n", false).unwrap();
        assert_eq!(tokenizer.decode(&ids), "the é 👍🏽\n");
        assert!(tokenizer.is_special(ids[0]));
        assert_eq!(tokenizer.bytes(ids[0]), b"<|im_start|>");
        assert_eq!(tokenizer.bytes(9_999_999), b"");
    }

    #[test]
    fn the_longest_token_is_known_only_where_no_text_is_dropped() {
        let longest = |change: fn(&mut Value)| {
            let mut file: Value = serde_json::from_slice(&byte_level_json()).unwrap();
            change(&mut file);
            let json = serde_json::to_vec(&file).unwrap();
            Tokenizer::from_bytes(&json).unwrap().longest_token()
        };
        assert_eq!(longest(|_| {}), Some("<|im_start|>".len()));
        assert_eq!(
            longest(|file| file["normalizer"] = json!({"type": "NFKC"})),
            None
        );
        let removes = |file: &mut Value| {
            file["pre_tokenizer"] = json!({
                "type": "Split", "pattern": {"String": "x"}, "behavior": "Removed",
                "invert": false,
            });
        };
        assert_eq!(longest(removes), None);
        assert_eq!(
            longest(|file| file["added_tokens"][0]["rstrip"] = true.into()),
            None
        );
        let sentence_piece = Tokenizer::from_bytes(&sentencepiece_json()).unwrap();
        assert_eq!(sentence_piece.longest_token(), None);
    }

    #[test]
    fn a_broken_file_is_an_error() {
        assert!(matches!(
            Tokenizer::from_bytes(b"{}"),
            Err(Error::Tokenizer(_))
        ));
    }
}
