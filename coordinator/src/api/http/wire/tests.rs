use std::collections::BTreeMap;

use palimpsest_proto::v1::{TokenIds, ToolMode};
use serde_json::{Value, json};

use super::table::{FIELDS, Routes, What, markdown};
use super::*;

fn read<T: RequestBody>(body: &Value) -> Result<T, Unreadable> {
    read_body(body.to_string().as_bytes())
}

fn chat(extra: Value) -> Result<Choices, HttpError> {
    asked(extra, true)
}

/// A chat of a server that is strict or not.
fn asked(extra: Value, is_strict: bool) -> Result<Choices, HttpError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    let read = read::<ChatRequest>(&body).expect("well-formed");
    read.choices(is_strict)
}

/// The request of a chat with one choice.
fn request(extra: Value) -> GenerateRequest {
    let choices = chat(extra).unwrap();
    choices.prompts[0].choices[0].clone()
}

/// The conversation of a chat.
fn conversation(extra: Value) -> palimpsest_proto::v1::Chat {
    let choices = chat(extra).unwrap();
    let Some(Input::Chat(chat)) = choices.prompts[0].input.clone() else {
        panic!("a chat")
    };
    chat
}

#[test]
fn every_field_reaches_the_request() {
    let choices = chat(json!({
        "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "n": 2, "stop": "x",
        "seed": 3, "top_k": -1, "frequency_penalty": 0.1, "presence_penalty": 0.2,
        "logit_bias": {"5": -1.0}, "logprobs": true, "top_logprobs": 4, "kv_budget": 512,
        "kv_policy": "window", "latent_memory": "none", "priority": 2, "stream": true,
        "stream_options": {"include_usage": true}, "min_p": 0.05, "user": "u", "ignore_eos": true,
        "session_id": "s",
    }))
    .unwrap();
    assert!(choices.include_usage && choices.per_prompt == 2 && choices.count() == 2);
    let [first, second] = &choices.prompts[0].choices[..] else {
        panic!("two choices")
    };
    let sampling = first.sampling.clone().unwrap();
    assert_eq!(
        (
            sampling.temperature,
            sampling.seed,
            sampling.logprobs,
            sampling.top_k
        ),
        (Some(0.5), Some(3), Some(4), 0)
    );
    assert_eq!(second.sampling.clone().unwrap().seed, Some(4));
    assert_eq!(sampling.logit_bias, BTreeMap::from([(5, -1.0)]));
    let stopping = first.stopping.clone().unwrap();
    assert_eq!(
        (stopping.max_tokens, stopping.stop, stopping.ignore_eos),
        (Some(7), vec!["x".to_owned()], true)
    );
    assert_eq!(first.session_id, "s");
    let kv = first.kv.clone().unwrap();
    assert_eq!(
        (
            kv.budget,
            kv.policy.as_str(),
            kv.memory.as_str(),
            first.priority
        ),
        (512, "window", "none", 2)
    );
    assert_eq!(
        chat(json!({})).unwrap().prompts[0].choices[0]
            .sampling
            .clone()
            .unwrap()
            .temperature,
        Some(1.0)
    );
}

#[test]
fn what_is_not_supported_is_named_unless_it_asks_for_nothing() {
    let cases = [
        (json!({"audio": {"voice": "ash"}}), "audio"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (
            json!({"tool_choice": {"type": "allowed_tools"}}),
            "tool_choice",
        ),
        (json!({"max_tokens": -2}), "max_tokens"),
        (
            json!({"max_completion_tokens": 1_u64 << 32}),
            "max_completion_tokens",
        ),
        (
            json!({"truncate_prompt_tokens": -1}),
            "truncate_prompt_tokens",
        ),
        (json!({"request_id": "two\nlines"}), "request_id"),
        (json!({"kv_budget": 1, "kv": {"budget": 1}}), "kv_budget"),
        (json!({"mirostat": 2}), "mirostat"),
        (json!({"typical_p": 0.5}), "typical_p"),
        (json!({"add_special_tokens": true}), "add_special_tokens"),
        (
            json!({"add_generation_prompt": true, "continue_final_message": true}),
            "continue_final_message",
        ),
        (json!({"num_ctx": 4096}), "num_ctx"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"temprature": 1}), "temprature"),
        (json!({"n": 0}), "n"),
        (json!({"n": 17}), "n"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (
            json!({"logprobs": true, "top_logprobs": 21}),
            "top_logprobs",
        ),
        (json!({"logit_bias": {"a": 1}}), "logit_bias"),
        (json!({"top_k": -2}), "top_k"),
        (json!({"suffix": "x"}), "suffix"),
        (json!({"regex": "a+"}), "regex"),
        (json!({"options": {"num_ctx": 9}}), "options"),
        (json!({"n_probs": 3}), "n_probs"),
    ];
    for (extra, field) in cases {
        let error = chat(extra.clone()).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.body.param.as_deref()),
            (400, Some(field)),
            "{extra}"
        );
    }
    for harmless in [
        json!({
            "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
            "functions": null,
        }),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "parallel_tool_calls": true}),
        json!({"best_of": 1, "stop": null, "mirostat": 0, "typical_p": 1.0, "echo": false}),
        json!({"add_special_tokens": false, "ignore_eos": null, "priority": null, "kv": null}),
        json!({"suffix": "", "grammar": "", "n_probs": 0, "think": false, "images": []}),
    ] {
        assert!(chat(harmless.clone()).is_ok(), "{harmless}");
    }
}

#[test]
fn bodies_and_parts_of_them_differ_in_what_they_take() {
    let completion = json!({"prompt": "x", "add_special_tokens": true});
    let read = read::<CompletionRequest>(&completion).unwrap();
    assert!(read.choices(true).is_ok());
    let content = json!([{"type": "image_url", "image_url": {}}]);
    let image = json!({"messages": [{"role": "user", "content": content}]});
    assert_eq!(
        chat(image).unwrap_err().body.param.as_deref(),
        Some("messages[0].content")
    );
}

#[test]
fn a_suffix_stands_behind_each_prompt_that_is_a_text() {
    let ask = |body: Value| {
        let read = read::<CompletionRequest>(&body).expect("well-formed");
        read.choices(true)
    };
    let inputs = |body: Value| -> Vec<_> {
        let choices = ask(body).unwrap();
        let prompts = choices.prompts.into_iter();
        prompts.map(|one| one.input.unwrap()).collect()
    };
    let infill = |prefix: &str| {
        Input::Infill(Infill {
            prefix: prefix.into(),
            suffix: "z".into(),
        })
    };
    assert_eq!(
        inputs(json!({"prompt": ["a", ""], "suffix": "z"})),
        [infill("a"), infill("")]
    );
    let plain = [Input::Text("a".into())];
    for nothing in [json!(null), json!("")] {
        assert_eq!(inputs(json!({"prompt": "a", "suffix": nothing})), plain);
    }
    let refused = ask(json!({"prompt": [1, 2], "suffix": "z"})).unwrap_err();
    assert_eq!(refused.body.param.as_deref(), Some("suffix"));
}

/// The document names every field that is not refused, and no other.
#[test]
fn the_openapi_document_has_the_fields_of_these_types() {
    let document: Value = serde_json::from_str(include_str!("../openapi.json")).expect("JSON");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let own: [(&str, &[&str], Routes, Value); 2] = [
        (
            "ChatRequest",
            ChatRequest::OWN,
            Routes::Completion,
            json!({"messages": []}),
        ),
        (
            "CompletionRequest",
            CompletionRequest::OWN,
            Routes::Chat,
            json!({"prompt": ""}),
        ),
    ];
    for (schema, own, other, least) in own {
        let schema = &document["components"]["schemas"][schema];
        let mut documented: Vec<&str> = schema["properties"]
            .as_object()
            .expect("properties")
            .keys()
            .map(String::as_str)
            .collect();
        let here = FIELDS.iter().filter(|field| field.routes != other);
        let names = |takes: fn(&What) -> bool| {
            let fields = here.clone().filter(move |field| takes(&field.what));
            let mut names: Vec<&str> = fields.map(|field| field.name).collect();
            names.sort_unstable();
            names
        };
        documented.sort_unstable();
        let taken = names(|what| !matches!(what, What::Refused { .. }));
        assert_eq!(documented, taken);
        let mut read_here: Vec<&str> = own.iter().chain(&COMMON).copied().collect();
        read_here.sort_unstable();
        assert_eq!(read_here, names(|what| matches!(what, What::Honoured(_))));
        assert_eq!(schema["additionalProperties"], true);
        // COMMON itself is held against the struct: a field that is not read takes anything.
        // A schema may be any object.
        let fields = own.iter().chain(&COMMON);
        for field in fields.filter(|field| **field != "guided_json") {
            let mut body = least.clone();
            body[*field] = json!({"no": ["such", "type"]});
            let is_read =
                read::<ChatRequest>(&body).is_err() || read::<CompletionRequest>(&body).is_err();
            assert!(
                is_read || *field == "chat_template_kwargs",
                "{field} takes anything"
            );
        }
    }
}

/// The table of fields in the book is that of the code.
#[test]
fn the_book_has_the_table_of_fields() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/src/api.md");
    let page = std::fs::read_to_string(page).expect("the page");
    let (_, rest) = page.split_once("<!-- fields:begin -->\n").expect("a mark");
    let (table, _) = rest.split_once("<!-- fields:end -->").expect("a mark");
    let expected = markdown();
    assert!(table == expected, "put this between the marks:\n{expected}");
}

#[test]
fn the_openapi_document_has_the_fields_of_bodies_about_sessions() {
    let document: Value = serde_json::from_str(include_str!("../openapi.json")).expect("JSON");
    let embeddings: Vec<&str> = EmbeddingBody::OWN
        .iter()
        .chain(&["user"])
        .copied()
        .collect();
    let score: Vec<&str> = ScoreBody::OWN.iter().chain(&["user"]).copied().collect();
    let tokenize = [TokenizeBody::OWN, &["return_token_strs", "with_pieces"]].concat();
    for (schema, own) in [
        ("EmbeddingRequest", &embeddings[..]),
        ("ScoreRequest", &score),
        ("TokenizeRequest", &tokenize),
        ("CreateSession", CreateSessionBody::OWN),
        ("Append", AppendBody::OWN),
        ("Fork", ForkBody::OWN),
        ("OpenSession", OpenSessionBody::OWN),
        ("CloseSession", CloseSessionBody::OWN),
    ] {
        let schema = &document["components"]["schemas"][schema];
        let documented = schema["properties"].as_object().expect("properties");
        let documented: Vec<&str> = documented.keys().map(String::as_str).collect();
        assert_eq!(documented, own);
        assert_eq!(schema["additionalProperties"], false);
    }
}

#[test]
fn prompts_come_in_four_shapes() {
    let ask = |prompt: Value| {
        read::<CompletionRequest>(&json!({"prompt": prompt, "n": 2}))
            .unwrap()
            .choices(true)
            .unwrap()
    };
    assert_eq!(ask(json!("a")).count(), 2);
    let two = ask(json!(["a", "b"]));
    assert_eq!((two.prompts.len(), two.count()), (2, 4));
    assert_eq!(
        ask(json!([1, 2, 3])).prompts[0].input,
        Some(Input::TokenIds(TokenIds { ids: vec![1, 2, 3] }))
    );
    assert_eq!(ask(json!([[1], [2]])).count(), 4);
    for bad in [
        json!([1, "a"]),
        json!([[1], 2]),
        json!([-1]),
        json!([1.5]),
        json!([1_u64 << 32]),
    ] {
        let error = read::<CompletionRequest>(&json!({"prompt": bad})).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("prompt"), "{bad}");
    }
}

/// What a list has beyond its limit is counted and not held.
#[test]
fn lists_over_their_limit_are_refused_with_their_number() {
    let refused = |extra: Value| {
        let error = chat(extra).unwrap_err();
        (error.body.code, error.body.message)
    };
    let stops = refused(json!({"stop": vec!["x"; 1000]}));
    assert_eq!(stops.0, "bad_stopping");
    assert!(
        stops.1.contains("1000 stop strings, over the limit of 16"),
        "{stops:?}"
    );
    let biases: BTreeMap<String, f32> = (0..2000).map(|id| (id.to_string(), 1.0)).collect();
    let biases = refused(json!({"logit_bias": biases}));
    assert_eq!(biases.0, "bad_sampling");
    assert!(biases.1.contains("more than 1024 entries"), "{biases:?}");
    for prompt in [json!(vec!["x"; 1000]), json!(vec![[1]; 1000])] {
        let body = read::<CompletionRequest>(&json!({"prompt": prompt})).unwrap();
        assert_eq!((body.prompt.inputs.len(), body.prompt.count), (16, 1000));
        let error = body.choices(true).unwrap_err();
        assert!(
            error.body.message.contains("is 1000: ask for 1 to 16"),
            "{error:?}"
        );
    }
}

#[test]
fn messages_come_as_text_or_in_parts_and_never_as_lists() {
    let ask = |messages: Value| read::<ChatRequest>(&json!({"messages": messages}));
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let read = ask(json!([{"role": "user", "content": parts}, {"role": "x", "audio": [1]}]));
    let asked = read.unwrap().choices(true).unwrap();
    let Some(Input::Chat(chat)) = &asked.prompts[0].input else {
        panic!("{asked:?}")
    };
    assert_eq!(
        (chat.messages[0].content.as_str(), chat.messages.len()),
        ("ab", 2)
    );
    // Five bytes each, of which a hundred would be made.
    for bad in [
        json!([["user"]]),
        json!([{"role": "user", "content": [["text"]]}]),
    ] {
        assert_eq!(ask(bad).unwrap_err().field.as_deref(), Some("messages"));
    }
}

/// Names are the client's: an error that repeats megabytes goes into logs, too.
#[test]
fn an_error_repeats_the_beginning_of_a_field_only() {
    let name = "x".repeat(1_000_000);
    let error = chat(json!({ name.as_str(): 1 })).unwrap_err();
    let shown = error.json().to_string();
    assert!(
        shown.len() < 400 && shown.contains(&"x".repeat(64)),
        "{}",
        shown.len()
    );
    let error = read::<AppendBody>(&json!({ name.as_str(): 1 })).unwrap_err();
    assert!(error.field.is_some_and(|field| field.len() < 100));
    assert!(error.error.to_string().len() < 200);
}

#[test]
fn the_field_that_cannot_be_read_is_named() {
    let chat = |extra: Value| {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let fields = extra.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        read::<ChatRequest>(&body).err().map(|error| error.field)
    };
    assert_eq!(chat(json!({})), None);
    for (extra, field) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"max_tokens": 0.5}), "max_tokens"),
        (json!({"seed": 1, "top_p": [0.5]}), "top_p"),
        (json!({"messages": "hi"}), "messages"),
    ] {
        assert_eq!(chat(extra), Some(Some(field.to_owned())));
    }
    // Nothing that stands there is at fault.
    for bad in [
        "{}",
        "[1",
        "{\"prompt\": \"a\", \"n\": 1e",
        "{\"prompt\": \"a\"} x",
    ] {
        let error = read_body::<CompletionRequest>(bad.as_bytes()).unwrap_err();
        assert_eq!(error.field, None, "{bad}");
    }
}

#[test]
fn fields_of_neighbours_reach_the_request() {
    let asked = request(json!({
        "stop_token_ids": [5, 6], "min_tokens": 2, "skip_special_tokens": false,
        "include_stop_str_in_output": true, "return_token_ids": true,
        "truncate_prompt_tokens": 9, "max_tokens": -1, "top_p": 0, "stop": [null, "x", null],
        "kv": {"budget": 64, "sinks": 2, "window": 8, "positions": "compacted",
               "head_budget": "uniform", "memory_slots": 0, "policy": "window", "memory": "none"},
    }));
    let stopping = asked.stopping.unwrap();
    assert_eq!(
        (stopping.stop_token_ids, stopping.min_tokens, stopping.stop),
        (vec![5, 6], 2, vec!["x".to_owned()])
    );
    assert_eq!((stopping.max_tokens, stopping.fill_context), (None, true));
    let sampling = asked.sampling.unwrap();
    assert_eq!((sampling.temperature, sampling.top_p), (Some(0.0), None));
    assert!(asked.show_special_tokens && asked.include_stop && asked.return_token_ids);
    assert_eq!(asked.truncate_prompt_tokens, Some(9));
    let kv = asked.kv.unwrap();
    assert_eq!(
        (kv.budget, kv.sinks, kv.window, kv.memory_slots),
        (64, Some(2), Some(8), Some(0))
    );
    assert_eq!(
        (kv.policy, kv.memory, kv.positions, kv.head_budget),
        (
            "window".into(),
            "none".into(),
            "compacted".into(),
            "uniform".into()
        )
    );
    let choices = chat(json!({"request_id": "mine", "kv": {}})).unwrap();
    assert_eq!(choices.request_id.as_deref(), Some("mine"));
    assert!(choices.named.has_kv && choices.warnings.is_empty());
    let unknown = json!({"messages": [], "kv": {"sink": 1}});
    let error = read::<ChatRequest>(&unknown).unwrap_err();
    assert!(
        error
            .error
            .to_string()
            .starts_with("unknown field `kv.sink`")
    );
}

/// No answer changes in silence: what does nothing is named, and what would change it is refused.
#[test]
fn fields_that_do_nothing_are_named_in_warnings() {
    let extra = json!({"temprature": 1, "num_ctx": 9, "user": "u", ("x".repeat(100)): 1});
    let warnings = asked(extra, false).unwrap().warnings;
    assert_eq!(
        warnings[..2],
        [
            "unknown field `temprature`: it was ignored",
            "`num_ctx` has no effect here: it was ignored",
        ]
    );
    assert_eq!(warnings.len(), 3);
    assert!(warnings[2].len() < 120, "{}", warnings[2]);
    let many: serde_json::Map<String, Value> = (0..1000)
        .map(|index| (format!("f{index}"), json!(1)))
        .collect();
    assert_eq!(asked(many.into(), false).unwrap().warnings.len(), 16);
    assert!(asked(json!({"echo": true}), false).is_err());
}

#[test]
fn tools_and_calls_reach_the_conversation() {
    let tool = json!({"type": "function", "function": {
        "name": "add", "description": "Adds", "strict": true,
        "parameters": {"type": "object", "properties": {"b": {}, "a": {}}},
    }});
    let call = |arguments: Value| {
        json!({
            "id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments},
        })
    };
    let read = conversation(json!({
        "messages": [
            {"role": "assistant", "content": null, "reasoning": "hm",
             "tool_calls": [call(json!("{\"a\": 1}")), call(json!({"a": 2}))]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "add"}},
        "parallel_tool_calls": false, "chat_template_kwargs": {"enable_thinking": false},
    }));
    assert_eq!(
        (read.tools[0].name.as_str(), read.tools[0].strict),
        ("add", true)
    );
    // In the client's order.
    let parameters = r#"{"type":"object","properties":{"b":{},"a":{}}}"#;
    assert_eq!(read.tools[0].parameters, parameters);
    assert_eq!(
        (read.tool_mode(), read.tool_name.as_str()),
        (ToolMode::Required, "add")
    );
    assert!(read.single_call && read.split_reasoning);
    assert_eq!(read.template_kwargs, r#"{"enable_thinking":false}"#);
    let [said, result] = &read.messages[..] else {
        panic!("two messages")
    };
    let arguments: Vec<_> = said
        .tool_calls()
        .iter()
        .map(|call| &*call.arguments)
        .collect();
    assert_eq!(arguments, ["{\"a\": 1}", "{\"a\":2}"]);
    assert_eq!((said.reasoning(), result.tool_call_id()), ("hm", "c1"));
    assert_eq!(
        conversation(json!({"tool_choice": "required"})).tool_mode(),
        ToolMode::Required
    );
}
