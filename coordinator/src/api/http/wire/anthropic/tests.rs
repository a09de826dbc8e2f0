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
        (
            of(block("tool_result")),
            "messages[0].content[1].tool_use_id",
        ),
        (
            of(block("web_search_tool_result")),
            "messages[0].content[1].type",
        ),
        (of(json!([{"type": "text"}])), "messages[0].content[0].text"),
        (of(other_mark), "messages[0].content[0].cache_control"),
        (json!({"system": block("image")}), "system[1].type"),
        (
            json!({"messages": [{"role": "tool", "content": ""}]}),
            "messages[0].role",
        ),
        (json!({"thinking": {"type": "deep"}}), "thinking.type"),
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

fn tools(extra: Value) -> Value {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let tool =
        json!({"name": "add", "description": "Adds", "input_schema": schema, "strict": true});
    let mut asked = json!({"tools": [tool]});
    let fields = extra.as_object().unwrap().clone();
    asked.as_object_mut().unwrap().extend(fields);
    asked
}

#[test]
fn tools_are_those_of_other_routes() {
    let read = chat(ask(tools(json!({}))).unwrap());
    let [tool] = &read.tools[..] else {
        panic!("one tool")
    };
    assert_eq!((&*tool.name, &*tool.description), ("add", "Adds"));
    // In the client's order.
    assert_eq!(
        tool.parameters,
        r#"{"type":"object","properties":{"b":{},"a":{}}}"#
    );
    assert!(tool.strict && !read.single_call);
    assert_eq!(read.tool_mode(), ToolMode::Auto);
    for (choice, mode, name, single) in [
        (json!({"type": "auto"}), ToolMode::Auto, "", false),
        (json!({"type": "none"}), ToolMode::None, "", false),
        (
            json!({"type": "any", "disable_parallel_tool_use": true}),
            ToolMode::Required,
            "",
            true,
        ),
        (
            json!({"type": "tool", "name": "add"}),
            ToolMode::Required,
            "add",
            false,
        ),
    ] {
        let read = chat(ask(tools(json!({"tool_choice": choice}))).unwrap());
        assert_eq!(
            (read.tool_mode(), &*read.tool_name, read.single_call),
            (mode, name, single)
        );
    }
}

#[test]
fn tools_that_cannot_be_are_refused_by_name() {
    let schema = json!({"type": "object"});
    for (extra, field) in [
        (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
        (
            json!({"tools": [{"name": "f", "input_schema": [1]}]}),
            "tools[0].input_schema",
        ),
        (
            json!({"tools": [{"input_schema": schema}]}),
            "tools[0].name",
        ),
        (
            json!({"tools": [
                {"name": "f", "input_schema": schema},
                {"type": "web_search_20250305", "name": "web_search"},
            ]}),
            "tools[1].type",
        ),
        (
            tools(json!({"tool_choice": {"type": "some"}})),
            "tool_choice.type",
        ),
        (
            tools(json!({"tool_choice": {"type": "tool"}})),
            "tool_choice.name",
        ),
        (
            tools(json!({"tool_choice": {"type": "any"}, "thinking": {"type": "enabled"}})),
            "tool_choice",
        ),
    ] {
        let error = ask(extra.clone()).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some(field), "{extra}");
        assert!(error.body.message.len() < 200, "{extra}");
    }
}

fn call(id: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": "add", "input": {"a": 1}})
}

fn result(id: &str, content: Value) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": content})
}

#[test]
fn calls_and_results_become_messages_of_the_assistant_and_of_tools() {
    let parts = json!([{"type": "text", "text": "3"}, {"type": "text", "text": "4"}]);
    let failed = json!({
        "type": "tool_result", "tool_use_id": "toolu_b", "is_error": true, "content": "no",
        "cache_control": {"type": "ephemeral"},
    });
    let asked = ask(json!({"messages": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "text", "text": "I look."}, call("toolu_a"),
        ]},
        {"role": "assistant", "content": [call("toolu_b"), call("c")]},
        {"role": "user", "content": [result("toolu_a", parts), failed]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "c"},
            {"type": "text", "text": "and "}, {"type": "text", "text": "now?"},
        ]},
    ]}))
    .unwrap();
    let cuts = asked.prompted.cuts.clone();
    let messages = chat(asked).messages;
    let texts: Vec<_> = messages
        .iter()
        .map(|one| pair(&one.role, &one.content))
        .collect();
    let expected = [
        pair("user", "hi"),
        pair("assistant", "I look."),
        pair("tool", "34"),
        pair("tool", "Error: no"),
        pair("tool", ""),
        pair("user", "and now?"),
    ];
    assert_eq!(texts, expected);
    assert_eq!(messages[1].reasoning(), "hm");
    let calls = messages[1].tool_calls().iter();
    let calls: Vec<_> = calls
        .map(|call| (&*call.id, &*call.name, &*call.arguments))
        .collect();
    let arguments = "{\"a\":1}";
    assert_eq!(calls, ["a", "b", "c"].map(|id| (id, "add", arguments)));
    let results = messages[2..5].iter();
    let results: Vec<_> = results
        .map(|one| (one.tool_call_id(), one.name()))
        .collect();
    assert_eq!(results, ["a", "b", "c"].map(|id| (id, "add")));
    // The mark stands behind the second result.
    assert_eq!(
        cuts,
        [Cut {
            message: 3,
            bytes: 9
        }]
    );
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: Value) -> Value {
    json!({"role": "assistant", "content": content})
}

/// Messages are refused, with the place that is named.
fn refused_at(cases: Vec<(Vec<Value>, &str)>) {
    for (messages, field) in cases {
        let error = ask(json!({"messages": messages})).unwrap_err();
        assert_eq!(error.body.param.as_deref(), Some(field), "{messages:?}");
        assert!(error.body.message.len() < 200, "{}", error.body.message);
    }
}

/// As Anthropic's own service has it: each call has one result, in the message behind it and before
/// anything else there.
#[test]
fn calls_and_results_out_of_order_are_refused_with_their_place() {
    let text = json!({"type": "text", "text": "x"});
    refused_at(vec![
        (
            vec![user(json!([result("a", json!("3"))]))],
            "messages[0].content[0].tool_use_id",
        ),
        (
            vec![user(json!("x")), assistant(json!([text, call("a")]))],
            "messages[1].content[1].id",
        ),
        (
            vec![assistant(json!([call("a")])), user(json!("x"))],
            "messages[0].content[0].id",
        ),
        (
            vec![
                assistant(json!([call("a")])),
                user(json!([text, result("a", json!("3"))])),
            ],
            "messages[0].content[0].id",
        ),
        (
            vec![
                assistant(json!([call("a"), call("b")])),
                user(json!([result("a", json!("3"))])),
                assistant(json!("so")),
                user(json!("x")),
            ],
            "messages[0].content[1].id",
        ),
        (
            vec![
                assistant(json!([call("a")])),
                user(json!([result("a", json!("3")), result("a", json!("3"))])),
            ],
            "messages[1].content[1].tool_use_id",
        ),
        (
            vec![assistant(json!([call("a"), call("a")]))],
            "messages[0].content[1].id",
        ),
    ]);
}

/// What cannot stand in a call, in a result, or in whose message it is.
#[test]
fn blocks_that_cannot_be_are_refused_with_their_place() {
    let image = json!([{"type": "text", "text": "see"}, {"type": "image", "source": {}}]);
    refused_at(vec![
        (
            vec![user(json!([call("a")]))],
            "messages[0].content[0].type",
        ),
        (
            vec![
                assistant(json!([call("a")])),
                assistant(json!([result("a", json!("3"))])),
            ],
            "messages[1].content[0].type",
        ),
        (
            vec![
                assistant(json!([call("a")])),
                user(json!([result("a", image)])),
            ],
            "messages[1].content[0].content[1].type",
        ),
        (
            vec![
                assistant(json!([call("a")])),
                user(json!([result("a", json!(3))])),
            ],
            "messages[1].content[0].content",
        ),
        (
            vec![assistant(
                json!([{"type": "tool_use", "id": "a", "name": "f", "input": "x"}]),
            )],
            "messages[0].content[0].input",
        ),
        (
            vec![assistant(
                json!([{"type": "tool_use", "name": "f", "input": {}}]),
            )],
            "messages[0].content[0].id",
        ),
        (
            vec![user(json!([{"type": "thinking", "thinking": "hm"}]))],
            "messages[0].content[0].type",
        ),
        (
            vec![
                user(json!("x")),
                assistant(json!([{"type": "thinking", "thinking": "hm"}])),
            ],
            "messages",
        ),
    ]);
    let error = ask(json!({"system": [call("a")]})).unwrap_err();
    assert_eq!(error.body.param.as_deref(), Some("system[0].type"));
}

/// Templates think by default where they can: nobody asked for that here.
#[test]
fn a_model_thinks_where_that_is_asked_for() {
    for (thinking, is_on) in [
        (json!(null), false),
        (json!({"type": "disabled"}), false),
        (json!({"type": "adaptive"}), true),
        (json!({"type": "enabled", "budget_tokens": 2048}), true),
    ] {
        let asked = ask(json!({"thinking": thinking})).unwrap();
        assert_eq!(asked.hears_thoughts, is_on);
        let warned = asked.warnings.len();
        assert_eq!(warned, usize::from(thinking["budget_tokens"].is_number()));
        let read = chat(asked);
        assert!(read.split_reasoning);
        let kwargs: Value = serde_json::from_str(&read.template_kwargs).unwrap();
        assert_eq!(kwargs, json!({"enable_thinking": is_on, "thinking": is_on}));
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
