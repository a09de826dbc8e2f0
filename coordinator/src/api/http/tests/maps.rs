//! Maps of what is kept, as chunks of a stream.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

fn long(extra: Value) -> Value {
    let mut body = json!({
        "prompt": "x".repeat(100), "max_tokens": 4, "stream": true, "ignore_eos": true,
        "kv_budget": 16, "retention_map": true,
    });
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

#[tokio::test(start_paused = true)]
async fn a_stream_tells_how_much_is_kept_as_the_prompt_is_read() {
    // A reader misses the maps of steps that take no time.
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(10));
    let server = Server::scripted(Config::default(), script);
    assert!(server.coordinator.ready().await);
    for path in ["/v1/completions", "/v1/chat/completions"] {
        let messages = json!([{"role": "user", "content": "x".repeat(100)}]);
        let body = match path {
            "/v1/completions" => long(json!({})),
            _ => long(json!({"messages": messages, "prompt": null})),
        };
        let events = server.events(path, &body).await;
        let maps: Vec<&Value> = events
            .iter()
            .filter(|event| event["choices"] == json!([]))
            .map(|event| &event["retention_map"])
            .collect();
        assert!(maps.len() > 2, "{path}: {events:?}");
        let mut before = 0;
        for map in &maps {
            let tokens = map["tokens"].as_u64().unwrap();
            let shares = STANDARD.decode(map["shares"].as_str().unwrap()).unwrap();
            assert_eq!(shares.len() as u64, tokens, "{path}");
            assert!(tokens > before, "{path}: {tokens} behind {before}");
            before = tokens;
            // A fake rank's heads all keep the same: the first, and the last of the budget.
            let kept = shares.iter().filter(|share| **share == 255).count() as u64;
            assert_eq!(kept, map["held_slots"].as_u64().unwrap(), "{path}");
            assert!(
                shares.iter().all(|share| [0, 255].contains(share)),
                "{path}"
            );
            let (held, full) = (&map["held_bytes"], &map["full_cache_bytes"]);
            assert!(held.as_u64() <= full.as_u64(), "{path}: {held} of {full}");
        }
        // The memory is flat: every boundary behind the first eviction holds as much.
        let at_boundaries = maps
            .iter()
            .filter(|map| map["tokens"].as_u64().unwrap() % 16 == 0);
        let mut held: Vec<u64> = at_boundaries
            .map(|map| map["held_bytes"].as_u64().unwrap())
            .collect();
        held.dedup();
        assert_eq!(held.len(), 1, "{path}: {held:?}");
        // Chunks of the answer come behind those of its prompt.
        let first = events
            .iter()
            .position(|event| event["choices"][0]["text"] != json!(null));
        if path == "/v1/completions" {
            let told = events[..first.unwrap()].len();
            assert_eq!(told, 7, "6 boundaries and the end of the prompt");
        }
    }
}

#[tokio::test]
async fn a_map_is_refused_where_nothing_could_carry_it() {
    let server = Server::start(Config::default()).await;
    for (extra, word) in [
        (json!({"stream": false}), "streams"),
        (json!({"n": 2}), "one answer"),
        (json!({"prompt": ["a", "b"]}), "one answer"),
    ] {
        let refused = server.post("/v1/completions", &long(extra)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.json);
        let error = &refused.json["error"];
        assert_eq!(error["param"], "retention_map");
        assert!(error["message"].as_str().unwrap().contains(word), "{error}");
    }
    let plain = server
        .events("/v1/completions", &long(json!({"retention_map": false})))
        .await;
    assert!(
        plain
            .iter()
            .all(|event| event.get("retention_map").is_none())
    );
}
