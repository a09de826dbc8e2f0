//! What TLS costs a sum over two ranks: threads of this process on loopback, in the clear and over
//! TLS in turn, medians.
//!
//! ```console
//! cargo bench -p palimpsest-tests --bench mesh
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use palimpsest_collective::Collective;
use palimpsest_collective::link::Clear;
use palimpsest_tests::certificates::Authority;
use palimpsest_tests::mesh::{secured, tcp_group};

/// Turns that each kind of link takes.
const TURNS: usize = 10;
/// Sums in a turn.
const SUMS: usize = 100;

/// How long each of a turn's sums of so many values takes on rank 0.
fn sums(group: &[Arc<dyn Collective>], values: usize) -> Vec<Duration> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let sum = |end: &dyn Collective| -> Vec<Duration> {
        let mut values = vec![0.5f32; values];
        let timed = |_| {
            let started = Instant::now();
            end.all_reduce_sum(&mut values, deadline).expect("a sum");
            started.elapsed()
        };
        (0..SUMS).map(timed).collect()
    };
    std::thread::scope(|scope| {
        for end in &group[1..] {
            scope.spawn(move || sum(&**end));
        }
        sum(&*group[0])
    })
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

fn main() {
    let clear = tcp_group(2, &Clear);
    let tls = tcp_group(2, &secured(&Authority::new("bench")));
    println!("| f32 values | in the clear, µs | over TLS, µs | ratio |");
    println!("|---|---|---|---|");
    for values in [2304, 1 << 18] {
        let (mut in_the_clear, mut over_tls) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            in_the_clear.extend(sums(&clear, values));
            over_tls.extend(sums(&tls, values));
        }
        let (clear, tls) = (median(in_the_clear), median(over_tls));
        println!("| {values} | {clear:.0} | {tls:.0} | {:.2} |", tls / clear);
    }
}
