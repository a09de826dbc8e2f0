//! Requests with a guide, over ranks that do not look at it.

use palimpsest_proto::v1::Guide;

use super::*;

fn guided(tokens: u32, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        guide: Some(Guide::of_texts(vec!["yes".into(), "no".into()])),
        ..prompt(tokens, max_tokens)
    }
}

/// The state of a guide follows from all tokens of the answer, also of those before a kept state.
#[tokio::test(start_paused = true)]
async fn ranks_get_the_guide_and_the_tokens_of_a_state_that_they_begin_with() {
    let script = Script::saying("yes", 0, 1).keeping(1 << 20);
    let (coordinator, ranks) = start_with(config(), vec![script]).await;
    for _ in 0..2 {
        let whole = generate(&coordinator, guided(40, 9)).await.unwrap();
        assert_eq!(whole.text, "yes");
    }
    let plain = generate(&coordinator, prompt(40, 9)).await.unwrap();
    assert!(plain.finished.usage.unwrap().cached_tokens > 0);
    let plans = ranks[0].plans();
    let steps = plans.iter().flat_map(|plan| &plan.sequences);
    let inits: Vec<_> = steps.filter_map(|step| step.init.as_ref()).collect();
    let [_, first, second, plain] = &inits[..] else {
        panic!("the warm-up and three requests: {}", inits.len())
    };
    assert_eq!((&first.guide, first.fork.len()), (&guided(1, 1).guide, 0));
    assert_eq!(second.guide, first.guide);
    assert!(!second.fork.is_empty());
    let ids: Vec<u32> = (0..32).map(|i| 97 + i % 26).collect();
    assert_eq!(second.forked_tokens, ids);
    assert_eq!((&plain.guide, plain.forked_tokens.len()), (&None, 0));
}

#[tokio::test(start_paused = true)]
async fn a_guide_that_fails_on_the_way_is_the_requests_fault_and_not_the_groups() {
    let script = Script::endless(0, 1).with_fault(4, Fault::FailGuide);
    let (coordinator, _) = start_with(config(), vec![script]).await;
    let mut first = ask(&coordinator, guided(3, 9)).await;
    let mut second = ask(&coordinator, guided(3, 9)).await;
    assert_eq!(failure(&mut first).await, Reason::GuideFailed);
    assert_eq!(whole(&mut second).await.unwrap().text.len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_guide_waits_for_a_thread_and_one_that_cannot_be_compiled_takes_no_place() {
    let (coordinator, ranks) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let paused = coordinator.service().pool.pause().await;
    let service = coordinator.service().clone();
    let asked = tokio::spawn(async move { service.generate(guided(3, 2), None).await });
    sleep(Duration::from_secs(1)).await;
    assert!(!asked.is_finished());
    drop(paused);
    let mut answer = asked.await.unwrap().unwrap();
    assert_eq!(whole(&mut answer).await.unwrap().text.len(), 2);

    ranks[0].forget_plans();
    let bad = GenerateRequest {
        guide: Some(Guide::of_schema("{\"type\": 7}")),
        ..prompt(3, 2)
    };
    let refused = coordinator.service().generate(bad, None).await;
    let error = refused.err().unwrap();
    assert_eq!(error.reason, Reason::BadGuide);
    assert_eq!(error.field, Some("guide.json_schema"));
    assert!(
        ranks[0]
            .plans()
            .iter()
            .all(|plan| plan.sequences.is_empty())
    );
}
