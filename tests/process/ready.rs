//! How long a coordinator takes from its start to its first answers.

use std::time::{Duration, Instant};

use palimpsest_tests::tiny_model;

use crate::group::{Process, await_that, free, is_ok};

/// From the start of the process until it serves over a rank that is loaded: in time of its own
/// threads, because tests run beside this one.
const LIMIT: Duration = Duration::from_secs(1);
/// The same by the clock.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn a_coordinator_is_ready_within_a_second() {
    let model = tiny_model(1);
    let rank = free();
    let _rank = Process::loaded_rank(&rank, model.path().to_str().expect("UTF-8"), &[]);
    let mut fastest = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let (grpc, http) = (free(), free());
        let started = Instant::now();
        let coordinator = Process::start(
            &[
                "coordinator",
                "--ranks",
                &rank,
                "--listen",
                &grpc,
                "--http",
                &http,
            ],
            &[],
        );
        let healthy = await_that(started, || is_ok(&http, "/health"));
        let ready = await_that(started, || is_ok(&http, "/readyz"));
        let cpu = coordinator.cpu_time();
        println!(
            "coordinator: /health after {:.3} s, /readyz after {:.3} s, {:.2} s of CPU time",
            healthy.as_secs_f64(),
            ready.as_secs_f64(),
            cpu.as_secs_f64()
        );
        fastest = fastest.min((ready, cpu));
    }
    assert!(fastest.1 < LIMIT && fastest.0 < PATIENCE, "{fastest:?}");
}
