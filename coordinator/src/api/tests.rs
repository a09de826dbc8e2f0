//! The gRPC API over a real connection and a fake rank.

mod clients;
mod connections;
mod scores;
mod sessions;

use std::time::Duration;

use palimpsest_proto::error::REASON_KEY;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{
    Chat, ChatMessage, FinishReason, GenerateRequest, GetModelRequest, Guide, KvContract, Pooling,
    Sampling, Stopping, TokenizeRequest, tokenize_request,
};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::budget::BODY_WEIGHT;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Fault, Script};
use crate::{Config, Coordinator, LocalServer};

async fn serve(script: Script, config: Config) -> (Coordinator, LocalServer, Channel) {
    let rank = FakeRank::new(script);
    let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
    let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
    let server = coordinator.serve_local().await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", server.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    (coordinator, server, channel)
}

fn request(text: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::Text(text.into())),
        stopping: Some(Stopping {
            max_tokens: Some(max_tokens),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn generate_tokenize_and_describe() {
    let (coordinator, server, channel) =
        serve(Script::saying("Hé 👍", 0, 1), Config::default()).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let response = client
        .generate(GenerateRequest {
            request_id: "id-1".into(),
            ..request("hello", 40)
        })
        .await
        .unwrap();
    assert_eq!(
        response.metadata().get("palimpsest-request-id").unwrap(),
        "id-1"
    );
    let events: Vec<_> = response
        .into_inner()
        .map(|event| event.unwrap())
        .collect()
        .await;
    let text: String = events
        .iter()
        .filter_map(|event| match &event.event {
            Some(Event::Delta(delta)) => Some(delta.text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(text, "Hé 👍");
    let Some(Event::Finished(finished)) = &events.last().unwrap().event else {
        panic!("{events:?}")
    };
    assert_eq!(finished.reason(), FinishReason::Eos);

    let chat = Chat {
        messages: vec![ChatMessage::new("user", "the hello")],
        answer_prefix: "A".into(),
        ..Default::default()
    };
    let input = Some(tokenize_request::Input::Chat(chat));
    let tokens = client
        .tokenize(TokenizeRequest {
            input,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        tokens.pieces.concat(),
        "<|im_start|>user\nthe hello<|im_end|>\n<|im_start|>assistant\nA"
    );
    assert_eq!(tokens.pieces[0], "<|im_start|>");

    let model = client
        .get_model(GetModelRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (model.name.as_str(), model.kv_bytes_per_token, model.stride),
        ("fake", 128, 16)
    );
    assert_eq!(model.default_kv.unwrap().sinks, Some(4));
    server.shut_down().await;
}

#[tokio::test]
async fn errors_carry_their_code_and_their_reason() {
    let (coordinator, server, channel) = serve(Script::endless(0, 1), Config::default()).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let sampling = Sampling {
        temperature: Some(f32::NAN),
        ..Default::default()
    };
    let full = KvContract {
        policy: "full".into(),
        ..Default::default()
    };
    let rows = [
        (request("", 1), Code::InvalidArgument, "empty_prompt"),
        (
            GenerateRequest {
                model: "other".into(),
                ..request("x", 1)
            },
            Code::NotFound,
            "unknown_model",
        ),
        (
            GenerateRequest {
                sampling: Some(sampling),
                ..request("x", 1)
            },
            Code::InvalidArgument,
            "bad_sampling",
        ),
        (
            GenerateRequest {
                embedding: Pooling::Mean.into(),
                ..request("x", 1)
            },
            Code::InvalidArgument,
            "bad_embedding",
        ),
        (
            GenerateRequest {
                kv: Some(full),
                ..request("x", 1_000_000)
            },
            Code::InvalidArgument,
            "never_fits",
        ),
    ];
    for (request, code, reason) in rows {
        let status = client.generate(request).await.unwrap_err();
        assert_eq!(
            (
                status.code(),
                status.metadata().get(REASON_KEY).unwrap().to_str().unwrap()
            ),
            (code, reason)
        );
    }
    server.shut_down().await;
}

#[tokio::test]
async fn the_clients_deadline_is_honoured() {
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(5));
    let (coordinator, server, channel) = serve(script, Config::default()).await;
    assert!(coordinator.ready().await);
    let mut request = Request::new(request("x", 1_000_000));
    request.set_timeout(Duration::from_millis(150));
    let mut events = InferenceClient::new(channel)
        .generate(request)
        .await
        .unwrap()
        .into_inner();
    let status = loop {
        match events.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended in time"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.metadata().get(REASON_KEY).unwrap(),
        "deadline_in_execution"
    );
    server.shut_down().await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_sequence() {
    let rank = FakeRank::new(Script::endless(0, 1).with_step_time(Duration::from_millis(2)));
    let executor = Box::new(ChannelExecutor::new(
        vec![rank.spawn()],
        Duration::from_secs(5),
    ));
    let coordinator = Coordinator::build(Config::default(), executor, vec![rank.info()]).unwrap();
    let server = coordinator.serve_local().await.unwrap();
    assert!(coordinator.ready().await);
    let channel = Channel::from_shared(format!("http://{}", server.address))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut events = InferenceClient::new(channel)
        .generate(request("x", 1_000_000))
        .await
        .unwrap()
        .into_inner();
    // Before its first token it may not be in any plan yet, and then nobody has to release it.
    while !matches!(
        events
            .message()
            .await
            .unwrap()
            .and_then(|event| event.event),
        Some(Event::Delta(_))
    ) {}
    drop(events);
    let released = async {
        while !rank.plans().iter().any(|plan| plan.release == [2]) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), released)
        .await
        .unwrap();
    server.shut_down().await;
}

#[tokio::test]
async fn a_failure_in_mid_stream_is_a_status_behind_the_tokens() {
    let (coordinator, server, channel) = serve(
        Script::endless(0, 1).with_fault(4, Fault::Vanish),
        Config::default(),
    )
    .await;
    assert!(coordinator.ready().await);
    let mut events = InferenceClient::new(channel.clone())
        .generate(request("x", 100))
        .await
        .unwrap()
        .into_inner();
    let mut seen = 0;
    let status = loop {
        match events.message().await {
            Ok(event) => seen += usize::from(event.is_some()),
            Err(status) => break status,
        }
    };
    assert!(seen > 1);
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(health(&channel, "").await, ServingStatus::NotServing);
    server.shut_down().await;
}

async fn health(channel: &Channel, service: &str) -> ServingStatus {
    let request = HealthCheckRequest {
        service: service.into(),
    };
    HealthClient::new(channel.clone())
        .check(request)
        .await
        .unwrap()
        .into_inner()
        .status()
}

/// Health and reflection need no key, and the budget does not count them: a question of 4 MiB was
/// read all the same, and one that stopped before its end was held for ever.
#[tokio::test]
async fn questions_without_a_key_are_short() {
    let (_coordinator, server, channel) = serve(Script::endless(0, 1), Config::default()).await;
    let request = HealthCheckRequest {
        service: "x".repeat(2000),
    };
    let refused = HealthClient::new(channel).check(request).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
    server.shut_down().await;
}

#[tokio::test]
async fn health_follows_the_first_step_and_the_drain() {
    let script = Script::endless(0, 1).with_step_time(Duration::from_millis(300));
    let (coordinator, server, channel) = serve(script, Config::default()).await;
    for service in ["", "palimpsest.v1.Inference"] {
        assert_eq!(health(&channel, service).await, ServingStatus::NotServing);
    }
    assert!(coordinator.ready().await);
    tokio::time::sleep(Duration::from_millis(20)).await;
    for service in ["", "palimpsest.v1.Inference"] {
        assert_eq!(health(&channel, service).await, ServingStatus::Serving);
    }
    let mut client = InferenceClient::new(channel.clone());
    let running = client.generate(request("x", 3)).await.unwrap().into_inner();
    let ended = tokio::spawn(server.shut_down());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let events: Vec<_> = running.collect().await;
    assert!(
        events.iter().all(Result::is_ok),
        "a drain finishes what runs: {events:?}"
    );
    tokio::time::timeout(Duration::from_secs(8), ended)
        .await
        .unwrap()
        .unwrap();
    assert!(client.get_model(GetModelRequest {}).await.is_err());
}

#[tokio::test]
async fn reflection_lists_the_public_services() {
    let (_coordinator, server, channel) = serve(Script::endless(0, 1), Config::default()).await;
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let answer = answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let mut names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "inference.GRPCInferenceService",
            "palimpsest.v1.Inference",
            "palimpsest.v1.Sessions"
        ]
    );
    drop(answers);
    server.shut_down().await;
}

/// One budget stands in front of both APIs.
#[tokio::test]
async fn messages_beyond_the_budget_are_refused_and_room_comes_back() {
    let config = Config {
        max_inflight_bytes: 1000 * BODY_WEIGHT,
        max_message_bytes: 500,
        ..Config::default()
    };
    let (coordinator, server, channel) = serve(Script::saying("x", 0, 1), config).await;
    assert!(coordinator.ready().await);
    let budget = coordinator.service().budget.clone();
    let other = budget.open();
    other.take(900).unwrap();
    let mut client = InferenceClient::new(channel);
    let text = "a".repeat(200);
    let refused = client.generate(request(&text, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.metadata().get(REASON_KEY).unwrap(), "intake_full");
    let input = Some(tokenize_request::Input::Text(text.clone()));
    let tokenize = TokenizeRequest {
        input,
        ..Default::default()
    };
    let refused = client.tokenize(tokenize.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(budget.held(), 900 * BODY_WEIGHT);
    let figures = coordinator.service().metrics.encode();
    let counted = "palimpsest_requests_total{outcome=\"intake_full\"} 2";
    assert!(figures.contains(counted), "{figures}");
    drop(other);
    // An admitted request holds nothing, however long its answer takes to be read.
    let answer = client.generate(request(&text, 1)).await.unwrap();
    assert_eq!(budget.held(), 0);
    client.tokenize(tokenize).await.unwrap();
    // Its end may come to the client before the server has dropped it.
    while budget.held() > 0 {
        tokio::task::yield_now().await;
    }
    let too_long = client.generate(request(&"a".repeat(600), 1)).await;
    assert_eq!(too_long.unwrap_err().code(), Code::OutOfRange);
    drop(answer);
    server.shut_down().await;
}

/// A message of a conversation takes two bytes on the wire and a hundred and more where it is
/// decoded.
#[tokio::test]
async fn lists_of_too_many_elements_are_refused_before_they_are_decoded() {
    let config = Config {
        max_message_bytes: 64_000,
        ..Config::default()
    };
    let (coordinator, server, channel) = serve(Script::saying("x", 0, 1), config).await;
    assert!(coordinator.ready().await);
    let mut client = InferenceClient::new(channel);
    let chat = |count| Chat {
        messages: vec![ChatMessage::new("user", ""); count],
        ..Default::default()
    };
    let many = GenerateRequest {
        input: Some(Input::Chat(chat(1001))),
        ..request("", 1)
    };
    let stops = GenerateRequest {
        stopping: Some(Stopping {
            stop: vec!["x".into(); 17],
            ..Default::default()
        }),
        ..request("x", 1)
    };
    // Empty texts take two bytes each, and a string where they are decoded.
    let guided = GenerateRequest {
        guide: Some(Guide::of_texts(vec![String::new(); 2731])),
        ..request("x", 1)
    };
    for (request, reason) in [
        (many, "too_long"),
        (stops, "bad_stopping"),
        (guided, "bad_guide"),
    ] {
        let status = client.generate(request).await.unwrap_err();
        assert_eq!(status.metadata().get(REASON_KEY).unwrap(), reason);
    }
    let tokenize = |count| TokenizeRequest {
        input: Some(tokenize_request::Input::Chat(chat(count))),
        ..Default::default()
    };
    let status = client.tokenize(tokenize(1001)).await.unwrap_err();
    assert!(
        status
            .message()
            .contains("1001 messages, over the limit of 1000"),
        "{status}"
    );
    client.tokenize(tokenize(900)).await.unwrap();
    server.shut_down().await;
}
