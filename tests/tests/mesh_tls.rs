//! Tensors between ranks over TLS: the collectives do what they do in the clear, whoever listens
//! between two ranks reads nothing, and who does not show the right certificate is no rank.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use palimpsest_collective::link::{Clear, Secure};
use palimpsest_collective::tcp::TcpCollective;
use palimpsest_collective::{Collective, CollectiveError, MemoryStore, Place, Store, conformance};
use palimpsest_tests::certificates::{Authority, Identity, Validity};
use palimpsest_tests::mesh::{secured, tcp_group};
use palimpsest_tls::Role;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring,
};

/// Length of a token on a card in the rendezvous; a port follows it.
const TOKEN: usize = 16;
/// What ranks tell each other here, and an eavesdropper looks for.
const PATTERN: &[u8] = b"what a rank knows of a prompt";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn collectives_over_tls_conform() {
    let secure = secured(&Authority::new("ours"));
    conformance::run(
        &|world_size| tcp_group(world_size, &secure),
        conformance::Sums::RankOrder,
    );
}

/// What went over a connection, both ways.
type Heard = Arc<Mutex<Vec<u8>>>;

/// Leads who looks for rank 0 to a port that hears all and passes it on.
struct Eavesdropper {
    store: MemoryStore,
    heard: Heard,
}

impl Store for Eavesdropper {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), CollectiveError> {
        let mut value = value.to_vec();
        if key.ends_with("/tcp/0") {
            let port = u16::from_le_bytes([value[TOKEN], value[TOKEN + 1]]);
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let own = listener.local_addr().expect("an address").port();
            value[TOKEN..TOKEN + 2].copy_from_slice(&own.to_le_bytes());
            let heard = self.heard.clone();
            std::thread::spawn(move || {
                let (caller, _) = listener.accept().expect("a rank");
                let called = TcpStream::connect(("127.0.0.1", port)).expect("rank 0");
                for (from, to) in [(&caller, &called), (&called, &caller)] {
                    let clone = |stream: &TcpStream| stream.try_clone().expect("a descriptor");
                    let (from, to, heard) = (clone(from), clone(to), heard.clone());
                    std::thread::spawn(move || pass_on(from, to, &heard));
                }
            });
        }
        self.store.set(key, &value)
    }

    fn get(&self, key: &str, deadline: Instant) -> Result<Vec<u8>, CollectiveError> {
        self.store.get(key, deadline)
    }
}

fn pass_on(mut from: TcpStream, mut to: TcpStream, heard: &Heard) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        heard
            .lock()
            .expect("no panic")
            .extend_from_slice(&bytes[..count]);
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Whether the pattern, and the token of rank 0, were heard while two ranks told each other the
/// first.
fn overheard(secure: &dyn Secure) -> (bool, bool) {
    let between = Eavesdropper {
        store: MemoryStore::default(),
        heard: Heard::default(),
    };
    let tell = |rank| {
        let place = Place {
            rank,
            world_size: 2,
        };
        let end = TcpCollective::connect(place, "127.0.0.1", &between, "epoch-1", secure, soon())
            .expect("a group");
        let mut all = vec![0; 2 * PATTERN.len()];
        end.all_gather(PATTERN, &mut all, soon()).expect("a gather");
        assert_eq!(all, [PATTERN, PATTERN].concat());
    };
    std::thread::scope(|scope| {
        scope.spawn(|| tell(1));
        tell(0);
    });
    let card = between.get("epoch-1/tcp/0", soon()).expect("a card");
    let heard = between.heard.lock().expect("no panic");
    assert!(heard.len() > 2 * PATTERN.len(), "it stands between them");
    (contains(&heard, PATTERN), contains(&heard, &card[..TOKEN]))
}

#[test]
fn who_listens_between_ranks_reads_neither_tensors_nor_tokens() {
    let secure = secured(&Authority::new("ours"));
    assert_eq!(overheard(&secure), (false, false));
    // It would hear them.
    assert_eq!(overheard(&Clear), (true, true));
}

/// Joins a group of two as `rank`.
fn join(
    store: &Arc<MemoryStore>,
    rank: usize,
    authority: &Authority,
    limit: Duration,
) -> std::thread::JoinHandle<Result<TcpCollective, CollectiveError>> {
    let (store, secure, deadline) = (store.clone(), secured(authority), Instant::now() + limit);
    let place = Place {
        rank,
        world_size: 2,
    };
    std::thread::spawn(move || {
        TcpCollective::connect(place, "127.0.0.1", &*store, "epoch-1", &secure, deadline)
    })
}

/// Says to the rank of this card that it is rank 1, as whoever has this identity. Whether it is
/// welcome.
fn call(card: &[u8], authority: &Authority, identity: Option<&Identity>) -> bool {
    let certificates = |path: &Path| {
        let found = CertificateDer::pem_file_iter(path).expect("a file");
        found
            .map(|it| it.expect("a certificate"))
            .collect::<Vec<_>>()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&authority.ca()));
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => builder
            .with_client_auth_cert(
                certificates(cert),
                PrivateKeyDer::from_pem_file(key).expect("a key"),
            )
            .expect("an identity"),
    };
    config.alpn_protocols = vec![b"palimpsest-ranks".to_vec()];
    let name = ServerName::try_from(Role::Worker.dns_name()).expect("a name");
    let tls = ClientConnection::new(Arc::new(config), name).expect("a client");
    let port = u16::from_le_bytes([card[TOKEN], card[TOKEN + 1]]);
    let socket = TcpStream::connect(("127.0.0.1", port)).expect("a rank listens");
    let mut stream = StreamOwned::new(tls, socket);
    let greeting = [&card[..TOKEN], &1u32.to_le_bytes()].concat();
    let mut welcome = [0];
    stream
        .write_all(&greeting)
        .and_then(|()| stream.read_exact(&mut welcome))
        .is_ok()
}

/// Guards against a mesh that encrypts for whoever asks: each of these knows the token.
#[test]
fn strangers_are_refused_and_named_and_the_right_rank_is_waited_for() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let worker = Role::Worker.dns_name();
    let of_another_ca = other.issue("rank", &[worker], Validity::Now);
    let coordinator = ours.issue("lead", &[Role::Coordinator.dns_name()], Validity::Now);
    let strangers = [
        (None, "it shows no certificate"),
        (Some(&of_another_ca), "not signed by the CA"),
        (Some(&coordinator), "does not hold the DNS name worker"),
    ];
    for (identity, why) in strangers {
        let store = Arc::<MemoryStore>::default();
        let zero = join(&store, 0, &ours, Duration::from_secs(2));
        let card = store.get("epoch-1/tcp/0", soon()).expect("rank 0 listens");
        assert!(!call(&card, &ours, identity), "{why}");
        let missed = zero.join().expect("no panic").map(|_| ());
        let Err(CollectiveError::Deadline { missing, .. }) = missed else {
            panic!("{missed:?}");
        };
        assert!(
            missing.starts_with("rank 1 (refused 1, last 127.0.0.1:") && missing.contains(why),
            "{missing}"
        );
    }
    // The same words from who has the right certificate: what is refused is the certificate.
    let store = Arc::<MemoryStore>::default();
    let zero = join(&store, 0, &ours, Duration::from_secs(30));
    let card = store.get("epoch-1/tcp/0", soon()).expect("rank 0 listens");
    let _silent = TcpStream::connect((
        "127.0.0.1",
        u16::from_le_bytes([card[TOKEN], card[TOKEN + 1]]),
    ));
    for (identity, why) in strangers {
        assert!(!call(&card, &ours, identity), "{why}");
    }
    let one = join(&store, 1, &ours, Duration::from_secs(30));
    let ends = [zero, one].map(|rank| rank.join().expect("no panic").expect("a group"));
    std::thread::scope(|scope| {
        for end in &ends {
            scope.spawn(|| {
                let mut value = [1.5];
                end.all_reduce_sum(&mut value, soon()).expect("a sum");
                assert_eq!(value, [3.0]);
            });
        }
    });
}

#[test]
fn a_rank_trusts_no_rank_of_another_ca() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let store = Arc::default();
    let zero = join(&store, 0, &other, Duration::from_secs(2));
    let one = join(&store, 1, &ours, Duration::from_secs(30));
    let refused = one.join().expect("no panic").map(|_| ());
    let Err(CollectiveError::PeerGone(said)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        said.contains("rank 0: its certificate is not signed by the CA"),
        "{said}"
    );
    assert!(zero.join().expect("no panic").is_err(), "nobody came");
}
