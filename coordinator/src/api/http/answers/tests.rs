use palimpsest_proto::v1::TokenLogprob;

use super::*;

fn token(bytes: &[u8], top: Vec<TokenLogprob>) -> TokenLogprob {
    TokenLogprob {
        id: 1,
        logprob: -0.5,
        bytes: bytes.to_vec().into(),
        top,
    }
}

/// The answer to two deltas, read back.
fn whole(dialect: Dialect) -> Value {
    let frame = Frame {
        dialect,
        id: "id".into(),
        created: 7,
        model: "m".into(),
        warnings: Vec::new(),
    };
    let mut choice = Choice::default();
    let top = || vec![token(b"b\"", Vec::new())];
    for text in ["é\n", "x"] {
        let delta = Delta {
            text: text.into(),
            tokens: vec![token(text.as_bytes(), top())],
            ..Default::default()
        };
        choice.add(dialect, &delta);
    }
    assert!(choice.bytes() > 50);
    choice.finish = Some("stop");
    let choices = vec![choice, Choice::default()];
    serde_json::from_slice(&frame.whole(choices, 1)).expect("JSON")
}

/// A character of four bytes in two tokens, another one alone, and a byte that is none.
#[test]
fn tokens_that_are_parts_of_characters_keep_their_bytes_and_count_none() {
    let mut logprobs = Logprobs::default();
    let smile = "😀".as_bytes();
    let parts = [
        b"a",
        &smile[..2],
        &smile[2..],
        "é".as_bytes(),
        b"\xff",
        b"b",
    ];
    let top = || {
        vec![
            token(&smile[..1], Vec::new()),
            token(&smile[..3], Vec::new()),
        ]
    };
    for part in parts {
        logprobs.add(Dialect::Completion, &token(part, top()));
    }
    let mut out = Vec::new();
    logprobs.write(&mut out, Dialect::Completion);
    let found: Value = serde_json::from_slice(&out).expect("JSON");
    let texts = json!([
        "a",
        "bytes:\\xf0\\x9f",
        "bytes:\\x98\\x80",
        "é",
        "bytes:\\xff",
        "b"
    ]);
    assert_eq!(found["tokens"], texts);
    assert_eq!(found["text_offset"], json!([0, 1, 1, 2, 3, 4]));
    let top = found["top_logprobs"][0].as_object().expect("alternatives");
    assert_eq!(
        top.len(),
        3,
        "no two have the same key, and the token is one"
    );
}

#[test]
fn a_whole_chat_is_written_as_an_object_would_be() {
    let top = json!([{"token": "b\"", "logprob": -0.5, "bytes": [98, 34]}]);
    let entry = |text: &str| {
        let bytes = text.as_bytes();
        json!({"token": text, "logprob": -0.5, "bytes": bytes, "top_logprobs": top})
    };
    let whole = whole(Dialect::Chat);
    assert_eq!(
        whole["choices"],
        json!([
            {
                "index": 0, "finish_reason": "stop",
                "logprobs": {"content": [entry("é\n"), entry("x")], "refusal": null},
                "message": {"role": "assistant", "content": "é\nx", "refusal": null},
            },
            {
                "index": 1, "finish_reason": null, "logprobs": null,
                "message": {"role": "assistant", "content": "", "refusal": null},
            },
        ])
    );
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["usage"]["total_tokens"], 0);
}

#[test]
fn a_whole_completion_is_written_as_an_object_would_be() {
    let top = |token: &str| json!({"b\"": -0.5, token: -0.5});
    let whole = whole(Dialect::Completion);
    assert_eq!(
        whole["choices"][0],
        json!({
            "index": 0, "finish_reason": "stop", "text": "é\nx",
            "logprobs": {
                "tokens": ["é\n", "x"], "token_logprobs": [-0.5, -0.5],
                "top_logprobs": [top("é\n"), top("x")], "text_offset": [0, 2],
            },
        })
    );
    assert_eq!((&whole["id"], &whole["created"]), (&json!("id"), &json!(7)));
}
