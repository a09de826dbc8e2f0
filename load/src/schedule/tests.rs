//! Distributions and schedules: what they draw, and what they refuse.

use proptest::prelude::*;

use super::*;

fn plan(rate: f64, requests: usize) -> Plan {
    Plan {
        rate,
        requests: Some(requests),
        duration: None,
        prompt_tokens: Tokens::LogNormal {
            median: 300.0,
            sigma: 0.8,
        },
        output_tokens: Tokens::Uniform(1, 64),
        seed: 7,
    }
}

fn tokens() -> impl Strategy<Value = Tokens> {
    prop_oneof![
        (1..=MAX_TOKENS).prop_map(Tokens::Fixed),
        (1..=MAX_TOKENS, 1..=MAX_TOKENS).prop_map(|(a, b)| Tokens::Uniform(a.min(b), a.max(b))),
        (1.0..1e6, 0.0..3.0).prop_map(|(median, sigma)| Tokens::LogNormal { median, sigma }),
    ]
}

proptest! {
    #[test]
    fn a_distribution_reads_what_it_writes(tokens in tokens()) {
        prop_assert_eq!(tokens.to_string().parse::<Tokens>(), Ok(tokens));
    }

    #[test]
    fn draws_stay_in_range(tokens in tokens(), seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..50 {
            let n = tokens.sample(&mut rng);
            prop_assert!((1..=MAX_TOKENS).contains(&n));
            match tokens {
                Tokens::Fixed(fixed) => prop_assert_eq!(n, fixed),
                Tokens::Uniform(low, high) => prop_assert!((low..=high).contains(&n)),
                Tokens::LogNormal { .. } => {}
            }
        }
    }

    #[test]
    fn arrivals_are_ordered_bounded_and_repeatable(
        rate in 0.01f64..1000.0,
        requests in 1usize..300,
        seconds in 0.0f64..60.0,
        seed: u64,
    ) {
        let end = Duration::from_secs_f64(seconds);
        let plan = Plan { duration: Some(end), seed, ..plan(rate, requests) };
        match plan.arrivals() {
            Ok(arrivals) => {
                prop_assert!(arrivals.len() <= requests);
                prop_assert!(arrivals.windows(2).all(|pair| pair[0].at <= pair[1].at));
                prop_assert!(arrivals.iter().all(|arrival| arrival.at <= end));
                prop_assert_eq!(plan.arrivals(), Ok(arrivals));
            }
            Err(error) => prop_assert_eq!(error, Error::Empty),
        }
    }

    #[test]
    fn no_text_makes_parsing_panic(text in ".{0,40}") {
        let _ = text.parse::<Tokens>();
    }
}

/// The mean of n exponential gaps lies within 5 standard errors (1/sqrt(n)) of 1/rate; so does
/// their deviation, which equals the mean for a Poisson process and is 0 for an even one.
#[test]
fn gaps_are_exponential() {
    let n = 20_000;
    let arrivals = plan(50.0, n).arrivals().unwrap();
    let gaps: Vec<f64> = arrivals
        .windows(2)
        .map(|pair| (pair[1].at - pair[0].at).as_secs_f64() * 50.0)
        .collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    assert!((mean - 1.0).abs() < 0.036, "{mean}");
    assert!((variance.sqrt() - 1.0).abs() < 0.06, "{variance}");
}

#[test]
fn half_of_a_lognormal_lies_below_its_median() {
    let mut sizes: Vec<u32> = plan(1.0, 4001)
        .arrivals()
        .unwrap()
        .iter()
        .map(|a| a.prompt_tokens)
        .collect();
    sizes.sort_unstable();
    assert!((270..330).contains(&sizes[2000]), "{}", sizes[2000]);
    assert!(sizes[4000] > 2000, "a long tail: {}", sizes[4000]);
}

#[test]
fn another_rate_sends_the_same_requests() {
    let sizes = |rate| {
        let arrivals = plan(rate, 40).arrivals().unwrap();
        arrivals
            .iter()
            .map(|a| (a.prompt_tokens, a.output_tokens, a.text_offset))
            .collect::<Vec<_>>()
    };
    assert_eq!(sizes(1.0), sizes(100.0));
}

#[test]
fn what_cannot_be_is_refused() {
    for (text, error) in [
        ("poisson:3", Error::Unknown("poisson:3".into())),
        ("uniform:3", Error::Unknown("uniform:3".into())),
        ("uniform:9-3", Error::Reversed(9, 3)),
        ("fixed:0", Error::OutOfRange(0.0)),
        ("fixed:-1", Error::NotANumber("fixed:-1".into())),
        ("lognormal:0.5,1", Error::OutOfRange(0.5)),
        ("lognormal:100,-1", Error::Sigma(-1.0)),
    ] {
        assert_eq!(text.parse::<Tokens>(), Err(error), "{text}");
    }
    assert!(matches!(
        "lognormal:NaN,1".parse::<Tokens>(),
        Err(Error::OutOfRange(_))
    ));
    assert_eq!("128".parse(), Ok(Tokens::Fixed(128)));
    assert_eq!(plan(0.0, 1).arrivals(), Err(Error::Rate(0.0)));
    assert_eq!(
        Plan {
            requests: None,
            ..plan(1.0, 1)
        }
        .arrivals(),
        Err(Error::Endless)
    );
    assert_eq!(
        Plan {
            duration: Some(Duration::ZERO),
            ..plan(1.0, 1)
        }
        .arrivals(),
        Err(Error::Empty)
    );
}
