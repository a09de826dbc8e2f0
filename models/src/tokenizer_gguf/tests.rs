//! Tokenizers built from GGUF metadata against those that `tokenizers` reads.

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
    let replaced_pre = replaced("smollm", "sm0llm");
    assert!(matches!(replaced_pre, Err(TokenizerError::PreTokenizer(name)) if name == "sm0llm"));
    assert!(matches!(replaced("gpt2", "wp_2"), Err(TokenizerError::Model(name)) if name == "wp_2"));
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
        let pre_tokenizer: tokenizers::PreTokenizerWrapper = serde_json::from_value(spec).unwrap();
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
    let merges = merges_of_pieces(&vocabulary, &[0.0, -9.0, -9.0, -9.0, -3.0, -2.0, -1.0]).unwrap();
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

/// Pieces of a text, as the pre-tokenizer of the given name cuts it.
fn pieces(pre: &str, text: &str) -> Vec<String> {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};
    let files = replaced("smollm", pre).unwrap();
    let tokenizer = Tokenizer::from_bytes(&files.tokenizer_json).unwrap();
    let mut cut = PreTokenizedString::from(text);
    let pre_tokenizer = tokenizer.get_pre_tokenizer().expect("there is one");
    pre_tokenizer.pre_tokenize(&mut cut).unwrap();
    let splits = cut.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits
        .iter()
        .map(|(_, (start, end), _)| text[*start..*end].to_owned())
        .collect()
}

/// Words are cut where lower case ends, contractions stay with their word or do not, and digits
/// come by three or alone.
#[test]
fn texts_are_cut_as_the_named_expression_says() {
    let text = "HelloWorld don't 12345//";
    assert_eq!(
        pieces("gpt-4o", text),
        ["Hello", "World", " don't", " ", "123", "45", "//"]
    );
    assert_eq!(
        pieces("tekken", text),
        [
            "Hello", "World", " don", "'t", " ", "1", "2", "3", "4", "5", "//"
        ]
    );
}
