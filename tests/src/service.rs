//! A coordinator over a rank of this process, served on a loopback port.

use std::path::Path;

use palimpsest_collective::Place;
use palimpsest_coordinator::executor::{ChannelExecutor, RankChannel};
use palimpsest_coordinator::{Config, Coordinator, LocalServer};
use palimpsest_engine::device_memory::CacheBytes;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::rank::{Rank, RankOptions};
use palimpsest_kernels::KvType;
use palimpsest_kernels::cpu::{CpuBackend, CpuOptions};
use palimpsest_models::DigestCache;
use palimpsest_proto::internal::v1::StepPlan;
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{Finished, GenerateRequest, KvContract, Started};
use palimpsest_worker::shelf::Shelf;
use tokio::sync::mpsc;
use tonic::transport::Channel;

/// A running service and a client of it.
pub struct TestService {
    /// Keeps the port open.
    pub server: LocalServer,
    /// The coordinator.
    pub coordinator: Coordinator,
    /// A connected client.
    pub client: InferenceClient<Channel>,
}

/// Serves the model at `path` with strides of [`crate::STRIDE`] tokens and an arena of
/// `arena_bytes`.
///
/// # Panics
/// When any part of it cannot start.
pub async fn serve(
    path: &Path,
    indexer: Option<Indexer>,
    arena_bytes: usize,
    config: Config,
) -> TestService {
    let memory = RankMemory {
        arena: arena_bytes,
        snapshots: 0,
    };
    serve_with(path, indexer, memory, config).await
}

/// What a rank may take.
#[derive(Debug, Clone, Copy)]
pub struct RankMemory {
    /// Bytes of the cache.
    pub arena: usize,
    /// Bytes of kept states.
    pub snapshots: u64,
}

/// As [`serve`], with memory for kept states.
///
/// # Panics
/// When any part of it cannot start.
pub async fn serve_with(
    path: &Path,
    indexer: Option<Indexer>,
    memory: RankMemory,
    config: Config,
) -> TestService {
    let options = RankOptions {
        model: path.to_owned(),
        name: "tiny".into(),
        kv: KvType::F16,
        cache: CacheBytes::of(memory.arena, None),
        snapshot_bytes: memory.snapshots,
        stride: crate::STRIDE as u32,
        indexer,
        default_kv: KvContract {
            budget: 48,
            ..Default::default()
        },
        step: None,
        place: Place::ALONE,
        digests: DigestCache::nowhere(),
    };
    let backend = CpuBackend::new(CpuOptions {
        threads: Some(1),
        ..Default::default()
    });
    let Rank { info, mut runner } =
        Rank::open(backend, options, &mut |_| {}).expect("a tiny model");
    let (plans, mut inbox) = mpsc::channel::<(StepPlan, tokio::sync::oneshot::Sender<_>)>(1);
    std::thread::spawn(move || {
        let mut shelf = Shelf::in_memory(runner.kept().clone());
        while let Some((plan, reply)) = inbox.blocking_recv() {
            if let Some(orders) = &plan.snapshots {
                shelf.obey(orders);
            }
            let mut output = runner.execute(&plan);
            output.snapshots = shelf.reports();
            let _ = reply.send(output);
        }
    });
    let executor = ChannelExecutor::new(vec![RankChannel { plans }], config.step_limit);
    let coordinator =
        Coordinator::build(config, Box::new(executor), vec![info]).expect("a coordinator");
    assert!(coordinator.ready().await, "the warm-up step passes");
    let server = coordinator.serve_local().await.expect("a free port");
    let client = InferenceClient::connect(format!("http://{}", server.address))
        .await
        .expect("a connection");
    TestService {
        server,
        coordinator,
        client,
    }
}

/// Everything a request answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answered {
    /// First event.
    pub started: Started,
    /// Text of all deltas.
    pub text: String,
    /// Ids of the tokens, when log-probabilities were asked for.
    pub tokens: Vec<u32>,
    /// Last event.
    pub finished: Finished,
}

/// Sends a request and reads its stream to the end.
///
/// # Errors
/// The status the service answered with.
///
/// # Panics
/// When the stream breaks its own rules: order of events, sequence numbers.
pub async fn ask(
    client: &InferenceClient<Channel>,
    request: GenerateRequest,
) -> Result<Answered, tonic::Status> {
    let mut events = client.clone().generate(request).await?.into_inner();
    let (mut started, mut text, mut tokens, mut count) = (None, String::new(), Vec::new(), 0);
    while let Some(event) = events.message().await? {
        assert_eq!(event.sequence_number, count, "events are counted");
        count += 1;
        match event.event.expect("an event") {
            Event::Started(s) => started = Some(s),
            Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_) => {}
            Event::Delta(delta) => {
                assert!(started.is_some(), "Started comes first");
                text.push_str(&delta.text);
                tokens.extend(delta.tokens.iter().map(|t| t.id));
            }
            Event::Finished(finished) => {
                return Ok(Answered {
                    started: started.expect("Started comes first"),
                    text,
                    tokens,
                    finished,
                });
            }
        }
    }
    panic!("the stream ended without Finished");
}
