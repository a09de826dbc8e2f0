//! A `tokenizer.json` from the vocabulary and merges that a GGUF file carries.
//!
//! What the file does not say, the pre-tokenizer's expressions and the decoder, is taken from
//! llama.cpp's `llama-vocab.cpp` by the name in `tokenizer.ggml.pre`, and from the tokenizers of
//! the models so named.

mod pieces;
mod vocabulary;

use serde_json::{Map, Value, json};

use self::pieces::merges_of_pieces;
use self::vocabulary::{Result, Vocabulary};
use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::{TokenizerError, TokenizerFiles};

/// GPT-2's expression, as llama.cpp has it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl TokenizerFiles {
    /// Builds the tokenizer that a GGUF file carries. `file`: the bytes that `gguf` was parsed
    /// from.
    pub(crate) fn from_gguf(gguf: &Gguf, file: &[u8], eos_ids: &[u32]) -> Result<Self> {
        let vocabulary = Vocabulary::read(gguf, file)?;
        let kind = gguf.text("tokenizer.ggml.model")?;
        let mut tokenizer = match kind {
            Some("gpt2") => byte_level(gguf, file, &vocabulary)?,
            Some("llama") => sentence_piece(gguf, file, &vocabulary)?,
            Some(other) => return Err(TokenizerError::Model(other.to_owned())),
            None => return Err(GgufError::MissingKey("tokenizer.ggml.model".to_owned()).into()),
        };
        let bos = vocabulary.named(gguf, "tokenizer.ggml.bos_token_id")?;
        let eos = vocabulary.named(gguf, "tokenizer.ggml.eos_token_id")?;
        let by_default = kind == Some("llama")
            || matches!(pre(gguf)?, "llama3" | "llama-v3" | "llama-bpe" | "tekken");
        let add_bos = gguf
            .boolean("tokenizer.ggml.add_bos_token")?
            .unwrap_or(by_default);
        let add_eos = gguf
            .boolean("tokenizer.ggml.add_eos_token")?
            .unwrap_or(false);
        tokenizer["post_processor"] = frame(
            &vocabulary,
            bos.filter(|_| add_bos),
            eos.filter(|_| add_eos),
        );
        Ok(Self {
            tokenizer_json: serde_json::to_vec(&tokenizer)?,
            chat_template: gguf.text("tokenizer.chat_template")?.map(str::to_owned),
            bos_token: bos.map(str::to_owned),
            eos_token: eos.map(str::to_owned),
            eos_ids: eos_ids.to_vec(),
        })
    }
}

fn pre(gguf: &Gguf) -> Result<&str> {
    Ok(gguf.text("tokenizer.ggml.pre")?.unwrap_or("default"))
}

/// Byte-level BPE (GPT-2 and most later models).
fn byte_level(gguf: &Gguf, file: &[u8], vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.merges";
    let lines = gguf
        .texts(file, key)?
        .ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
    let mut merges = Vec::new();
    for line in lines {
        // A token holds no space (byte 32 is written as another letter), so the first one after a
        // letter separates.
        let pair = line
            .char_indices()
            .skip(1)
            .find(|&(_, letter)| letter == ' ');
        let pair = pair.map(|(at, _)| (&line[..at], &line[at + 1..]));
        let known = |text: &str| vocabulary.ids.contains_key(text);
        match pair
            .filter(|(left, right)| known(left) && known(right) && known(&format!("{left}{right}")))
        {
            Some((left, right)) => merges.push(json!([left, right])),
            None => return Err(TokenizerError::Merge(line.to_owned())),
        }
    }
    let PreTokenizer {
        pre_tokenizer,
        normalizer,
        ignore_merges,
    } = pre_tokenizer(pre(gguf)?)?;
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true,
        },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignore_merges, "vocab": vocabulary.as_json(), "merges": merges,
        },
    }))
}

/// How text is cut before merges.
struct PreTokenizer {
    pre_tokenizer: Value,
    normalizer: Value,
    ignore_merges: bool,
}

impl From<Value> for PreTokenizer {
    fn from(pre_tokenizer: Value) -> Self {
        Self {
            pre_tokenizer,
            normalizer: Value::Null,
            ignore_merges: false,
        }
    }
}

/// A normalizer or decoder that puts `to` in place of `from`.
fn replace(from: &str, to: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": from}, "content": to})
}

/// A pre-tokenizer that maps bytes to GPT-2's alphabet and adds no space before a text.
fn byte_alphabet(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
        "use_regex": use_regex,
    })
}

/// The pre-tokenizer of a `tokenizer.ggml.pre`.
fn pre_tokenizer(pre: &str) -> Result<PreTokenizer> {
    let split = |expressions: &[&str]| {
        let splits = expressions.iter().map(|expression| {
            json!({
                "type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                "invert": false,
            })
        });
        let letters = byte_alphabet(false);
        json!({"type": "Sequence", "pretokenizers": splits.chain([letters]).collect::<Vec<_>>()})
    };
    let gpt2 = byte_alphabet(true);
    Ok(match pre {
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            json!({"type": "Sequence", "pretokenizers": [digits, gpt2]}).into()
        }
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" => gpt2.into(),
        "default" => {
            let punctuation = r"[\p{P}\$\+<=>\^~\|]+";
            split(&[punctuation, GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]).into()
        }
        "llama3" | "llama-v3" | "llama-bpe" => PreTokenizer {
            ignore_merges: true,
            ..split(&[LLAMA3]).into()
        },
        "smaug-bpe" | "dbrx" => split(&[LLAMA3]).into(),
        "gpt-4o" | "llama4" => split(&[GPT4O]).into(),
        "tekken" => PreTokenizer {
            ignore_merges: true,
            ..split(&[TEKKEN]).into()
        },
        "qwen2" | "deepseek-r1-qwen" => PreTokenizer {
            normalizer: json!({"type": "NFC"}),
            ..split(&[QWEN2]).into()
        },
        other => return Err(TokenizerError::PreTokenizer(other.to_owned())),
    })
}

/// SentencePiece BPE: pieces join by score, unknown letters fall back to bytes.
fn sentence_piece(gguf: &Gguf, file: &[u8], vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let key = "tokenizer.ggml.scores";
    let scores = gguf
        .numbers(file, key)?
        .ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
    if scores.len() != vocabulary.tokens.len() {
        let (found, expected) = (scores.len(), vocabulary.tokens.len());
        return Err(TokenizerError::Length {
            what: "tokenizer.ggml.scores",
            found,
            expected,
        });
    }
    let unknown = vocabulary.named(gguf, "tokenizer.ggml.unknown_token_id")?;
    let prefix = gguf
        .boolean("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let mut normalizers = vec![replace(" ", "\u{2581}")];
    let mut decoders = vec![
        replace("\u{2581}", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": vocabulary.as_json(),
            "merges": merges_of_pieces(vocabulary, &scores)?,
        },
    }))
}

/// Template that puts the first token before a text and the last one after it.
fn frame(vocabulary: &Vocabulary<'_>, bos: Option<&str>, eos: Option<&str>) -> Value {
    if bos.is_none() && eos.is_none() {
        return Value::Null;
    }
    let token = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": 0}});
    let around = |middle: Value| {
        bos.map(token)
            .into_iter()
            .chain([middle])
            .chain(eos.map(token))
            .collect::<Vec<_>>()
    };
    let mut pair = around(text("A"));
    pair.extend(around(text("B")));
    let special: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|text| {
            (
                text.to_owned(),
                json!({"id": text, "ids": [vocabulary.ids[text]], "tokens": [text]}),
            )
        })
        .collect();
    json!({
        "type": "TemplateProcessing", "single": around(text("A")), "pair": pair,
        "special_tokens": special,
    })
}

#[cfg(test)]
mod tests;
