//! What one outcome adds to the figures.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn about(actual: Option<f64>, expected: f64) {
    let actual = actual.expect("something was recorded");
    // Timers are a millisecond coarse, the histogram three digits.
    assert!(
        (actual - expected).abs() <= 2.0 + expected * 2e-3,
        "{actual} is not about {expected}"
    );
}

#[test]
fn lateness_of_the_generator_is_in_the_latency_and_shown() {
    let mut measurement = Measurement::new(Objective::default());
    let scheduled = Instant::now();
    let sent = scheduled + 30 * MS;
    let completion = Completion {
        pieces: vec![sent + 5 * MS],
        ..Completion::default()
    };
    measurement.add(Outcome {
        scheduled,
        sent,
        result: Ok(completion),
    });
    about(measurement.first_token.max_ms(), 35.0);
    about(measurement.send_delay.max_ms(), 30.0);
    assert_eq!((measurement.uncounted, measurement.output_tokens), (1, 1));
}
