//! The size of steps on machines of several speeds.

use futures::future::join_all;
use palimpsest_proto::internal::v1::StepPlan;

use super::*;

/// Tokens of the plans that a rank had.
fn sizes(rank: &FakeRank) -> Vec<usize> {
    let tokens = |plan: &StepPlan| plan.sequences.iter().map(|step| step.tokens.len()).sum();
    rank.plans().iter().map(tokens).collect()
}

/// A machine that needs 200 s for 1,024 tokens took 200 s for a step of 1,024 of them, met the
/// limit of 60 s, and met it again with every group that read the prompts anew.
#[tokio::test(start_paused = true)]
async fn a_slow_machine_never_meets_the_limit_of_a_step() {
    let config = Config {
        max_running: 40,
        idle_prefill_tokens: 1024,
        busy_prefill_tokens: 256,
        step_limit: Duration::from_secs(60),
        ..config()
    };
    let script = Script::endless(0, 1).with_token_time(Duration::from_millis(195));
    let (coordinator, ranks) = start_with(config, vec![script]).await;
    let answers = (0..40).map(|_| generate(&coordinator, prompt(40, 3)));
    for answer in join_all(answers).await {
        assert_eq!(answer.unwrap().text.len(), 3);
    }
    let largest = sizes(&ranks[0]).into_iter().max().unwrap();
    assert!(largest <= 16 + 40, "{largest} tokens in a step");
}

#[tokio::test(start_paused = true)]
async fn a_fast_machine_reads_prompts_in_steps_as_large_as_is_configured() {
    let config = Config {
        max_running: 40,
        idle_prefill_tokens: 512,
        ..config()
    };
    let (coordinator, ranks) = start_with(config, vec![Script::endless(0, 1)]).await;
    let answers = (0..40).map(|_| generate(&coordinator, prompt(160, 1)));
    join_all(answers).await;
    // Steps take 10 ms here, whatever their size: the warm-up's token shows that 100 fit a second.
    let sizes: Vec<_> = sizes(&ranks[0])
        .into_iter()
        .filter(|&size| size > 0)
        .collect();
    assert_eq!(sizes[..4], [1, 100, 512, 512], "{sizes:?}");
}
