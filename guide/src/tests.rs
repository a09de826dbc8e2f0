//! Masks against slow and obvious ones, and guides that cannot be used.

mod bad;
mod masks;

use palimpsest_proto::v1::Guide;
use palimpsest_proto::v1::guide::Kind;
use serde_json::{Map, Value, json};

use super::*;

/// The first token of text in both vocabularies, `the`.
const THE: u32 = 256;

/// A vocabulary that was read from a file, and its tokens as the test knows them.
struct Known {
    vocabulary: Vocabulary,
    /// Empty for control tokens.
    tokens: Vec<Vec<u8>>,
    end: u32,
}

fn control(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    })
}

/// Byte `b` is token `b`, in GPT-2's alphabet; then texts, two control tokens, and room.
fn byte_level() -> Known {
    let mut next = 0x100;
    let mut letters = Vec::new();
    for byte in 0..=u8::MAX {
        let plain = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if plain { u32::from(byte) } else { next };
        next += u32::from(!plain);
        letters.push(char::from_u32(code).expect("a letter"));
    }
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    let texts = [
        "the", " the", "{\"", "\":", "\", \"", "ab", "abc", "é", "12", "  ",
    ];
    tokens.extend(texts.map(|text| text.as_bytes().to_vec()));
    let spelled = |token: &Vec<u8>| token.iter().map(|&b| letters[usize::from(b)]).collect();
    let names: Vec<String> = tokens.iter().map(spelled).collect();
    known(tokens, names, &json!({"type": "ByteLevel"}))
}

/// Spaces are `▁`, and bytes without a token of their own are `<0xXX>`: two tokens stand for some
/// bytes.
fn byte_fallback() -> Known {
    let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
    let mut names: Vec<String> = (0..=u8::MAX).map(|b| format!("<0x{b:02X}>")).collect();
    for text in [
        "the", "▁the", "▁", "{\"", "\":", "a", "b", "ab", "abc", "é", "1", "12", "x", "y",
    ] {
        tokens.push(text.replace('▁', " ").into_bytes());
        names.push(text.to_owned());
    }
    let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let decoders = json!([space, {"type": "ByteFallback"}, {"type": "Fuse"}]);
    known(
        tokens,
        names,
        &json!({"type": "Sequence", "decoders": decoders}),
    )
}

fn known(mut tokens: Vec<Vec<u8>>, names: Vec<String>, decoder: &Value) -> Known {
    let ids = names.iter().cloned().zip((0u32..).map(Value::from));
    let vocab: Map<String, Value> = ids.collect();
    let (start, end) = (tokens.len(), tokens.len() + 1);
    let file = json!({
        "added_tokens": [control(start, "<|start|>"), control(end, "<|end|>")],
        "decoder": decoder, "model": {"type": "BPE", "vocab": vocab},
    });
    // The model has more rows than the tokenizer has tokens.
    tokens.resize(end + 40, Vec::new());
    let file = file.to_string();
    let vocabulary = Vocabulary::new(file.as_bytes(), tokens.len(), &[end as u32]);
    Known {
        vocabulary: vocabulary.expect("a tokenizer"),
        tokens,
        end: end as u32,
    }
}

impl Known {
    fn compile(&self, guide: &Guide) -> Matcher {
        self.vocabulary.compile(guide).expect("a guide")
    }

    fn allowed(&self, mask: &Mask) -> Vec<u32> {
        (0..self.tokens.len() as u32)
            .filter(|&token| mask.allows(token))
            .collect()
    }

    /// Whether the guide lets the text through byte by byte, and end there.
    fn accepts(&self, guide: &Guide, text: &str) -> bool {
        let mut matcher = self.compile(guide);
        for &byte in text.as_bytes() {
            let token = u32::from(byte);
            match matcher.mask() {
                Ok(mask) if mask.allows(token) => {}
                _ => return false,
            }
            matcher.observe(&[token]).expect("it was allowed");
        }
        matcher.mask().is_ok_and(|mask| mask.allows(self.end))
    }
}

fn texts(texts: &[&str]) -> Guide {
    Guide::of_texts(texts.iter().map(|&text| text.to_owned()).collect())
}

fn regex(expression: &str) -> Guide {
    Kind::Regex(expression.to_owned()).into()
}

fn lark(grammar: &str) -> Guide {
    Kind::Grammar(grammar.to_owned()).into()
}

fn schema(schema: &Value) -> Guide {
    Guide::of_schema(schema.to_string())
}
