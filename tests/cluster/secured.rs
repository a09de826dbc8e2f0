//! Ranks that are processes and have certificates: tensors go over TLS, whoever shows no
//! certificate is refused at every port of a rank, and an epoch takes the certificates of its day.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use palimpsest_tests::certificates::Authority;
use palimpsest_tests::service::ask;
use palimpsest_tls::{ClusterFiles, Role};

use crate::cluster::{Cluster, Tiny};
use crate::requests::request;

/// Groups that are formed at most until a stranger has found a rank while it met another one.
const MEETINGS: usize = 8;

fn flags(files: &ClusterFiles) -> Vec<String> {
    let path = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    vec![
        "--cluster-cert".into(),
        path(&files.cert),
        "--cluster-key".into(),
        path(&files.key),
        "--cluster-ca".into(),
        path(&files.ca),
    ]
}

/// Ports of this machine on which the process listens.
fn ports(pid: u32) -> Vec<u16> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return Vec::new();
    };
    let sockets: HashSet<String> = open
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?;
            Some(link.strip_prefix("socket:[")?.trim_end_matches(']').into())
        })
        .collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
    let listening = table.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // 0A is LISTEN.
        (*fields.get(3)? == "0A" && sockets.contains(*fields.get(9)?)).then_some(())?;
        u16::from_str_radix(fields[1].split_once(':')?.1, 16).ok()
    });
    listening.collect()
}

/// Connects to each port that rank 0 opens for a while, and says that it is rank 1.
fn follow(pid: u32, known: &[u16], stop: &AtomicBool) {
    let mut open = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        for port in ports(pid).into_iter().filter(|port| !known.contains(port)) {
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                // It may be closed by now.
                let _ = stream.write_all(&[1; 20]);
                open.push(stream);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a port tells a request in plain text nothing but that it speaks TLS.
fn refuses_plain_text(address: &str) -> bool {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a limit");
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .expect("it reads");
    let mut answer = String::new();
    // A reset is a refusal as well.
    let _ = stream.read_to_string(&mut answer);
    answer.is_empty() || answer.starts_with("HTTP/1.1 400 ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_with_certificates_refuse_strangers_and_take_changed_certificates() {
    let tiny = Tiny::new();
    let asked = request(7, 60, 30);
    let alone = Cluster::start(&tiny, 1).await;
    let expected = ask(&alone.client, asked.clone())
        .await
        .expect("an answer")
        .tokens;
    drop(alone);

    let first = Authority::new("first");
    let (worker, coordinator) = (
        first.cluster(Role::Worker),
        first.cluster(Role::Coordinator),
    );
    let mut cluster = Cluster::start_secured(&tiny, 2, &flags(&worker), &flags(&coordinator)).await;
    let answer = ask(&cluster.client, asked.clone())
        .await
        .expect("an answer");
    assert_eq!(answer.tokens, expected);
    assert!(refuses_plain_text(cluster.address(0)));

    // All have certificates of another CA from now on, and know only that.
    let second = Authority::new("second");
    let (next_worker, next_coordinator) = (
        second.cluster(Role::Worker),
        second.cluster(Role::Coordinator),
    );
    for (from, to) in [(&next_worker, &worker), (&next_coordinator, &coordinator)] {
        for (from, to) in [
            (&from.ca, &to.ca),
            (&from.key, &to.key),
            (&from.cert, &to.cert),
        ] {
            fs::copy(from, to).expect("the file is replaced");
        }
    }
    let mut met_a_stranger = false;
    for _ in 0..MEETINGS {
        let stop = Arc::new(AtomicBool::new(false));
        let (pid, known, told) = (cluster.pid(0), ports(cluster.pid(0)), stop.clone());
        let stranger = std::thread::spawn(move || follow(pid, &known, &told));
        cluster.kill(1);
        let begin = Instant::now();
        cluster.start_rank(1);
        cluster.wait_until_ready().await;
        eprintln!("the next group serves after {:.2?}", begin.elapsed());
        stop.store(true, Ordering::SeqCst);
        stranger.join().expect("no panic");
        // The survivor shows its new certificate, or the new rank would not know it.
        let answer = ask(&cluster.client, asked.clone())
            .await
            .expect("an answer");
        assert_eq!(answer.tokens, expected);
        let log = cluster.rank_log(0);
        let mut lines = log.lines();
        let refusal = lines.find(|line| line.contains("a connection for tensors is refused"));
        eprintln!("{}", refusal.unwrap_or("no stranger came in time"));
        met_a_stranger = refusal.is_some_and(|line| line.contains("does not speak TLS"));
        if met_a_stranger {
            break;
        }
    }
    assert!(
        met_a_stranger,
        "no stranger was refused: {}",
        cluster.rank_log(0)
    );
    assert_eq!(cluster.loads(0), 1, "rank 0 is the process that it was");
}
