//! TLS on every link, with certificates made here: the right ones work over gRPC and HTTP, wrong
//! ones are refused in words that say what is wrong, and the service goes on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use palimpsest_collective::Place;
use palimpsest_coordinator::Config;
use palimpsest_coordinator::membership::{Lead, StaticMembers, form};
use palimpsest_proto::internal::v1::rendezvous_client::RendezvousClient;
use palimpsest_proto::internal::v1::worker_client::WorkerClient;
use palimpsest_proto::internal::v1::{GetRankRequest, SetRequest};
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{GenerateRequest, GetModelRequest, Stopping};
use palimpsest_tests::certificates::{Authority, Identity, Validity};
use palimpsest_tests::service::{TestService, serve};
use palimpsest_tests::tiny_model;
use palimpsest_tls::{
    ClientFiles, ClientTls, ClusterFiles, Connector, IdentityFiles, Incoming, Limits, Role,
    ServerFiles, ServerTls, TlsError, explain,
};
use palimpsest_worker::server::{self, ServerOptions, Transport};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

/// A service behind TLS on both ports.
struct Front {
    _service: TestService,
    grpc: SocketAddr,
    http: SocketAddr,
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("a port")
}

impl Front {
    async fn start(identity: &Identity, client_ca: Option<PathBuf>) -> Self {
        let files = ServerFiles {
            cert: identity.cert.clone(),
            key: identity.key.clone(),
            client_ca,
        };
        let tls = ServerTls::open(files).expect("certificates");
        let service = serve(tiny_model(1).path(), None, 16 << 20, Config::default()).await;
        let limits = Limits {
            first_byte_time: Duration::from_secs(1),
            handshake_time: Duration::from_secs(1),
            ..Limits::default()
        };
        let (grpc, http) = (listener().await, listener().await);
        let (grpc_at, http_at) = (
            grpc.local_addr().expect("an address"),
            http.local_addr().expect("an address"),
        );
        let (grpc, http) = (
            Incoming::new(grpc, Some(tls.clone()), limits),
            Incoming::new(http, Some(tls), limits),
        );
        let coordinator = service.coordinator.clone();
        tokio::spawn(async move { coordinator.serve(grpc, std::future::pending()).await });
        let coordinator = service.coordinator.clone();
        tokio::spawn(async move { coordinator.serve_http(http, std::future::pending()).await });
        Self {
            _service: service,
            grpc: grpc_at,
            http: http_at,
        }
    }

    /// The model's name, asked over gRPC.
    async fn ask(&self, files: ClientFiles) -> Result<String, String> {
        let connector = Connector::new(Some(
            ClientTls::open(files).map_err(|error| error.to_string())?,
        ));
        let channel = connect(self.grpc, connector).await?;
        let answer = InferenceClient::new(channel)
            .get_model(GetModelRequest {})
            .await;
        answer
            .map(|model| model.into_inner().name)
            .map_err(|status| explain(&status).unwrap_or(status.to_string()))
    }

    /// Status and body of a `GET` by curl.
    async fn curl(&self, args: &[&str], path: &str) -> (Option<i32>, String) {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "10"])
            .args(args);
        let ran = curl
            .arg(format!("https://{}{path}", self.http))
            .output()
            .await
            .expect("curl runs");
        let said = format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        (ran.status.code(), said)
    }
}

async fn connect(address: SocketAddr, connector: Connector) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(next) = cause.source() {
                cause = next;
            }
            cause.to_string()
        })
}

fn trusting(authority: &Authority) -> ClientFiles {
    ClientFiles {
        ca: Some(authority.ca()),
        identity: None,
    }
}

fn showing(authority: &Authority, identity: &Identity) -> ClientFiles {
    ClientFiles {
        identity: Some(IdentityFiles {
            cert: identity.cert.clone(),
            key: identity.key.clone(),
        }),
        ..trusting(authority)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_a_trusted_ca_serves_grpc_and_http() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let front = Front::start(&ours.server(), None).await;
    assert_eq!(front.ask(trusting(&ours)).await.as_deref(), Ok("tiny"));
    let ca = ours.ca();
    let ca = ca.to_str().expect("UTF-8");
    for version in ["--http1.1", "--http2", "--tls-max=1.2"] {
        let args: Vec<&str> = ["--cacert", ca]
            .into_iter()
            .chain(version.split('='))
            .collect();
        assert_eq!(
            front.curl(&args, "/health").await,
            (Some(0), "ok".to_owned()),
            "{version}"
        );
    }
    let wrong = front.ask(trusting(&other)).await.expect_err("another CA");
    assert!(
        wrong.contains("not signed by the CA that is trusted here"),
        "{wrong}"
    );
    let (status, said) = front
        .curl(
            &["--cacert", other.ca().to_str().expect("UTF-8")],
            "/health",
        )
        .await;
    assert_eq!(status, Some(60), "{said}");
    // Against the system's CAs, whatever they are.
    let system = front
        .ask(ClientFiles::default())
        .await
        .expect_err("a CA of this test");
    assert!(
        system.contains("not signed") || system.contains("no trusted certificates"),
        "{system}"
    );
    assert_eq!(
        front.ask(trusting(&ours)).await.as_deref(),
        Ok("tiny"),
        "it goes on"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_text_and_silence_are_answered_and_harm_nobody() {
    let ours = Authority::new("ours");
    let front = Front::start(&ours.server(), None).await;
    // More than one handshake at once, none of which ever comes.
    let silent: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(front.grpc).expect("a connection"))
        .collect();
    let http = front.http;
    let plain = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(http).expect("a connection");
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .expect("a request");
        let mut answer = String::new();
        stream
            .read_to_string(&mut answer)
            .expect("an answer and its end");
        answer
    });
    let plain = plain.await.expect("no panic");
    assert!(
        plain.starts_with("HTTP/1.1 400") && plain.contains("use https://"),
        "{plain}"
    );
    let channel = connect(front.grpc, Connector::default()).await;
    let refused = match channel {
        Ok(channel) => InferenceClient::new(channel)
            .get_model(GetModelRequest {})
            .await
            .expect_err("plain text"),
        Err(error) => panic!("TCP is there: {error}"),
    };
    assert!(
        format!("{refused:?}").contains("this port speaks TLS"),
        "{refused:?}"
    );
    assert_eq!(
        front.ask(trusting(&ours)).await.as_deref(),
        Ok("tiny"),
        "silent connections hold nobody up"
    );
    // After the handshake's time they are closed.
    let ended = tokio::task::spawn_blocking(move || {
        silent.into_iter().all(|mut stream| {
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .expect("a limit");
            matches!(stream.read(&mut [0]), Ok(0))
        })
    });
    assert!(ended.await.expect("no panic"));
}

/// Guards against a handshake as the price of a connection that is kept for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_after_the_handshake_has_its_time_too() {
    use tokio::io::AsyncReadExt;
    let ours = Authority::new("ours");
    let front = Front::start(&ours.server(), None).await;
    let tls = ClientTls::http1(trusting(&ours)).expect("a CA");
    let address = format!("https://{}", front.http)
        .parse()
        .expect("an address");
    let mut connector = Connector::new(Some(tls));
    let connected = tonic::codegen::Service::call(&mut connector, address).await;
    let mut stream = connected.expect("a handshake").into_inner();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "{rest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_a_certificate_where_one_is_asked_for() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let front = Front::start(&ours.server(), Some(ours.ca())).await;
    let client = ours.issue("client", &["client"], Validity::Now);
    assert_eq!(
        front.ask(showing(&ours, &client)).await.as_deref(),
        Ok("tiny")
    );
    let none = front
        .ask(trusting(&ours))
        .await
        .expect_err("no certificate");
    assert!(none.contains("asks for a client certificate"), "{none}");
    let stranger = other.issue("client", &["client"], Validity::Now);
    let stranger = front
        .ask(showing(&ours, &stranger))
        .await
        .expect_err("another CA's certificate");
    assert!(
        stranger.contains("does not trust the CA") || stranger.contains("ended the handshake"),
        "{stranger}"
    );
    let (ca, cert, key) = (ours.ca(), client.cert, client.key);
    let text = |path: &PathBuf| path.to_str().expect("UTF-8").to_owned();
    let (ca, cert, key) = (text(&ca), text(&cert), text(&key));
    let shown = front
        .curl(
            &["--cacert", &ca, "--cert", &cert, "--key", &key],
            "/v1/models",
        )
        .await;
    assert!(
        shown.0 == Some(0) && shown.1.contains("\"tiny\""),
        "{shown:?}"
    );
    assert_ne!(
        front.curl(&["--cacert", &ca], "/v1/models").await.0,
        Some(0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_are_named_and_changed_ones_are_taken() {
    let ours = Authority::new("ours");
    let (server, expired) = (
        ours.server(),
        ours.issue("old", &["127.0.0.1"], Validity::Past),
    );
    let open = |cert: &PathBuf, key: &PathBuf| {
        ServerTls::open(ServerFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: None,
        })
        .expect_err("refused")
    };
    let missing = ours.ca().with_file_name("missing");
    assert!(matches!(open(&missing, &server.key), TlsError::Read { path, .. } if path == missing));
    assert!(matches!(
        open(&server.key, &server.key),
        TlsError::Empty {
            what: "certificate",
            ..
        }
    ));
    assert!(matches!(
        open(&server.cert, &server.cert),
        TlsError::Empty {
            what: "private key",
            ..
        }
    ));
    assert!(matches!(
        open(&server.cert, &expired.key),
        TlsError::Mismatch { .. }
    ));
    let error = open(&expired.cert, &expired.key).to_string();
    assert!(
        error.contains("has expired") && error.contains("2001"),
        "{error}"
    );
    let binary = ours.ca().with_file_name("binary");
    std::fs::write(&binary, [0xff; 100]).expect("a writable directory");
    assert!(matches!(
        open(&binary, &server.key),
        TlsError::Empty { .. } | TlsError::Unusable { .. }
    ));

    // A certificate of another CA in the same files, as Kubernetes replaces them.
    let front = Front::start(&server, None).await;
    assert_eq!(front.ask(trusting(&ours)).await.as_deref(), Ok("tiny"));
    std::fs::write(&server.cert, "nothing").expect("a writable directory");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(
        front.ask(trusting(&ours)).await.as_deref(),
        Ok("tiny"),
        "the former stays in use"
    );
    let next = Authority::new("next");
    let replacement = next.server();
    std::fs::copy(&replacement.key, &server.key).expect("a copy");
    std::fs::copy(&replacement.cert, &server.cert).expect("a copy");
    let since = Instant::now();
    while front.ask(trusting(&next)).await.as_deref() != Ok("tiny") {
        assert!(
            since.elapsed() < Duration::from_secs(10),
            "the new certificate is never shown"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A certificate is for the beginning of a connection. What is under way goes on when it expires,
/// and when another one takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_outlives_the_certificate_that_it_began_with() {
    let ours = Authority::new("ours");
    let short = Duration::from_secs(3);
    let first = ours.issue("server", &["127.0.0.1"], Validity::For(short));
    let front = Front::start(&first, None).await;
    let connector = Connector::new(Some(ClientTls::open(trusting(&ours)).expect("a CA")));
    let channel = connect(front.grpc, connector).await.expect("a connection");
    let request = GenerateRequest {
        input: Some(Input::Text("Once".into())),
        stopping: Some(Stopping {
            max_tokens: Some(1_000_000),
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    let answer = InferenceClient::new(channel).generate(request).await;
    let mut stream = answer.expect("an answer").into_inner();
    let mut go_on = async |time: Duration| {
        let until = Instant::now() + time;
        let mut events = 0;
        while Instant::now() < until || events < 20 {
            let event = stream.message().await.expect("it goes on");
            event.expect("it has not ended");
            events += 1;
        }
    };
    go_on(short + Duration::from_secs(1)).await;
    let refused = front.ask(trusting(&ours)).await.expect_err("too late");
    assert!(refused.contains("expired"), "{refused}");
    go_on(Duration::ZERO).await;

    ours.issue("server", &["127.0.0.1"], Validity::Now);
    let since = Instant::now();
    while front.ask(trusting(&ours)).await.as_deref() != Ok("tiny") {
        let limit = Duration::from_secs(10);
        assert!(since.elapsed() < limit, "the new certificate is not shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    go_on(Duration::ZERO).await;
}

/// A rank that loads, behind the TLS of its cluster.
async fn rank(authority: &Authority) -> (SocketAddr, watch::Sender<Option<server::Loaded>>) {
    let files = authority.cluster(Role::Worker);
    let tls = ServerTls::cluster(files, Role::Worker).expect("certificates");
    let listener = listener().await;
    let address = listener.local_addr().expect("an address");
    let (loaded, following) = watch::channel(None);
    let options = ServerOptions {
        place: Place::ALONE,
        host: "127.0.0.1".into(),
        transport: Transport::Gloo,
        ranks: Connector::default(),
        probes: None,
    };
    let incoming = Incoming::new(listener, Some(tls), Limits::default());
    tokio::spawn(server::serve(
        incoming,
        options,
        following,
        std::future::pending(),
    ));
    (address, loaded)
}

fn as_role(files: ClusterFiles, role: Role) -> Connector {
    Connector::new(Some(
        ClientTls::cluster(files, role, Role::Worker).expect("certificates"),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_takes_orders_from_its_coordinator_alone() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (address, _loaded) = rank(&ours).await;
    let get_rank = |connector| async move {
        let channel = connect(address, connector).await?;
        let status = WorkerClient::new(channel)
            .get_rank(GetRankRequest {})
            .await
            .expect_err("it loads for ever");
        Err::<(), _>(explain(&status).unwrap_or(format!(
            "{:?}: {}",
            status.code(),
            status.message()
        )))
    };
    let said = |result: Result<(), String>| result.expect_err("never a success");
    let coordinator = as_role(ours.cluster(Role::Coordinator), Role::Coordinator);
    assert!(said(get_rank(coordinator.clone()).await).contains("is loading its model"));
    let worker = as_role(ours.cluster(Role::Worker), Role::Worker);
    let refused = said(get_rank(worker.clone()).await);
    assert!(
        refused.contains("PermissionDenied") && refused.contains(Role::Coordinator.dns_name()),
        "{refused}"
    );
    // The rendezvous of the ranks is theirs.
    let set = |connector| async move {
        let channel = connect(address, connector).await.expect("a connection");
        let request = SetRequest {
            key: "epoch-1/a".into(),
            value: "b".into(),
        };
        RendezvousClient::new(channel)
            .set(request)
            .await
            .map_err(|status| status.code())
    };
    assert!(set(worker).await.is_ok());
    assert_eq!(
        set(coordinator).await.expect_err("not its affair"),
        tonic::Code::PermissionDenied
    );
    // Without a certificate, with another CA's, and in plain text.
    let nobody = Connector::new(Some(ClientTls::open(trusting(&ours)).expect("a CA")));
    let refused = said(get_rank(nobody).await);
    assert!(refused.contains("certificate"), "{refused}");
    let members = StaticMembers::new(vec![address.to_string()]);
    for (ranks, expected) in [
        (
            as_role(other.cluster(Role::Coordinator), Role::Coordinator),
            "not signed by the CA",
        ),
        (Connector::default(), "speaks TLS"),
        (
            as_role(ours.cluster(Role::Coordinator), Role::Coordinator),
            "is loading its model",
        ),
    ] {
        let config = Config {
            ranks,
            ..Config::default()
        };
        let error = form(&members, &config, &mut Lead::new())
            .await
            .expect_err("no group")
            .to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn a_certificate_that_the_others_would_refuse_is_refused_at_once() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let refused = |files: ClusterFiles| {
        ServerTls::cluster(files, Role::Worker)
            .expect_err("refused")
            .to_string()
    };
    let role = refused(ours.cluster(Role::Coordinator));
    assert!(
        role.contains("must hold the DNS name worker.palimpsest.internal"),
        "{role}"
    );
    let foreign = refused(ClusterFiles {
        ca: other.ca(),
        ..ours.cluster(Role::Worker)
    });
    assert!(foreign.contains("not signed by the CA"), "{foreign}");
    let Identity { cert, key } = ours.issue("late", &[Role::Worker.dns_name()], Validity::Past);
    assert!(
        refused(ClusterFiles {
            cert,
            key,
            ca: ours.ca()
        })
        .contains("has expired")
    );
    let client = ClientTls::cluster(ours.cluster(Role::Worker), Role::Coordinator, Role::Worker)
        .expect_err("refused");
    assert!(
        client
            .to_string()
            .contains("coordinator.palimpsest.internal"),
        "{client}"
    );
}
