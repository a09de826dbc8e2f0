use palimpsest_proto::v1::GenerateRequest;
use serde_json::{Value, json};

use super::super::read_body;
use super::*;

fn ask(extra: Value) -> Result<MessagesRequest, HttpError> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let mut body = json!({"model": "m", "max_tokens": 5, "messages": messages});
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let body = read_body::<MessagesBody>(body.to_string().as_bytes());
    body.expect("well-formed").asked()
}

/// Roles and texts of what is asked, and the beginning of the answer.
fn said(extra: Value) -> (Vec<(String, String)>, String) {
    let chat = chat(ask(extra).unwrap());
    let messages = chat.messages.into_iter();
    let messages = messages
        .map(|message| (message.role, message.content))
        .collect();
    (messages, chat.answer_prefix)
}

fn chat(asked: MessagesRequest) -> Chat {
    match asked.prompted.input {
        Some(Input::Chat(chat)) => chat,
        other => panic!("{other:?}"),
    }
}

fn pair(role: &str, text: &str) -> (String, String) {
    (role.to_owned(), text.to_owned())
}

#[test]
fn every_field_reaches_the_request() {
    let asked = ask(json!({
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "seed": 3, "min_p": 0.05,
        "stop_sequences": ["x"], "stream": true, "repetition_penalty": 1.5, "ignore_eos": true,
        "priority": 2, "kv_budget": 512, "kv_policy": "window", "latent_memory": "none",
        "cache_salt": "s", "metadata": {"user_id": "u"}, "service_tier": "auto",
        "thinking": {"type": "disabled"}, "tools": [], "tool_choice": null, "speed": "fast",
        "cache_control": {"type": "ephemeral"}, "context_management": null,
    }))
    .unwrap();
    assert!(asked.stream);
    let [request]: [GenerateRequest; 1] = asked.prompted.choices.try_into().unwrap();
    let sampling = request.sampling.unwrap();
    assert_eq!(
        (sampling.temperature, sampling.top_p),
        (Some(0.5), Some(0.9))
    );
    assert_eq!(
        (sampling.top_k, sampling.min_p, sampling.seed),
        (3, 0.05, Some(3))
    );
    assert_eq!(sampling.repetition_penalty, Some(1.5));
    let stopping = request.stopping.unwrap();
    assert_eq!((stopping.max_tokens, stopping.ignore_eos), (Some(7), true));
    assert_eq!(stopping.stop, ["x"]);
    let kv = request.kv.unwrap();
    let asked = (kv.budget, kv.policy.as_str(), kv.memory.as_str());
    assert_eq!(asked, (512, "window", "none"));
    assert_eq!((request.model.as_str(), request.priority), ("m", 2));
    assert_eq!(request.cache_salt, "s");
    let default = ask(json!({})).unwrap().prompted.choices.remove(0);
    assert_eq!(default.sampling.unwrap().temperature, Some(1.0));
}

#[test]
fn a_conversation_has_its_instructions_first_and_turns_of_one_role_together() {
    let text = |text: &str| json!({"type": "text", "text": text, "citations": null});
    let (messages, prefix) = said(json!({
        "system": [text("Be "), text("brief")],
        "messages": [
            {"role": "system", "content": "and kind"},
            {"role": "user", "content": [text("a"), text("b")]},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
            {"role": "user", "content": "e"},
            {"role": "assistant", "content": "So"},
        ],
    }));
    let expected = [
        pair("system", "Be brief\n\nand kind"),
        pair("user", "ab\n\nc"),
        pair("assistant", "d"),
        pair("user", "e"),
    ];
    assert_eq!(messages, expected);
    assert_eq!(prefix, "So");
    assert_eq!(said(json!({"system": ""})).0, [pair("user", "hi")]);
}

#[test]
fn marks_stand_behind_their_blocks() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let marked =
        |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let asked = ask(json!({
        "system": [text("Be "), marked("brief")],
        "messages": [
            {"role": "user", "content": [marked("é"), text("b")]},
            {"role": "user", "content": [marked("c"), text("d")]},
            // Its end is the prompt's, which is kept anyway.
            {"role": "assistant", "content": [marked("So")]},
        ],
    }));
    let cuts = asked.unwrap().prompted.cuts;
    let cut = |message, bytes| Cut { message, bytes };
    assert_eq!(cuts, [cut(0, 8), cut(1, 2), cut(1, 6)]);
    let many = json!([{"role": "user", "content": vec![marked("x"); 1000]}]);
    let error = ask(json!({"messages": many})).unwrap_err();
    assert_eq!(error.body.param.as_deref(), Some("cache_control"));
    let four = json!([{"role": "user", "content": vec![marked("x"); 4]}]);
    assert_eq!(
        ask(json!({"messages": four})).unwrap().prompted.cuts.len(),
        4
    );
}

#[test]
fn what_is_not_supported_is_named_with_its_place() {
    let block = |kind: &str| json!([{"type": "text", "text": "a"}, {"type": kind, "text": "b"}]);
    let of = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let other_mark = json!([{"type": "text", "text": "a", "cache_control": {"type": "eternal"}}]);
    for (extra, field) in [
        (of(block("image")), "messages[0].content[1].type"),
        (of(block("document")), "messages[0].content[1].type"),
        (of(block("tool_result")), "messages[0].content[1].type"),
        (of(json!([{"type": "text"}])), "messages[0].content[0].text"),
        (of(other_mark), "messages[0].content[0].cache_control"),
        (json!({"system": block("image")}), "system[1].type"),
        (
            json!({"messages": [{"role": "tool", "content": ""}]}),
            "messages[0].role",
        ),
        (json!({"tools": [{"name": "f"}]}), "tools"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"thinking": {"type": "adaptive"}}), "thinking"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (json!({"output_config": {"effort": "low"}}), "output_config"),
        (json!({"model": "x".repeat(2000)}), "model"),
        (json!({"stop": "x"}), "stop"),
        (json!({"session_id": "s"}), "session_id"),
    ] {
        let error = ask(extra.clone()).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some(field), "{extra}");
        assert!(error.body.message.len() < 200, "{extra}");
    }
}

/// The document names every field that is read or ignored, and no other.
#[test]
fn the_openapi_document_has_the_fields_of_these_bodies() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
    let properties = |schema: &str| {
        let schema = &document["components"]["schemas"][schema];
        assert_eq!(schema["additionalProperties"], false);
        let properties = schema["properties"].as_object().expect("properties");
        let mut names: Vec<String> = properties.keys().cloned().collect();
        names.sort_unstable();
        names
    };
    let sorted = |lists: &[&[&'static str]]| {
        let mut names = lists.concat();
        names.sort_unstable();
        names
    };
    assert_eq!(
        properties("MessagesRequest"),
        sorted(&[&OWN, &SHARED, &IGNORED])
    );
    let counted = [&CONVERSATION[..], KNOWN_TO_COUNT.ignored];
    assert_eq!(properties("CountTokensRequest"), sorted(&counted));
    for field in OWN.iter().chain(&SHARED) {
        let mut body = json!({"messages": []});
        body[*field] = json!([[7]]);
        let read = read_body::<MessagesBody>(body.to_string().as_bytes());
        assert!(read.is_err(), "{field} takes anything");
    }
}
