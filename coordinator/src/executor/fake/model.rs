//! The model that fake ranks report: tiny, with a tokenizer of bytes.

use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::v1::KvContract;
use serde_json::json;

/// Token ids below this are the bytes of the fake model's tokenizer.
pub const BYTE_TOKENS: u32 = 256;
/// Id of `<|im_start|>`.
pub const IM_START: u32 = 266;
/// Id of `<|im_end|>`, the end of sequence.
pub const IM_END: u32 = 267;
/// Size of the vocabulary.
pub const VOCABULARY: u64 = 268;

/// The fake model: 2 layers, 2 KV heads, stride 16, byte-level vocabulary, a ChatML template.
pub fn model() -> ModelInfo {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content \
                    }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                    %}<|im_start|>assistant\n{% endif %}";
    ModelInfo {
        name: "fake".into(),
        architecture: "fake".into(),
        context_length: 512,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocabulary: VOCABULARY,
        parameters: 0,
        kv_element_bytes: 2,
        kv_scale_bytes: 0,
        stride: 16,
        tokenizer: byte_level_tokenizer().into(),
        chat_template: template.into(),
        bos_token: "<|im_start|>".into(),
        eos_token: "<|im_end|>".into(),
        eos_ids: vec![IM_END],
        policies: ["full", "window", "random", "retention"]
            .map(String::from)
            .into(),
        pooled_policies: ["random", "retention"].map(String::from).into(),
        memories: ["none", "associative"].map(String::from).into(),
        default_kv: Some(KvContract {
            budget: 64,
            policy: "window".into(),
            memory: "none".into(),
            ..Default::default()
        }),
        state_digest: b"fake"[..].into(),
        embedding_length: 2,
    }
}

/// A `tokenizer.json`: byte-level BPE in which id = byte, a few merges from [`BYTE_TOKENS`] on, two
/// control tokens.
pub fn byte_level_tokenizer() -> Vec<u8> {
    let mut next = 0x100;
    let mut alphabet: Vec<String> = Vec::new();
    for byte in 0..=u8::MAX {
        let plain = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if plain { u32::from(byte) } else { next };
        next += u32::from(!plain);
        alphabet.extend(char::from_u32(code).map(String::from));
    }
    let merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("h", "e"),
        ("l", "l"),
        ("he", "ll"),
        ("hell", "o"),
        ("Ã", "©"),
    ];
    let merged = merges
        .iter()
        .map(|(a, b)| format!("{a}{b}"))
        .chain(["<pad>".into(), "<unused>".into()]);
    let vocab: serde_json::Map<_, _> = alphabet
        .iter()
        .cloned()
        .chain(merged)
        .zip((0..).map(|id: u32| id.into()))
        .collect();
    let control = |id: u32, content: &str| {
        json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let merges: Vec<_> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [control(IM_START, "<|im_start|>"), control(IM_END, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": merges,
        },
    });
    file.to_string().into_bytes()
}
