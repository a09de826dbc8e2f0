use std::collections::BTreeMap;

use palimpsest_proto::v1::Guide;
use palimpsest_proto::v1::guide::Kind;
use serde_json::{Value, json};

use super::super::read_body;
use super::*;

fn ask(extra: Value) -> Result<ResponseRequest, HttpError> {
    let mut body = json!({"model": "m", "input": "hi"});
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let body = read_body::<ResponseBody>(body.to_string().as_bytes());
    body.expect("well-formed").asked()
}

fn message(role: &str, text: &str) -> Message {
    Message {
        role: role.into(),
        text: text.into(),
    }
}

#[test]
fn every_field_reaches_the_request() {
    let previous = ResponseId::draw();
    let asked = ask(json!({
        "instructions": "Be brief", "previous_response_id": previous.to_string(), "store": false,
        "stream": true, "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.9,
        "metadata": {"a": "b"}, "user": "u", "truncation": "disabled",
        "text": {"format": {"type": "text"}, "verbosity": "low"}, "include": [],
        "seed": 3, "stop": "x", "top_k": 5, "ignore_eos": true, "priority": 2,
        "kv_budget": 512, "kv_policy": "window", "latent_memory": "none",
        "stream_options": {"include_obfuscation": false},
    }))
    .unwrap();
    let expected = Asked {
        instructions: Some("Be brief".into()),
        max_output_tokens: Some(7),
        temperature: 0.5,
        top_p: 0.9,
        metadata: BTreeMap::from([("a".into(), "b".into())]),
        user: Some("u".into()),
        store: false,
        format: None,
    };
    assert_eq!(asked.asked, expected);
    assert_eq!((asked.previous, asked.stream), (Some(Some(previous)), true));
    assert_eq!(asked.input, [message("user", "hi")]);
    let request = asked.request;
    let sampling = request.sampling.unwrap();
    assert_eq!(
        (
            sampling.temperature,
            sampling.top_p,
            sampling.seed,
            sampling.top_k
        ),
        (Some(0.5), Some(0.9), Some(3), 5)
    );
    let stopping = request.stopping.unwrap();
    assert_eq!(
        (stopping.max_tokens, stopping.stop, stopping.ignore_eos),
        (Some(7), vec!["x".to_owned()], true)
    );
    let kv = request.kv.unwrap();
    assert_eq!(
        (
            kv.budget,
            kv.policy.as_str(),
            kv.memory.as_str(),
            request.priority
        ),
        (512, "window", "none", 2)
    );
}

#[test]
fn the_form_of_the_answer_is_its_guide_and_is_repeated() {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let format = json!({
        "type": "json_schema", "name": "n", "schema": schema, "strict": true,
    });
    let asked = ask(json!({"text": {"format": format}})).unwrap();
    assert_eq!(
        asked.request.guide,
        Some(Guide::of_schema(schema.to_string()))
    );
    assert_eq!(asked.asked.format, Some(format));

    let object = json!({"type": "json_object"});
    let asked = ask(json!({"text": {"format": object}})).unwrap();
    assert_eq!(asked.request.guide, Some(Kind::JsonObject(true).into()));
    assert_eq!(asked.asked.format, Some(object));
}

/// What clients leave out is as OpenAI has it.
#[test]
fn a_response_is_kept_unless_the_client_says_otherwise() {
    for nothing in [
        json!({}),
        json!({"store": null, "previous_response_id": null}),
    ] {
        let asked = ask(nothing).unwrap();
        assert!(asked.asked.store && !asked.stream && asked.previous.is_none());
        assert_eq!((asked.asked.temperature, asked.asked.top_p), (1.0, 1.0));
    }
    // A name that no response has is told from none.
    let other = ask(json!({"previous_response_id": "resp_1"})).unwrap();
    assert_eq!(other.previous, Some(None));
}

#[test]
fn messages_come_as_text_and_as_items() {
    let asked = ask(json!({"input": [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"},
        ]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "d", "annotations": [], "logprobs": []},
        ]},
        {"role": "system", "content": ""},
    ]}));
    let expected = [
        message("system", "a"),
        message("user", "bc"),
        message("assistant", "d"),
        message("system", ""),
    ];
    assert_eq!(asked.unwrap().input, expected);
    // Five bytes each, of which a hundred would be made.
    for bad in [
        json!([["user"]]),
        json!([{"role": "user", "content": [["input_text"]]}]),
        json!({"role": "user"}),
        json!(7),
    ] {
        let body = json!({"input": bad}).to_string();
        let error = read_body::<ResponseBody>(body.as_bytes()).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("input"), "{body}");
    }
}

/// Each is refused by the name of its field.
fn assert_named(cases: &[(Value, &str)]) {
    for (extra, field) in cases {
        let error = ask(extra.clone()).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.body.param.as_deref()),
            (400, Some(*field)),
            "{extra}"
        );
    }
}

#[test]
fn an_item_that_is_no_message_of_text_is_named() {
    let item = |item: Value| json!({"input": [{"role": "user", "content": "a"}, item]});
    assert_named(&[
        (
            item(json!({"type": "item_reference", "id": "msg_1"})),
            "input[1].type",
        ),
        (
            item(json!({"type": "function_call", "name": "f"})),
            "input[1].type",
        ),
        (
            item(json!({"type": "reasoning", "summary": []})),
            "input[1].type",
        ),
        (
            item(json!({"role": "tool", "content": "a"})),
            "input[1].role",
        ),
        (item(json!({"content": "a"})), "input[1].role"),
        (item(json!({"role": "user"})), "input[1].content"),
        (
            item(json!({"role": "user", "content": [{"type": "input_image"}]})),
            "input[1].content",
        ),
        (
            item(json!({"role": "user", "content": [{"type": "input_text"}]})),
            "input[1].content",
        ),
    ]);
}

#[test]
fn what_is_not_supported_is_named_unless_it_asks_for_nothing() {
    let long = "x".repeat(513);
    let many: BTreeMap<String, &str> = (0..17).map(|key| (key.to_string(), "")).collect();
    let cases = [
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"background": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"top_logprobs": 1}), "top_logprobs"),
        (
            json!({"context_management": [{"type": "compaction"}]}),
            "context_management",
        ),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"text": {"format": {"type": "xml"}}}), "text.format"),
        (
            json!({"text": {"format": {"type": "json_schema"}}}),
            "text.format.schema",
        ),
        (
            json!({"include": ["message.output_text.logprobs"]}),
            "include",
        ),
        (json!({"include": ["x"]}), "include"),
        (json!({"metadata": many}), "metadata"),
        (json!({"metadata": {"a": long}}), "metadata"),
        (json!({"metadata": {"x".repeat(65): ""}}), "metadata"),
        (json!({"user": "x".repeat(2000)}), "user"),
        (json!({"session_id": "s"}), "session_id"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"messages": []}), "messages"),
        (json!({"n": 2}), "n"),
        (json!({"input": []}), "input"),
    ];
    assert_named(&cases);
    let harmless = json!({
        "tools": [], "tool_choice": "auto", "background": false, "conversation": null,
        "prompt": null, "top_logprobs": 0, "context_management": null, "truncation": null,
        "text": null, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"},
        "parallel_tool_calls": true, "max_tool_calls": 3, "service_tier": "flex",
        "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "prompt_cache_options": {}, "metadata": null, "user": null, "instructions": null,
    });
    assert!(ask(harmless).is_ok());
}

/// The document names every field that is read, ignored or refused by name, and no other.
#[test]
fn the_openapi_document_has_the_fields_of_this_body() {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).expect("JSON");
    let schema = &document["components"]["schemas"]["ResponseRequest"];
    let properties = schema["properties"].as_object().expect("properties");
    let mut documented: Vec<&str> = properties.keys().map(String::as_str).collect();
    let known = OWN.iter().chain(&SHARED).chain(&IGNORED);
    let mut known: Vec<&str> = known.copied().collect();
    documented.sort_unstable();
    known.sort_unstable();
    assert_eq!(documented, known);
    assert_eq!(schema["additionalProperties"], false);
    for field in OWN.iter().chain(&SHARED) {
        let mut body = json!({"input": "a"});
        body[*field] = json!([[7]]);
        let read = read_body::<ResponseBody>(body.to_string().as_bytes());
        assert!(read.is_err(), "{field} takes anything");
    }
}
