use super::*;

const MOST: TokenBudget = TokenBudget {
    busy: 256,
    idle: 1024,
};

/// Seconds of a step on some machine.
struct Machine {
    step: f64,
    prompt_token: f64,
    decode: f64,
}

impl Machine {
    fn seconds(&self, work: Work) -> f64 {
        self.step + work.prefill as f64 * self.prompt_token + work.decodes as f64 * self.decode
    }
}

/// The pace of a group that is not known, with the usual promises.
fn new() -> Pace {
    Pace::new(MOST, Duration::from_secs(1), Company::default())
}

fn work(prefill: u64, decodes: u64) -> Work {
    Work {
        prefill,
        decodes,
        is_reading: prefill > 0,
    }
}

/// For whom a step is in which so many decode.
fn who(decodes: u64) -> Who {
    match decodes {
        0 => Who::Nobody,
        decodes => Who::InStep(decodes),
    }
}

/// Prompt tokens of the first steps with any on a machine where so many decode, and the longest
/// step.
fn sizes(machine: &Machine, decodes: u64) -> (Vec<u64>, f64) {
    let mut pace = new();
    let mut longest = 0.0f64;
    let mut sizes = Vec::new();
    while sizes.len() < 24 {
        let work = Work {
            prefill: pace.allowance(who(decodes)),
            decodes,
            is_reading: true,
        };
        let seconds = machine.seconds(work);
        longest = longest.max(seconds);
        pace.observe(work, seconds);
        sizes.extend((work.prefill > 0).then_some(work.prefill));
    }
    (sizes, longest)
}

#[test]
fn a_slow_machine_never_comes_near_the_limit_of_a_step() {
    // 200 s for 1,024 tokens.
    let machine = Machine {
        step: 0.5,
        prompt_token: 200.0 / 1024.0,
        decode: 0.4,
    };
    for decodes in [0, 1, 16] {
        let (sizes, longest) = sizes(&machine, decodes);
        assert!(longest < 12.0, "{longest} s with {decodes} decoding");
        assert!(sizes.iter().all(|&size| size == 16), "{sizes:?}");
    }
}

#[test]
fn a_fast_machine_takes_all_that_is_configured_after_its_first_step() {
    let machine = Machine {
        step: 0.01,
        prompt_token: 0.0001,
        decode: 0.0002,
    };
    assert_eq!(sizes(&machine, 0).0[..3], [16, 1024, 1024]);
    assert_eq!(sizes(&machine, 8).0[..3], [16, 256, 256]);
}

#[test]
fn steps_come_to_last_what_they_may() {
    let machine = Machine {
        step: 0.1,
        prompt_token: 0.003,
        decode: 0.01,
    };
    let (idle, longest) = sizes(&machine, 0);
    assert!(longest <= 1.0 && idle[3] > 280, "{longest} s, {idle:?}");
}

#[test]
fn where_a_step_takes_long_anyhow_prompts_are_read_in_all_steps_within_the_gap() {
    // A token that decodes costs half a second, a prompt token little beside it.
    let machine = Machine {
        step: 0.5,
        prompt_token: 0.001,
        decode: 0.0,
    };
    let (sizes, longest) = sizes(&machine, 1);
    assert!(sizes[3] > 200, "{sizes:?}");
    assert!(longest < 1.0, "{longest} s");
}

#[test]
fn a_few_tokens_tell_nothing_and_a_slow_step_counts_at_once() {
    let mut pace = new();
    pace.observe(work(1, 0), 3.0);
    assert_eq!(pace.allowance(Who::Nobody), 16, "the first step of all");
    pace.observe(work(16, 0), 0.02);
    assert_eq!(pace.allowance(Who::Nobody), 800);
    pace.observe(work(3, 0), 0.9);
    assert_eq!(pace.allowance(Who::Nobody), 800);
    pace.observe(work(400, 0), 4.0);
    assert_eq!(pace.allowance(Who::Nobody), 100);
    // Though those that decoded took longer before: the whole step bounds what is believed.
    pace.observe(work(0, 16), 3.2);
    pace.observe(work(16, 1), 3.1);
    let size = pace.allowance(Who::Waiting);
    assert!(size <= 20, "{size}");
    pace.forget();
    assert_eq!(pace.allowance(Who::Nobody), 16, "another group");
}

#[test]
fn less_than_the_least_may_be_configured() {
    let most = TokenBudget { busy: 1, idle: 4 };
    let mut pace = Pace::new(most, Duration::from_secs(1), Company::default());
    let allowances = |pace: &Pace| {
        let all = [Who::InStep(1), Who::Waiting, Who::Nobody];
        all.map(|who| pace.allowance(who))
    };
    assert_eq!(allowances(&pace), [1, 1, 4]);
    pace.observe(work(0, 1), 0.0);
    pace.observe(work(4, 0), 0.0);
    assert_eq!(allowances(&pace), [1, 1, 4]);
}

#[test]
fn another_prompt_shares_a_step_only_where_that_gains_something() {
    let mut pace = new();
    assert_eq!(pace.enough(), u64::MAX, "nothing is known");
    // Where tokens cost what they cost, eight times what a step takes anyhow are enough.
    pace.observe(work(0, 1), 0.005);
    pace.observe(work(256, 0), 0.256);
    assert_eq!(pace.enough(), 40);
    // Where a step takes what it takes, all may share it.
    pace.observe(work(256, 0), 0.006);
    assert!(pace.enough() > 1024, "{}", pace.enough());
}
