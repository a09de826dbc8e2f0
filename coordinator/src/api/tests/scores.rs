//! `Score`, and what is told of a prompt, over gRPC.

use palimpsest_proto::v1::{Completion, ScoreRequest, Tool, ToolMode, completion, score_request};

use super::*;

fn completion(text: &str) -> Completion {
    Completion {
        completion: Some(completion::Completion::Text(text.into())),
    }
}

fn scored(prompt: &str, completions: Vec<Completion>) -> ScoreRequest {
    ScoreRequest {
        prompt: Some(score_request::Prompt::Text(prompt.into())),
        completions,
        request_id: "job".into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn completions_are_scored_over_grpc() {
    let script = Script::endless(0, 1);
    let (coordinator, server, channel) = serve(script, Config::default()).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let request = scored("hello", vec![completion(" the"), completion("xy")]);
    let response = client.score(request).await.unwrap();
    let id = response.metadata().get("palimpsest-request-id").unwrap();
    assert_eq!(id, "job");
    let response = response.into_inner();
    assert_eq!((response.prompt_tokens, &*response.model), (1, "fake"));
    // The fake rank tells the position of each token.
    let logprobs: Vec<f64> = response.scores.iter().map(|score| score.logprob).collect();
    assert_eq!(logprobs, [-1.0, -3.0]);
    assert_eq!(&response.scores[0].tokens[0].bytes[..], b" the");

    let chat = Chat {
        messages: vec![ChatMessage::new("user", "hello")],
        ..Default::default()
    };
    let request = ScoreRequest {
        prompt: Some(score_request::Prompt::Chat(chat)),
        ..scored("", vec![completion("y")])
    };
    let response = client.score(request).await.unwrap().into_inner();
    let behind = response.scores[0].logprob;
    assert_eq!(behind, -(response.prompt_tokens as f64));

    let none = ScoreRequest {
        prompt: None,
        ..scored("", vec![completion("y")])
    };
    for (request, reason) in [
        (none, "empty_prompt"),
        (scored("a", Vec::new()), "bad_score"),
        (scored("a", vec![Completion::default()]), "bad_score"),
        // Refused before it is decoded.
        (scored("a", vec![Completion::default(); 129]), "bad_score"),
        (
            ScoreRequest {
                request_id: "no id".into(),
                ..scored("a", vec![completion("y")])
            },
            "bad_request_id",
        ),
    ] {
        let status = client.score(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.metadata().get(REASON_KEY).unwrap(), reason);
    }
    server.shut_down().await;
}

/// The deadline is that of all completions together.
#[tokio::test]
async fn a_score_that_takes_too_long_is_given_up() {
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(100));
    let (coordinator, server, channel) = serve(script, Config::default()).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let request = ScoreRequest {
        deadline_ms: 250,
        ..scored("hello", vec![completion("x"); 64])
    };
    let status = client.score(request).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    server.shut_down().await;
}

/// What a forced call begins with came before what is told of the prompt.
#[tokio::test]
async fn what_is_told_of_a_prompt_comes_before_the_opening_of_a_call() {
    let says = "add\", \"arguments\": {}}";
    let (coordinator, server, channel) = serve(Script::saying(says, 0, 1), Config::default()).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let chat = Chat {
        messages: vec![ChatMessage::new("user", "hello")],
        tools: vec![Tool {
            name: "add".into(),
            ..Default::default()
        }],
        tool_mode: ToolMode::Required.into(),
        tool_name: "add".into(),
        ..Default::default()
    };
    let asked = |prompt_logprobs| GenerateRequest {
        input: Some(Input::Chat(chat.clone())),
        sampling: Some(Sampling {
            prompt_logprobs,
            ..Default::default()
        }),
        ..request("", 60)
    };
    for told in [None, Some(0)] {
        let answer = client.generate(asked(told)).await.unwrap().into_inner();
        let events: Vec<_> = answer.map(|event| event.unwrap()).collect().await;
        let kinds: Vec<_> = events
            .iter()
            .map(|event| match &event.event {
                Some(Event::Started(_)) => "started",
                Some(Event::PromptLogprobs(_)) => "prompt",
                Some(Event::Delta(_)) => "delta",
                _ => "other",
            })
            .collect();
        let first = match told {
            None => &["started", "delta"][..],
            Some(_) => &["started", "prompt", "delta"],
        };
        assert_eq!(&kinds[..first.len()], first, "{kinds:?}");
        let prompts = kinds.iter().filter(|kind| **kind == "prompt").count();
        assert_eq!(prompts, usize::from(told.is_some()));
    }
    server.shut_down().await;
}
