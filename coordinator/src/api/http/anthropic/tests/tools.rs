//! Tools and thoughts of messages, over a rank that says what it is told to.

use super::*;

/// ChatML whose calls are those of Hermes and Qwen, and which may let its model think.
const QWEN: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson \
                    }}{% endfor %} <tool_call><|im_end|>\n{% endif %}{% for m in messages \
                    %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}{% for c in \
                    m.tool_calls %}<tool_call>{{ c.function.name }} {{ c.function.arguments | \
                    tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if \
                    add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is \
                    defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif \
                    %}";
const CALL: &str = "{\"name\": \"add\", \"arguments\": {\"a\": \"<é>\"}}";

fn with_tools(extra: Value) -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let tool = json!({"name": "add", "description": "Adds", "input_schema": schema});
    let mut asked = json!({"max_tokens": 200, "tools": [tool]});
    let fields = extra.as_object().unwrap().clone();
    asked.as_object_mut().unwrap().extend(fields);
    asked
}

/// Two calls behind a text.
fn two_calls() -> String {
    format!("I look.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call>")
}

/// The blocks of a stream, put together as clients do.
fn assembled(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut open = None;
    for event in events {
        let index = event["index"].as_u64().map(|index| index as usize);
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!((open, index), (None, Some(blocks.len())), "{event}");
                open = index;
                blocks.push(event["content_block"].clone());
                if event["content_block"]["type"] == "tool_use" {
                    assert_eq!(event["content_block"]["input"], json!({}));
                    blocks.last_mut().unwrap()["input"] = json!("");
                }
            }
            "content_block_delta" => {
                assert_eq!(open, index, "{event}");
                let delta = &event["delta"];
                let (from, to) = match delta["type"].as_str().unwrap() {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("signature", "signature"),
                    "input_json_delta" => ("partial_json", "input"),
                    other => panic!("{other}"),
                };
                let block = blocks.last_mut().unwrap();
                let sofar = block[to].as_str().unwrap().to_owned();
                block[to] = (sofar + delta[from].as_str().unwrap()).into();
            }
            "content_block_stop" => {
                assert_eq!(open, index, "{event}");
                open = None;
            }
            _ => {}
        }
    }
    assert_eq!(open, None);
    for block in &mut blocks {
        if let Some(text) = block["input"].as_str() {
            block["input"] = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
        }
    }
    blocks
}

fn without_ids(mut blocks: Value) -> Value {
    for block in blocks.as_array_mut().unwrap() {
        if let Some(id) = block["id"].as_str() {
            assert!(id.strip_prefix("toolu_").is_some_and(|id| id.len() == 9));
            block.as_object_mut().unwrap().remove("id");
        }
    }
    blocks
}

#[tokio::test]
async fn calls_come_as_blocks_whole_and_in_pieces() {
    let server = Server::templated(&two_calls(), QWEN).await;
    let called = json!({"type": "tool_use", "name": "add", "input": {"a": "<é>"}});
    let text = json!({"type": "text", "text": "I look."});
    let expected = json!([text, called, called]);
    let reply = server.ask(with_tools(json!({}))).await.json();
    assert_eq!(reply["stop_reason"], "tool_use", "{reply}");
    assert_eq!(without_ids(reply["content"].clone()), expected);
    assert_ne!(reply["content"][1]["id"], reply["content"][2]["id"]);

    let stream = with_tools(json!({"stream": true}));
    let events = server.ask(stream).await.events();
    assert_eq!(without_ids(assembled(&events).into()), expected);
    let pieces = events
        .iter()
        .filter(|event| event["delta"]["type"] == "input_json_delta");
    assert!(pieces.count() > 10);
    let last = &events[events.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], "tool_use");

    let single = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let reply = server.ask(with_tools(single)).await.json();
    assert_eq!(without_ids(reply["content"].clone()), json!([text, called]));
    // Without tools it is what it says.
    let none = json!({"tool_choice": {"type": "none"}});
    let reply = server.ask(with_tools(none)).await.json();
    assert_eq!(reply["content"][0]["text"], two_calls());
    assert_eq!(reply["stop_reason"], "end_turn");
}

/// The call is begun for the model, so all that it can do is to go on with it.
#[tokio::test]
async fn a_call_that_must_be_is_begun() {
    for (says, choice) in [
        ("{\"a\": 1}}", json!({"type": "tool", "name": "add"})),
        ("add\", \"arguments\": {\"a\": 1}}", json!({"type": "any"})),
    ] {
        let server = Server::templated(says, QWEN).await;
        let asked = with_tools(json!({"tool_choice": choice}));
        let expected = json!([{"type": "tool_use", "name": "add", "input": {"a": 1}}]);
        let reply = server.ask(asked.clone()).await.json();
        assert_eq!(without_ids(reply["content"].clone()), expected);
        let mut asked = asked;
        asked["stream"] = true.into();
        let events = server.ask(asked).await.events();
        assert_eq!(without_ids(assembled(&events).into()), expected);
    }
}

#[tokio::test]
async fn a_call_that_max_tokens_cuts_off_has_what_is_whole_of_its_input() {
    let call = "{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": \"long";
    let server = Server::saying(call).await;
    let cut = with_tools(json!({"max_tokens": call.len()}));
    let reply = server.ask(cut).await.json();
    assert_eq!(reply["stop_reason"], "max_tokens", "{reply}");
    assert_eq!(reply["content"][0]["input"], json!({"a": 1}));
}

/// What was called and answered is read as the conversations of other routes are.
#[tokio::test]
async fn results_go_back_to_the_model_and_tools_are_counted() {
    let server = Server::templated("3", QWEN).await;
    let messages = json!([
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "content": [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_123456789", "name": "add", "input": {"a": "x"}},
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_123456789", "content": "three"},
            {"type": "text", "text": "So?"},
        ]},
    ]);
    let asked = with_tools(json!({"messages": messages}));
    let reply = server.ask(asked.clone()).await.json();
    let prompt = "<|im_start|>system\n{\"type\": \"function\", \"function\": {\"name\": \"add\", \
                  \"description\": \"Adds\", \"parameters\": {\"type\": \"object\", \
                  \"properties\": {\"a\": {\"type\": \"string\"}}}}} \
                  <tool_call><|im_end|>\n<|im_start|>user\n1 + 2?<|im_end|>\n\
                  <|im_start|>assistant\nI look.<tool_call>add {\"a\": \"x\"}</tool_call>\
                  <|im_end|>\n<|im_start|>tool\nthree<|im_end|>\n<|im_start|>user\nSo?<|im_end|>\n\
                  <|im_start|>assistant\n<think>\n\n</think>\n\n";
    let tokenizer = &server.coordinator.service().model.tokenizer;
    let tokens = tokenizer.encode(prompt, false).unwrap().len();
    assert_eq!(reply["usage"]["input_tokens"], tokens, "{reply}");
    let counted = json!({
        "model": "fake", "messages": messages, "tools": asked["tools"],
        "tool_choice": {"type": "auto"},
    });
    let counted = server.count(counted).await.json();
    assert_eq!(counted, json!({"input_tokens": tokens}));
    let fewer = json!({"messages": messages});
    let fewer = server.count(fewer).await.json();
    assert!(fewer["input_tokens"].as_u64().unwrap() + 100 < tokens as u64);
}

#[tokio::test]
async fn thoughts_are_a_block_of_their_own_where_they_are_asked_for() {
    let server = Server::templated("<think>\nhm\n</think>\n\nyes", QWEN).await;
    let thinks = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}});
    let said = json!({"type": "text", "text": "yes"});
    let thought = json!({"type": "thinking", "thinking": "hm\n", "signature": "palimpsest"});
    let reply = server.ask(thinks.clone()).await.json();
    assert_eq!(reply["content"], json!([thought, said]));
    let warnings = &reply["usage"]["kv"]["warnings"];
    assert!(warnings[0].as_str().unwrap().contains("budget_tokens"));
    let mut stream = thinks;
    stream["stream"] = true.into();
    let events = server.ask(stream).await.events();
    assert_eq!(assembled(&events), [thought, said.clone()]);
    // Who does not ask does not hear them.
    let reply = server.ask(json!({})).await.json();
    assert_eq!(reply["content"], json!([said]));
    let events = server.ask(json!({"stream": true})).await.events();
    assert_eq!(assembled(&events), [said]);
}

/// Nothing at all is an empty text, which clients look for.
#[tokio::test]
async fn an_answer_without_a_word_has_one_block() {
    let server = Server::saying("").await;
    let empty = json!([{"type": "text", "text": ""}]);
    assert_eq!(server.ask(json!({})).await.json()["content"], empty);
    let events = server.ask(json!({"stream": true})).await.events();
    assert_eq!(Value::from(assembled(&events)), empty);
}
