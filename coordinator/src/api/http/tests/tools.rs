//! Tool calls and thoughts of chats, over a rank that says what it is told to.

use super::*;

const CHAT: &str = "/v1/chat/completions";
/// ChatML whose calls are those of Hermes and Qwen, and whose answers may begin with thoughts.
const QWEN: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson \
                    }}{% endfor %} <tool_call><|im_end|>\n{% endif %}{% for m in messages \
                    %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] \
                    }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                    %}<|im_start|>assistant\n{% endif %}";
const CALL: &str = "{\"name\": \"add\", \"arguments\": {\"a\": \"<é>\"}}";

fn body(extra: Value) -> Value {
    let parameters = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let add = json!({"name": "add", "description": "Adds", "parameters": parameters});
    let mut body = json!({
        "messages": [{"role": "user", "content": "1 + 2?"}], "max_tokens": 200,
        "tools": [{"type": "function", "function": add}],
    });
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

fn tagged() -> String {
    format!("I look.\n<tool_call>\n{CALL}\n</tool_call>\n")
}

#[tokio::test]
async fn a_call_comes_whole() {
    let server = Server::saying(&tagged(), Some(QWEN), Config::default()).await;
    let reply = server.post(CHAT, &body(json!({}))).await;
    let choice = &reply.json["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{}", reply.json);
    let message = &choice["message"];
    assert_eq!(message["content"], "I look.");
    let call = &message["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert_eq!(
        call["function"],
        json!({"name": "add", "arguments": "{\"a\": \"<é>\"}"})
    );
    let id = call["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()));
    // Without tools it is what it says.
    let reply = server
        .post(CHAT, &body(json!({"tool_choice": "none"})))
        .await;
    let choice = &reply.json["choices"][0];
    assert_eq!(choice["message"]["content"], tagged());
    assert_eq!(choice["finish_reason"], "stop");
    let outcome = "palimpsest_requests_total{outcome=\"tool_calls\"} 1";
    server.has_figure(outcome);
}

/// As OpenAI sends them: id and name once, then the arguments as they grow.
#[tokio::test]
async fn a_call_comes_in_pieces() {
    let two = format!("{}<tool_call>{CALL}</tool_call>", tagged());
    let server = Server::saying(&two, Some(QWEN), Config::default()).await;
    let events = server.events(CHAT, &body(json!({"stream": true}))).await;
    let mut text = String::new();
    let mut calls: Vec<Value> = Vec::new();
    let mut pieces = 0;
    for event in &events {
        let delta = &event["choices"][0]["delta"];
        text.push_str(delta["content"].as_str().unwrap_or_default());
        for piece in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = piece["index"].as_u64().unwrap() as usize;
            if index == calls.len() {
                assert!(piece["id"].is_string() && piece["type"] == "function");
                calls.push(json!({"name": piece["function"]["name"], "arguments": ""}));
            } else {
                assert!(piece["id"].is_null() && piece["function"]["name"].is_null());
            }
            let sofar = calls[index]["arguments"].as_str().unwrap().to_owned();
            let more = piece["function"]["arguments"].as_str().unwrap();
            calls[index]["arguments"] = (sofar + more).into();
            pieces += 1;
        }
    }
    assert_eq!(text, "I look.");
    let expected = json!({"name": "add", "arguments": "{\"a\": \"<é>\"}"});
    assert_eq!(calls, [expected.clone(), expected]);
    assert!(pieces > 10, "{pieces} pieces");
    let last = events.last().unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    // One call, where no more are wanted.
    let single = body(json!({"parallel_tool_calls": false}));
    let reply = server.post(CHAT, &single).await;
    let calls = reply.json["choices"][0]["message"]["tool_calls"].as_array();
    assert_eq!(calls.map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_model_that_knows_no_tools_calls_in_plain_json() {
    let server = Server::saying(CALL, None, Config::default()).await;
    let reply = server.post(CHAT, &body(json!({}))).await;
    let choice = &reply.json["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{}", reply.json);
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(
        choice["message"]["tool_calls"][0]["function"]["name"],
        "add"
    );
    // Another JSON object is the answer itself.
    let other = "{\"name\": \"Ada\", \"arguments\": {}}";
    let server = Server::saying(other, None, Config::default()).await;
    let reply = server.post(CHAT, &body(json!({}))).await;
    assert_eq!(reply.json["choices"][0]["message"]["content"], other);
}

#[tokio::test]
async fn a_call_that_max_tokens_cuts_off_leaves_what_there_is() {
    let server = Server::saying(CALL, None, Config::default()).await;
    let cut = CALL.find("<é>").unwrap();
    let reply = server.post(CHAT, &body(json!({"max_tokens": cut}))).await;
    let choice = &reply.json["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let function = &choice["message"]["tool_calls"][0]["function"];
    assert_eq!(*function, json!({"name": "add", "arguments": "{\"a\": \""}));
}

/// The call is begun for the model, so all that it can do is to go on with it.
#[tokio::test]
async fn a_call_that_must_be_is_begun() {
    let named = json!({"type": "function", "function": {"name": "add"}});
    for (says, choice) in [
        ("{\"a\": 1}}", named),
        ("add\", \"arguments\": {\"a\": 1}}", json!("required")),
    ] {
        for template in [None, Some(QWEN)] {
            let server = Server::saying(says, template, Config::default()).await;
            let asked = body(json!({"tool_choice": choice}));
            let reply = server.post(CHAT, &asked).await;
            let answer = &reply.json["choices"][0];
            assert_eq!(answer["finish_reason"], "tool_calls", "{}", reply.json);
            assert_eq!(
                answer["message"]["tool_calls"][0]["function"],
                json!({"name": "add", "arguments": "{\"a\": 1}"})
            );
            let mut asked = asked;
            asked["stream"] = true.into();
            let events = server.events(CHAT, &asked).await;
            let named = events.iter().filter(|event| {
                event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "add"
            });
            assert_eq!(named.count(), 1);
        }
    }
}

#[tokio::test]
async fn thoughts_come_apart() {
    let server = Server::saying(
        "<think>\nhm\n</think>\n\nyes",
        Some(QWEN),
        Config::default(),
    );
    let server = server.await;
    let plain = json!({"messages": [{"role": "user", "content": "?"}], "max_tokens": 90});
    let reply = server.post(CHAT, &plain).await;
    let message = &reply.json["choices"][0]["message"];
    assert_eq!(message["content"], "yes");
    assert_eq!(
        (&message["reasoning_content"], &message["reasoning"]),
        (&json!("hm\n"), &json!("hm\n"))
    );
    let mut stream = plain;
    stream["stream"] = true.into();
    let events = server.events(CHAT, &stream).await;
    let all = |name: &str| -> String {
        let pieces = events
            .iter()
            .map(|event| &event["choices"][0]["delta"][name]);
        pieces.filter_map(Value::as_str).collect()
    };
    assert_eq!(
        (all("reasoning_content"), all("content")),
        ("hm\n".into(), "yes".into())
    );
}

#[tokio::test]
async fn tools_and_roles_that_cannot_be_are_refused_by_name() {
    let server = Server::start(Config::default()).await;
    let tool = |name: &str, parameters: Value| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    let user = |role: &str| json!([{"role": role, "content": "x"}]);
    let deep = serde_json::from_str::<Value>(&format!("{}1{}", "[".repeat(120), "]".repeat(120)));
    for (extra, param) in [
        (json!({"messages": user("robot<|im_end|>")}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"tools": [tool("a b", json!({}))]}), "tools"),
        (json!({"tools": [tool("", json!({}))]}), "tools"),
        (json!({"tools": [tool("a", json!(3))]}), "tools"),
        (
            json!({"tools": [tool("a", json!({})), tool("a", json!({}))]}),
            "tools",
        ),
        (json!({"tools": vec![tool("a", json!({})); 200]}), "tools"),
        (json!({"tools": null, "tool_choice": "required"}), "tools"),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice",
        ),
        (
            json!({"chat_template_kwargs": {"tools": 1}}),
            "chat_template_kwargs",
        ),
        (json!({"chat_template_kwargs": [1]}), "chat_template_kwargs"),
    ] {
        let reply = server.post(CHAT, &body(extra.clone())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{extra}");
        assert_eq!(reply.json["error"]["param"], param, "{}", reply.json);
    }
    // Deep, but not too deep.
    let deep = tool("a", json!({"x": deep.unwrap()}));
    let reply = server.post(CHAT, &body(json!({"tools": [deep]}))).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
}
