//! The suite over TCP, and strangers and deaths at its sockets.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use super::meeting::TOKEN;
use super::*;
use crate::communicator::Collective;
use crate::conformance;
use crate::memory_store::MemoryStore;

fn connect(store: &Arc<MemoryStore>, rank: usize, world_size: usize, limit: Duration) -> Joining {
    let (store, place, deadline) = (
        store.clone(),
        Place { rank, world_size },
        Instant::now() + limit,
    );
    std::thread::spawn(move || {
        TcpCollective::connect(place, "127.0.0.1", &*store, "epoch-1", &Clear, deadline)
    })
}

type Joining = std::thread::JoinHandle<Result<TcpCollective, CollectiveError>>;

fn group(world_size: usize) -> Vec<Arc<dyn Collective>> {
    let store = Arc::default();
    let ranks: Vec<_> = (0..world_size)
        .map(|rank| connect(&store, rank, world_size, Duration::from_secs(20)))
        .collect();
    let end = |rank: Joining| {
        Arc::new(rank.join().expect("no panic").expect("a group")) as Arc<dyn Collective>
    };
    ranks.into_iter().map(end).collect()
}

#[test]
fn conforms() {
    conformance::run(&group, conformance::Sums::RankOrder);
}

#[test]
fn who_is_missing_is_said_in_time() {
    let store = Arc::default();
    let limit = Duration::from_millis(300);
    let (zero, one) = (connect(&store, 0, 4, limit), connect(&store, 1, 4, limit));
    for rank in [zero, one] {
        let error = rank
            .join()
            .expect("no panic")
            .map(|_| ())
            .expect_err("two ranks of four");
        let missing = "rank 2, rank 3".to_owned();
        assert_eq!(
            error,
            CollectiveError::Deadline {
                operation: "rendezvous",
                missing
            }
        );
    }
}

#[test]
fn strangers_on_the_port_are_no_ranks() {
    let store = Arc::<MemoryStore>::default();
    let zero = connect(&store, 0, 2, Duration::from_secs(20));
    let card = store
        .get("epoch-1/tcp/0", Instant::now() + Duration::from_secs(20))
        .expect("rank 0 listens");
    let port = u16::from_le_bytes([card[TOKEN], card[TOKEN + 1]]);
    let stranger = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a port");
        stream.write_all(bytes).expect("it listens");
        stream
    };
    let wrong_token = [&[7; TOKEN][..], &1u32.to_le_bytes()].concat();
    let wrong_rank = [&card[..TOKEN], &9u32.to_le_bytes()].concat();
    let _open = [
        stranger(b"GET / HTTP/1.1"),
        stranger(&wrong_token),
        stranger(&wrong_rank),
        stranger(&[]),
    ];
    let one = connect(&store, 1, 2, Duration::from_secs(20));
    let ends = [zero, one].map(|rank| rank.join().expect("no panic").expect("a group"));
    let deadline = Instant::now() + Duration::from_secs(20);
    let sum = |end: &TcpCollective| {
        let mut value = [1.5];
        end.all_reduce_sum(&mut value, deadline).expect("a sum");
        value[0]
    };
    let sums = std::thread::scope(|scope| {
        let other = scope.spawn(|| sum(&ends[1]));
        (sum(&ends[0]), other.join().expect("no panic"))
    });
    assert_eq!(sums, (3.0, 3.0));
}

#[test]
fn ranks_that_make_other_calls_are_found_out() {
    let group = group(2);
    let deadline = Instant::now() + Duration::from_secs(20);
    let results = std::thread::scope(|scope| {
        let other = scope.spawn(|| group[1].all_reduce_sum(&mut [0.0; 3], deadline));
        [
            group[0].all_reduce_sum(&mut [0.0; 2], deadline),
            other.join().expect("no panic"),
        ]
    });
    let told = "rank 1: it sends 12 bytes in round 0, expected 8 in round 0";
    // Whoever finds out first hangs up on the other.
    assert!(
        results.contains(&Err(CollectiveError::Mismatch(told.into()))) || results[1].is_err(),
        "{results:?}"
    );
    assert!(results.iter().all(Result::is_err), "{results:?}");
}
