//! A `tokenizer.json` from the vocabulary and merges that a GGUF file carries.
//!
//! What the file does not say, the pre-tokenizer's expressions and the decoder, is taken from
//! llama.cpp's `llama-vocab.cpp` by the name in `tokenizer.ggml.pre`, and from the tokenizers of
//! the models so named.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::gguf::{Gguf, GgufError};
use crate::tokenizer::{TokenizerError, TokenizerFiles};

type Result<T> = std::result::Result<T, TokenizerError>;

/// Token types of `tokenizer.ggml.token_type` that are added tokens, matched before the model runs.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// GPT-2's expression, as llama.cpp has it.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    types: Vec<f64>,
    ids: HashMap<&'a str, usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(gguf: &Gguf, file: &'a [u8]) -> Result<Self> {
        let key = "tokenizer.ggml.tokens";
        let tokens = gguf
            .texts(file, key)?
            .ok_or_else(|| GgufError::MissingKey(key.to_owned()))?;
        let types = gguf
            .numbers(file, "tokenizer.ggml.token_type")?
            .unwrap_or_else(|| vec![1.0; tokens.len()]);
        if types.len() != tokens.len() {
            let (found, expected) = (types.len(), tokens.len());
            return Err(TokenizerError::Length {
                what: "tokenizer.ggml.token_type",
                found,
                expected,
            });
        }
        let mut ids = HashMap::new();
        for (id, token) in tokens.iter().enumerate() {
            if ids.insert(*token, id).is_some() {
                return Err(TokenizerError::Duplicate((*token).to_owned()));
            }
        }
        Ok(Self { tokens, types, ids })
    }

    /// The token that metadata `key` names, if it names one.
    fn named(&self, gguf: &Gguf, key: &'static str) -> Result<Option<&'a str>> {
        let Some(id) = gguf.unsigned(key)? else {
            return Ok(None);
        };
        let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
        let error = TokenizerError::Id {
            what: key,
            id,
            len: self.tokens.len(),
        };
        token.map(|token| Some(*token)).ok_or(error)
    }

    fn as_json(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    fn added_tokens(&self) -> Vec<Value> {
        let added = self.tokens.iter().zip(&self.types).enumerate();
        let added = added.filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind));
        let entry = |(id, (token, &kind)): (usize, (&&str, &f64))| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            })
        };
        added.map(entry).collect()
    }
}

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
        let by_default =
            kind == Some("llama") || matches!(pre(gguf)?, "llama3" | "llama-v3" | "llama-bpe");
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
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignore_merges,
            "vocab": vocabulary.as_json(), "merges": merges,
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

/// That of a `tokenizer.ggml.pre`.
fn pre_tokenizer(pre: &str) -> Result<PreTokenizer> {
    let split = |expressions: &[&str]| {
        let splits = expressions.iter().map(
            |expression| json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false}),
        );
        let letters = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({"type": "Sequence", "pretokenizers": splits.chain([letters]).collect::<Vec<_>>()})
    };
    let gpt2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
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
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
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
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.as_json(), "merges": merges_of_pieces(vocabulary, &scores),
        },
    }))
}

/// Every way to join two pieces into a third, best score of the third first: what SentencePiece's
/// greedy merging by score does. Ties go by the piece's id, then by the ids of the halves.
fn merges_of_pieces(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let mut merges = Vec::new();
    for (id, piece) in vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| vocabulary.types[*id] == 1.0)
    {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&left), Some(&right)) =
                (vocabulary.ids.get(left), vocabulary.ids.get(right))
            {
                merges.push((id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| scores[b.0].total_cmp(&scores[a.0]).then(a.cmp(b)));
    merges
        .into_iter()
        .map(|(_, left, right)| json!([vocabulary.tokens[left], vocabulary.tokens[right]]))
        .collect()
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
    json!({"type": "TemplateProcessing", "single": around(text("A")), "pair": pair, "special_tokens": special})
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokenizers::Tokenizer;

    use super::*;
    use crate::{Error, Model};

    fn fixtures() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
    }

    fn tiny() -> (Vec<u8>, Gguf) {
        let file = std::fs::read(fixtures().join("models/gguf-llama/model.gguf")).unwrap();
        let gguf = Gguf::parse(&file).unwrap();
        (file, gguf)
    }

    /// The tiny model's file with one metadata text replaced by another of the same length.
    fn replaced(from: &str, to: &str) -> std::result::Result<TokenizerFiles, TokenizerError> {
        let (mut file, _) = tiny();
        let at = file
            .windows(from.len())
            .position(|window| window == from.as_bytes())
            .unwrap();
        file[at..at + to.len()].copy_from_slice(to.as_bytes());
        TokenizerFiles::from_gguf(&Gguf::parse(&file).unwrap(), &file, &[2])
    }

    fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn embedded_tokenizer_works() {
        let model = Model::open(&fixtures().join("models/gguf-llama/model.gguf")).unwrap();
        let files = model.tokenizer().unwrap();
        assert_eq!(
            (files.bos_token.as_deref(), files.eos_token.as_deref()),
            (Some("<|im_start|>"), Some("<|im_end|>"))
        );
        assert!(
            files
                .chat_template
                .is_some_and(|template| template.contains("add_generation_prompt"))
        );
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
        // Three special tokens, then GPT-2's letters of the 256 bytes in byte order, then the
        // merges of the maker.
        let byte = |byte: u8| 3 + u32::from(byte);
        let the = encode(&tokenizer, " the");
        assert_eq!(the, [tokenizer.token_to_id("Ġthe").unwrap()]);
        assert_eq!(encode(&tokenizer, "12"), [byte(b'1'), byte(b'2')]);
        assert_eq!(
            encode(&tokenizer, "<|im_start|>X<|im_end|>"),
            [1, byte(b'X'), 2]
        );
        let text = "On the 24th: 🙂 naïve\n\tend";
        assert_eq!(
            tokenizer.decode(&encode(&tokenizer, text), false).unwrap(),
            text
        );
    }

    #[test]
    fn unknown_kinds_are_named() {
        assert!(
            matches!(replaced("smollm", "sm0llm"), Err(TokenizerError::PreTokenizer(name)) if name == "sm0llm")
        );
        assert!(
            matches!(replaced("gpt2", "wp_2"), Err(TokenizerError::Model(name)) if name == "wp_2")
        );
        let merge = replaced("Ġ t", "Ġ~t").unwrap_err();
        assert!(
            matches!(&merge, TokenizerError::Merge(line) if line == "Ġ~t"),
            "{merge}"
        );
        let twice = replaced("Ġm", "Ġp").unwrap_err();
        assert!(
            matches!(&twice, TokenizerError::Duplicate(token) if token == "Ġp"),
            "{twice}"
        );
        let (file, mut gguf) = tiny();
        gguf.set(
            "tokenizer.ggml.bos_token_id",
            crate::gguf::GgufValue::Unsigned(288),
        );
        let error = TokenizerFiles::from_gguf(&gguf, &file, &[]).unwrap_err();
        assert!(
            matches!(
                error,
                TokenizerError::Id {
                    id: 288,
                    len: 288,
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn first_token_is_added_when_the_file_says_so() {
        let (file, mut gguf) = tiny();
        gguf.set(
            "tokenizer.ggml.add_bos_token",
            crate::gguf::GgufValue::Bool(true),
        );
        let files = TokenizerFiles::from_gguf(&gguf, &file, &[2]).unwrap();
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
        assert_eq!(encode(&tokenizer, "A"), [1, 3 + u32::from(b'A')]);
        assert_eq!(
            tokenizer.encode("A", false).unwrap().get_ids(),
            [3 + u32::from(b'A')]
        );
    }

    #[test]
    fn pre_tokenizers_cut_as_their_expressions_say() {
        let cut = |pre: &str, text: &str| {
            let spec = pre_tokenizer(pre).unwrap().pre_tokenizer;
            let pre_tokenizer: tokenizers::PreTokenizerWrapper =
                serde_json::from_value(spec).unwrap();
            let mut text = tokenizers::PreTokenizedString::from(text);
            tokenizers::PreTokenizer::pre_tokenize(&pre_tokenizer, &mut text).unwrap();
            let cuts = text.get_splits(
                tokenizers::OffsetReferential::Original,
                tokenizers::OffsetType::Byte,
            );
            cuts.into_iter()
                .map(|(piece, _, _)| piece.replace('Ġ', "_"))
                .collect::<Vec<_>>()
                .join("|")
        };
        let text = "it's 12345 a+b";
        assert_eq!(cut("smollm", text), "it|'s|_|1|2|3|4|5|_a|+|b");
        assert_eq!(cut("gpt-2", text), "it|'s|_12345|_a|+|b");
        assert_eq!(cut("llama-bpe", text), "it|'s|_|123|45|_a|+b");
        assert_eq!(cut("qwen2", text), "it|'s|_|1|2|3|4|5|_a|+b");
        assert_eq!(cut("default", text), "it|'|s|_|123|45|_a|+|b");
    }

    #[test]
    fn directories_give_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let read = || TokenizerFiles::from_directory(dir.path(), &[5]);
        assert!(matches!(
            read(),
            Err(Error::MissingFile {
                what: "tokenizer.json",
                ..
            })
        ));
        write("tokenizer.json", "{}");
        let bare = read().unwrap();
        assert_eq!(
            (
                bare.tokenizer_json.as_slice(),
                bare.chat_template,
                bare.eos_ids
            ),
            (&b"{}"[..], None, vec![5])
        );
        write(
            "special_tokens_map.json",
            r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#,
        );
        let several =
            r#"[{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]"#;
        write(
            "tokenizer_config.json",
            &format!(r#"{{"chat_template": {several}, "eos_token": "<end>"}}"#),
        );
        let files = read().unwrap();
        assert_eq!(
            (files.bos_token.as_deref(), files.eos_token.as_deref()),
            (Some("<s>"), Some("<end>"))
        );
        assert_eq!(files.chat_template.as_deref(), Some("D"));
        write("chat_template.jinja", "J");
        assert_eq!(read().unwrap().chat_template.as_deref(), Some("J"));
        write("tokenizer_config.json", "nothing");
        assert!(matches!(read(), Err(Error::Tokenizer { .. })));
    }

    /// SentencePiece by hand: pieces join by score, not by length or order.
    #[test]
    fn pieces_join_by_score() {
        let tokens = vec!["<unk>", "a", "b", "c", "ab", "bc", "abc"];
        let ids = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| (*token, id))
            .collect();
        let vocabulary = Vocabulary {
            types: vec![2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            tokens,
            ids,
        };
        let merges = merges_of_pieces(&vocabulary, &[0.0, -9.0, -9.0, -9.0, -3.0, -2.0, -1.0]);
        assert_eq!(
            merges,
            [
                json!(["a", "bc"]),
                json!(["ab", "c"]),
                json!(["b", "c"]),
                json!(["a", "b"])
            ]
        );
    }

    /// The real vocabulary, when a test machine has the default model (`PALIMPSEST_TEST_MODEL`:
    /// path of the GGUF file).
    #[test]
    fn default_model_gives_the_reference_ids() {
        let Some(path) = std::env::var_os("PALIMPSEST_TEST_MODEL") else {
            eprintln!("SKIPPED: PALIMPSEST_TEST_MODEL does not name the default model's file");
            return;
        };
        let model = Model::open(path.as_ref()).unwrap();
        assert_eq!(model.config().parameters, 134_515_008);
        let files = model.tokenizer().unwrap();
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
        let cases = std::fs::read(fixtures().join("smollm2_tokenizer.json")).unwrap();
        let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
        assert!(cases.len() >= 60);
        for case in cases {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let text = case["text"].as_str().unwrap();
            assert_eq!(encode(&tokenizer, text), ids, "{text:?}");
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
    }
}
