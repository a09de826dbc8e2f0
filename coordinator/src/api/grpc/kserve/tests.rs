//! KServe's protocol over a real connection and a fake rank.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use palimpsest_proto::inference::InferParameter;
use palimpsest_proto::inference::InferTensorContents;
use palimpsest_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use palimpsest_proto::inference::infer_parameter::ParameterChoice;
use palimpsest_proto::inference::model_infer_request::{
    InferInputTensor, InferRequestedOutputTensor,
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use super::request::asked;
use super::*;
use crate::budget::BODY_WEIGHT;
use crate::executor::ChannelExecutor;
use crate::executor::fake::{FakeRank, Script};
use crate::keys::ApiKeys;
use crate::{Config, Coordinator, LocalServer};

type Client = GrpcInferenceServiceClient<Channel>;

struct Served {
    coordinator: Coordinator,
    _server: LocalServer,
    client: Client,
}

async fn serve(script: Script, config: Config) -> Served {
    let rank = FakeRank::new(script);
    let executor = Box::new(ChannelExecutor::new(vec![rank.spawn()], config.step_limit));
    let coordinator = Coordinator::build(config, executor, vec![rank.info()]).unwrap();
    assert!(coordinator.ready().await);
    let server = coordinator.serve_local().await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap();
    Served {
        coordinator,
        client: Client::new(channel.connect().await.unwrap()),
        _server: server,
    }
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(choice),
    }
}

fn int(number: i64) -> InferParameter {
    parameter(ParameterChoice::Int64Param(number))
}

fn tensor(shape: Vec<i64>, contents: Option<InferTensorContents>) -> InferInputTensor {
    InferInputTensor {
        name: "text_input".into(),
        datatype: "BYTES".into(),
        shape,
        parameters: BTreeMap::new(),
        contents,
    }
}

/// A request whose text stands in its tensor.
fn asking(text: &str) -> ModelInferRequest {
    let contents = InferTensorContents {
        bytes_contents: vec![Bytes::from(text.to_owned())],
        ..Default::default()
    };
    ModelInferRequest {
        model_name: "fake".into(),
        id: "id-1".into(),
        inputs: vec![tensor(vec![1], Some(contents))],
        ..Default::default()
    }
}

/// The same, as Triton's clients send it.
fn asking_raw(text: &str) -> ModelInferRequest {
    let mut raw = BytesMut::new();
    raw.put_u32_le(text.len() as u32);
    raw.put_slice(text.as_bytes());
    ModelInferRequest {
        inputs: vec![tensor(vec![1, 1], None)],
        raw_input_contents: vec![raw.freeze()],
        ..asking("")
    }
}

/// The text of an answer, wherever it stands.
fn text(response: &ModelInferResponse) -> String {
    let [output] = &response.outputs[..] else {
        panic!("{response:?}")
    };
    assert_eq!(
        (output.name.as_str(), output.datatype.as_str()),
        ("text_output", "BYTES")
    );
    let bytes = match &response.raw_output_contents[..] {
        [raw] => {
            assert!(output.contents.is_none());
            let length = u32::from_le_bytes(raw[..4].try_into().unwrap());
            assert_eq!(raw.len(), 4 + length as usize);
            raw.slice(4..)
        }
        _ => output.contents.as_ref().unwrap().bytes_contents[0].clone(),
    };
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn choice(response: &ModelInferResponse, name: &str) -> Option<ParameterChoice> {
    response.parameters.get(name)?.parameter_choice.clone()
}

#[tokio::test]
async fn what_is_served_is_described() {
    let mut served = serve(Script::saying("x", 0, 1), Config::default()).await;
    let client = &mut served.client;
    let live = client.server_live(ServerLiveRequest {}).await.unwrap();
    assert!(live.into_inner().live);
    let ready = client.server_ready(ServerReadyRequest {}).await.unwrap();
    assert!(ready.into_inner().ready);
    for (name, version, expected) in [
        ("fake", "", true),
        ("fake", "1", true),
        ("fake", "2", false),
        ("other", "", false),
    ] {
        let asked = ModelReadyRequest {
            name: name.into(),
            version: version.into(),
        };
        let ready = client.model_ready(asked).await.unwrap().into_inner();
        assert_eq!(ready.ready, expected, "{name} {version}");
    }
    let server = client.server_metadata(ServerMetadataRequest {}).await;
    assert_eq!(
        server.unwrap().into_inner().version,
        env!("CARGO_PKG_VERSION")
    );
    let of = |name: &str| ModelMetadataRequest {
        name: name.into(),
        version: String::new(),
    };
    let model = client
        .model_metadata(of("fake"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (model.name.as_str(), &model.versions[..]),
        ("fake", &["1".to_owned()][..])
    );
    assert_eq!((model.inputs.len(), model.outputs.len()), (1, 1));
    let unknown = client.model_metadata(of("other")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    served.coordinator.service().driver.drain().await;
    let ready = served.client.server_ready(ServerReadyRequest {}).await;
    assert!(!ready.unwrap().into_inner().ready);
}

#[tokio::test]
async fn a_text_is_answered_in_the_form_in_which_it_came() {
    let mut served = serve(Script::saying("Hé there", 0, 1), Config::default()).await;
    for (request, shape) in [
        (asking("hello"), vec![1]),
        (asking_raw("hello"), vec![1, 1]),
    ] {
        let is_raw = !request.raw_input_contents.is_empty();
        let response = served.client.model_infer(request).await.unwrap();
        assert_eq!(
            response.metadata().get("palimpsest-request-id").unwrap(),
            "id-1"
        );
        let response = response.into_inner();
        assert_eq!(
            (response.model_name.as_str(), response.id.as_str()),
            ("fake", "id-1")
        );
        assert_eq!(text(&response), "Hé there");
        assert_eq!(response.outputs[0].shape, shape);
        assert_eq!(!response.raw_output_contents.is_empty(), is_raw);
        let reason = choice(&response, "finish_reason");
        assert_eq!(reason, Some(ParameterChoice::StringParam("stop".into())));
        let tokens = choice(&response, "prompt_tokens");
        assert_eq!(tokens, Some(ParameterChoice::Int64Param(1)));
    }
    let short = ModelInferRequest {
        parameters: BTreeMap::from([("max_tokens".to_owned(), int(2))]),
        ..asking("hello")
    };
    let short = served.client.model_infer(short).await.unwrap().into_inner();
    let reason = choice(&short, "finish_reason");
    assert_eq!(reason, Some(ParameterChoice::StringParam("length".into())));
    assert_eq!(served.coordinator.service().budget.held(), 0);
}

#[tokio::test]
async fn a_whole_answer_ends_where_it_can_no_longer_be_held() {
    let config = Config {
        max_answer_bytes: 100,
        ..Config::default()
    };
    let mut served = serve(Script::endless(0, 1), config).await;
    let refused = served.client.model_infer(asking("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("100 bytes"), "{refused}");
    let figures = served.coordinator.service().metrics.encode();
    assert!(
        figures.contains("outcome=\"answer_too_large\"} 1"),
        "{figures}"
    );
}

#[tokio::test]
async fn requests_on_a_stream_are_answered_one_after_the_other_piece_by_piece() {
    let mut served = serve(Script::saying("abc", 0, 1), Config::default()).await;
    let named = |id: &str, request: ModelInferRequest| ModelInferRequest {
        id: id.into(),
        ..request
    };
    let wrong = ModelInferRequest {
        parameters: BTreeMap::from([("tempo".to_owned(), int(1))]),
        ..asking("hello")
    };
    let all = [
        named("first", asking_raw("hello")),
        named("wrong", wrong),
        named(
            "unknown",
            ModelInferRequest {
                model_name: "no".into(),
                ..asking("x")
            },
        ),
        named("last", asking("hello")),
    ];
    let (more, requests) = mpsc::channel(4);
    for request in all {
        more.send(request).await.unwrap();
    }
    let stream = served
        .client
        .model_stream_infer(ReceiverStream::new(requests));
    let mut responses = stream.await.unwrap().into_inner();
    let (mut texts, mut errors) = (Vec::<String>::new(), Vec::new());
    let mut of_one = String::new();
    // The stream is open all the while: nobody waits for its end.
    while texts.len() + errors.len() < 4 {
        let response = responses.next().await.unwrap().unwrap();
        let answered = response.infer_response.unwrap();
        let is_last = choice(&answered, "triton_final_response");
        let is_last = is_last == Some(ParameterChoice::BoolParam(true));
        if !response.error_message.is_empty() {
            assert!(is_last);
            errors.push((answered.id, response.error_message));
            continue;
        }
        of_one.push_str(&text(&answered));
        if is_last {
            assert!(choice(&answered, "generated_tokens").is_some());
            texts.push(format!("{}: {of_one}", answered.id));
            of_one.clear();
        }
    }
    assert_eq!(texts, ["first: abc", "last: abc"]);
    assert!(
        errors[0].1.contains("unknown parameter `tempo`"),
        "{errors:?}"
    );
    assert!(
        errors[1].0 == "unknown" && errors[1].1.contains("has the model"),
        "{errors:?}"
    );
    drop(more);
    assert!(responses.next().await.is_none());
    assert_eq!(served.coordinator.service().budget.held(), 0);
}

/// The requests of a stream, with a key.
fn with_key<S>(requests: S) -> tonic::Request<S> {
    let mut request = tonic::Request::new(requests);
    let key = "Bearer secret".parse().unwrap();
    request.metadata_mut().insert("authorization", key);
    request
}

/// Keys are asked for as on our own service, and a message of a stream that finds no room ends it.
#[tokio::test]
async fn keys_and_the_budget_bound_streams_as_they_do_requests() {
    // sha256("secret")
    let line = "a:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let config = Config {
        keys: Some(Arc::new(ApiKeys::parse(line).unwrap())),
        max_inflight_bytes: 10_000 * BODY_WEIGHT,
        ..Config::default()
    };
    let mut served = serve(Script::saying("x", 0, 1), config).await;
    let client = &mut served.client;
    let refused = client.model_infer(asking("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = client.server_live(ServerLiveRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let without = client
        .model_stream_infer(tokio_stream::iter(vec![asking("a")]))
        .await;
    assert_eq!(without.unwrap_err().code(), Code::Unauthenticated);

    // More messages than would find room together: each gives its own back.
    let (more, requests) = mpsc::channel(1);
    let stream = client.model_stream_infer(with_key(ReceiverStream::new(requests)));
    let mut answers = stream.await.unwrap().into_inner();
    for _ in 0..8 {
        more.send(asking(&"x".repeat(3000))).await.unwrap();
        loop {
            let answer = answers.next().await.unwrap().unwrap();
            assert_eq!(answer.error_message, "");
            let is_last = choice(&answer.infer_response.unwrap(), "triton_final_response");
            if is_last == Some(ParameterChoice::BoolParam(true)) {
                break;
            }
        }
    }
    drop((more, answers));
    let large = tokio_stream::iter(vec![asking(&"x".repeat(9500))]);
    let refused = match client.model_stream_infer(with_key(large)).await {
        Ok(answers) => answers.into_inner().next().await.unwrap().unwrap_err(),
        Err(refused) => refused,
    };
    assert!(
        [Code::ResourceExhausted, Code::OutOfRange].contains(&refused.code()),
        "{refused:?}"
    );
    assert_eq!(served.coordinator.service().budget.held(), 0);
}

/// Why a request is refused whose message can be read.
fn refusal(request: ModelInferRequest) -> String {
    asked(request).unwrap_err().message().to_owned()
}

#[test]
fn what_is_wrong_with_tensors_is_named() {
    let inputs = |inputs: Vec<InferInputTensor>| ModelInferRequest {
        inputs,
        ..asking("a")
    };
    let one = || asking("a").inputs.remove(0);
    let with = |change: fn(&mut InferInputTensor)| {
        let mut input = one();
        change(&mut input);
        inputs(vec![input])
    };
    let not_text: fn(&mut InferInputTensor) = |input| {
        let contents = input.contents.as_mut().unwrap();
        contents.bytes_contents[0] = Bytes::from_static(&[0xff]);
    };
    let cut_off = ModelInferRequest {
        raw_input_contents: vec![Bytes::from_static(b"\x02\0\0\0a")],
        inputs: vec![tensor(vec![1], None)],
        ..asking("")
    };
    let output = ModelInferRequest {
        outputs: vec![InferRequestedOutputTensor {
            name: "image".into(),
            parameters: BTreeMap::new(),
        }],
        ..asking("a")
    };
    let named = with(|input| input.name = "image".into());
    let typed = with(|input| input.datatype = "INT32".into());
    let several = with(|input| input.shape = vec![2]);
    let no_shape = with(|input| input.shape = vec![]);
    let empty = with(|input| input.contents = None);
    for (request, expected) in [
        (inputs(Vec::new()), "send `text_input` once"),
        (inputs(vec![one(), one()]), "send `text_input` once"),
        (named, "`image` is no input"),
        (typed, "BYTES of the shape [1]"),
        (several, "BYTES of the shape [1]"),
        (no_shape, "BYTES of the shape [1]"),
        (empty, "has one element"),
        (with(not_text), "no UTF-8"),
        (cut_off, "has one element"),
        (output, "the only output is `text_output`"),
    ] {
        let message = refusal(request);
        assert!(message.contains(expected), "{message}: {expected}");
    }
}

#[test]
fn what_is_wrong_with_parameters_is_named() {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param};
    let with = |name: &str, choice| ModelInferRequest {
        parameters: BTreeMap::from([(name.to_owned(), parameter(choice))]),
        ..asking("a")
    };
    for (name, choice, expected) in [
        ("max_tokens", Int64Param(-1), "`max_tokens` must be"),
        ("max_tokens", DoubleParam(1.0), "`max_tokens` must be"),
        ("temperature", BoolParam(true), "`temperature` must be"),
        ("stop", Int64Param(1), "`stop` must be"),
        ("sequence_id", Int64Param(1), "`sequence_id`"),
    ] {
        let message = refusal(with(name, choice));
        assert!(message.contains(expected), "{message}: {expected}");
    }
    let version = ModelInferRequest {
        model_version: "2".into(),
        ..asking("a")
    };
    assert_eq!(asked(version).unwrap_err().code(), Code::NotFound);
    let long = refusal(with(&"x".repeat(100_000), BoolParam(true)));
    assert!(long.len() < 200);
}

#[test]
fn every_parameter_reaches_the_request() {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam, Uint64Param};
    let parameters = [
        ("max_tokens", Int64Param(7)),
        ("stop", StringParam("x".into())),
        ("ignore_eos", BoolParam(true)),
        ("temperature", DoubleParam(0.5)),
        ("top_p", Int64Param(1)),
        ("top_k", Int64Param(-1)),
        ("min_p", DoubleParam(0.25)),
        ("repetition_penalty", DoubleParam(1.5)),
        ("frequency_penalty", DoubleParam(-0.5)),
        ("presence_penalty", DoubleParam(0.5)),
        ("seed", Int64Param(-1)),
        ("kv_budget", Uint64Param(512)),
        ("kv_policy", StringParam("window".into())),
        ("latent_memory", StringParam("none".into())),
        ("cache_salt", StringParam("s".into())),
        ("priority", Uint64Param(2)),
        ("timeout", Int64Param(1)),
        ("triton_enable_empty_final_response", BoolParam(true)),
    ];
    let parameters = parameters.map(|(name, choice)| (name.to_owned(), parameter(choice)));
    let request = ModelInferRequest {
        parameters: parameters.into(),
        ..asking("hi")
    };
    // As it comes over the wire.
    let request = read(request.encode_to_vec().into()).unwrap().request;
    let sampling = request.sampling.unwrap();
    assert_eq!(
        (sampling.temperature, sampling.top_p),
        (Some(0.5), Some(1.0))
    );
    assert_eq!(
        (sampling.top_k, sampling.min_p, sampling.seed),
        (0, 0.25, Some(u64::MAX))
    );
    assert_eq!(sampling.repetition_penalty, Some(1.5));
    assert_eq!(
        (sampling.frequency_penalty, sampling.presence_penalty),
        (-0.5, 0.5)
    );
    let stopping = request.stopping.unwrap();
    assert_eq!((stopping.max_tokens, stopping.ignore_eos), (Some(7), true));
    assert_eq!(stopping.stop, ["x"]);
    let kv = request.kv.unwrap();
    assert_eq!(
        (kv.budget, kv.policy.as_str(), kv.memory.as_str()),
        (512, "window", "none")
    );
    assert_eq!((request.cache_salt.as_str(), request.priority), ("s", 2));
    assert_eq!(
        (request.deadline_ms, request.request_id.as_str()),
        (1, "id-1")
    );
}

/// An element takes two bytes on the wire, and what is made of it some hundreds.
#[test]
fn lists_that_would_take_much_more_than_their_bytes_are_refused_by_name() {
    let many = 100_000;
    let elements = InferTensorContents {
        bytes_contents: vec![Bytes::new(); many],
        ..Default::default()
    };
    let numbers = InferTensorContents {
        int64_contents: vec![1; many],
        ..Default::default()
    };
    let parameters = (0..100).map(|number| (number.to_string(), int(1)));
    let parameters: BTreeMap<_, _> = parameters.collect();
    let whole = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = asking("");
        change(&mut request);
        request
    };
    let of_input = |input: InferInputTensor| whole(&|request| request.inputs = vec![input.clone()]);
    let input = || tensor(vec![1], None);
    for (request, name) in [
        (
            whole(&|request| request.inputs = vec![InferInputTensor::default(); many]),
            "inputs: 100000",
        ),
        (
            whole(&|request| request.outputs = vec![InferRequestedOutputTensor::default(); many]),
            "outputs: 100000",
        ),
        (
            whole(&|request| request.raw_input_contents = vec![Bytes::new(); many]),
            "raw_input_contents: 100000",
        ),
        (
            whole(&|request| request.parameters = parameters.clone()),
            "parameters: 100",
        ),
        (
            of_input(InferInputTensor {
                parameters: parameters.clone(),
                ..input()
            }),
            "inputs.parameters: 100",
        ),
        (of_input(tensor(vec![1; many], None)), "inputs.shape"),
        (
            of_input(tensor(vec![1], Some(elements))),
            "inputs.contents.bytes_contents: 100000",
        ),
        (
            of_input(tensor(vec![1], Some(numbers))),
            "numbers are not read",
        ),
    ] {
        let status = read(request.encode_to_vec().into()).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        let message = status.message();
        assert!(message.contains(name), "{message}: {name}");
    }
    assert!(read(Bytes::from_static(&[0x0f])).is_err());
    assert!(read(asking("a").encode_to_vec().into()).is_ok());
}
