//! Requests that break groups, and those that happen to run beside them.

use futures::future::join_all;
use palimpsest_proto::internal::v1::StepPlan;

use super::*;

/// A byte that no other prompt has.
const POISON: u32 = 3;

fn config() -> Config {
    Config {
        regroup_limit: Duration::from_secs(3600),
        max_running: 8,
        ..super::config()
    }
}

fn rank() -> FakeRank {
    FakeRank::new(Script::endless(0, 1).broken_by(POISON).with_step_time(STEP))
}

fn poisoned(tokens: u32, at: usize) -> GenerateRequest {
    let mut request = prompt(tokens, 20);
    if let Some(Input::TokenIds(prompt)) = &mut request.input {
        prompt.ids[at] = POISON;
    }
    request
}

/// Replaces every group that is lost, and returns all groups there were, once `done`.
async fn replacing<T>(
    coordinator: &Coordinator,
    done: impl Future<Output = T>,
) -> (T, Vec<FakeRank>) {
    let mut groups = Vec::new();
    let replace = async {
        for epoch in 2.. {
            until_lost(coordinator).await;
            assert!(epoch < 40, "groups are lost for ever");
            let next = rank();
            groups.push(next.clone());
            take_over(coordinator, &next, epoch).await;
        }
    };
    let done = tokio::select! {
        done = done => done,
        () = replace => unreachable!("it goes on"),
    };
    (done, groups)
}

async fn answers(
    coordinator: &Coordinator,
    requests: Vec<GenerateRequest>,
) -> (Vec<Result<Whole, RequestError>>, Vec<FakeRank>) {
    let answers = join_all(requests.into_iter().map(|one| generate(coordinator, one)));
    replacing(coordinator, answers).await
}

fn innocents() -> Vec<GenerateRequest> {
    (0..7).map(|one| prompt(20 + 9 * one, 25)).collect()
}

/// A loss counted against everything that ran, and after three of them all were ended.
#[tokio::test(start_paused = true)]
async fn a_request_that_breaks_every_group_is_ended_alone() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let mut expected = Vec::new();
    for one in innocents() {
        expected.push(generate(&coordinator, one).await.unwrap().text);
    }
    for at in [0, 30, 59] {
        let (coordinator, _) = start_on(config(), vec![rank()]).await;
        let mut requests = innocents();
        requests.insert(3, poisoned(60, at));
        let (mut answered, groups) = answers(&coordinator, requests).await;
        let error = answered.remove(3).err().unwrap();
        assert_eq!(error.reason, Reason::GroupLost);
        assert!(error.message.contains("lost 3 times"), "{error}");
        let texts: Vec<_> = answered
            .into_iter()
            .map(|answer| answer.unwrap().text)
            .collect();
        assert_eq!(
            texts, expected,
            "poison at {at}: an innocent's answer is exact"
        );
        assert_eq!(groups.len(), 3, "two losses in company, one alone");
        // Nobody waits for a suspect's whole answer: the others have every other step.
        let shared = |plan: &StepPlan| plan.sequences.len() > 1;
        assert!(groups[2].plans().iter().any(shared), "they meet again");
    }
}

/// The warm-up shared its step with what had broken the group before, and failed with it.
#[tokio::test(start_paused = true)]
async fn a_group_is_ready_before_it_meets_what_broke_the_last_one() {
    let (coordinator, _) = start_on(config(), vec![rank()]).await;
    let requests = vec![poisoned(5, 2), prompt(5, 10)];
    let (answered, groups) = answers(&coordinator, requests).await;
    assert_eq!(
        answered[0].as_ref().err().unwrap().reason,
        Reason::GroupLost
    );
    assert_eq!(answered[1].as_ref().unwrap().text.len(), 10);
    for group in groups {
        let plans = group.plans();
        let tokens: Vec<_> = plans[0].sequences.iter().map(|s| s.tokens.len()).collect();
        assert_eq!(tokens, [1], "the warm-up, alone");
        assert!(plans.len() > 1, "and it passed");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_not_in_the_step_is_no_suspect() {
    let config = Config {
        max_running: 1,
        ..config()
    };
    let (coordinator, _) = start_on(config, vec![rank()]).await;
    let requests = vec![poisoned(5, 2), prompt(5, 10), prompt(6, 10)];
    let (answered, groups) = answers(&coordinator, requests).await;
    assert!(answered[0].is_err() && answered[1..].iter().all(Result::is_ok));
    assert_eq!(groups.len(), 3);
}
