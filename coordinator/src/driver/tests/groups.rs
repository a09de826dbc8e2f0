//! Groups that fail, and those that take their place.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_lost_group_ends_its_requests_by_class_and_another_takes_over() {
    // Plans: warm-up, its release with the first prefill, ...: the fault comes in mid-stream.
    let script = Script::endless(0, 1).with_fault(6, Fault::Error);
    let (coordinator, _) = start_with(
        Config {
            max_running: 2,
            ..config()
        },
        vec![script],
    )
    .await;
    let service = coordinator.service();
    let mut streaming = ask(&coordinator, prompt(3, 100)).await;
    let mut prefilling = ask(&coordinator, prompt(300, 100)).await;
    let mut waiting = ask(&coordinator, prompt(5, 4)).await;
    let error = whole(&mut streaming).await.err().unwrap();
    assert_eq!(error.reason, Reason::GroupLost);
    assert!(error.message.contains("scripted error"), "{error}");
    assert_eq!(failure(&mut prefilling).await, Reason::RankFailed);
    assert_eq!(*service.driver.readiness().borrow(), Readiness::Lost);
    assert_eq!(
        refusal(&coordinator, prompt(3, 1)).await,
        Reason::NoReadyGroup
    );
    let next = FakeRank::new(Script::endless(0, 1));
    take_over(&coordinator, &next, 2).await;
    assert_eq!(
        whole(&mut waiting).await.unwrap().text.len(),
        4,
        "what waited is served by the next group"
    );
    assert!(next.plans().iter().all(|plan| plan.epoch == 2));
    assert!(coordinator.ready().await);
    generate(&coordinator, prompt(3, 1)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn requests_go_on_with_the_next_group_when_they_may_wait() {
    let script = || Script::saying("forty-two characters, and no more of them", 0, 1);
    let config = Config {
        regroup_limit: Duration::from_secs(30),
        ..config()
    };
    let (coordinator, _) =
        start_with(config.clone(), vec![script().with_fault(9, Fault::Error)]).await;
    let mut answer = ask(&coordinator, prompt(300, 100)).await;
    let reader = tokio::spawn(async move { whole(&mut answer).await });
    until_lost(&coordinator).await;
    sleep(Duration::from_secs(20)).await;
    let next = FakeRank::new(script());
    take_over(&coordinator, &next, 7).await;
    let done = reader.await.unwrap().unwrap();
    assert_eq!(
        done.text, "forty-two characters, and no more of them",
        "no token is lost or said twice"
    );
    assert!(next.plans().iter().all(|plan| plan.epoch == 7));
    let first = &next.plans()[0].sequences;
    assert!(
        first
            .iter()
            .all(|step| step.position == 0 && step.init.is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_a_group_no_longer_than_it_may() {
    let config = Config {
        regroup_limit: Duration::from_secs(30),
        max_running: 1,
        ..config()
    };
    let (coordinator, _) = start_with(
        config,
        vec![Script::endless(0, 1).with_fault(6, Fault::Error)],
    )
    .await;
    let mut streaming = ask(&coordinator, prompt(3, 100)).await;
    let mut waiting = ask(&coordinator, prompt(3, 100)).await;
    let begin = Instant::now();
    assert_eq!(failure(&mut streaming).await, Reason::GroupLost);
    assert_eq!(failure(&mut waiting).await, Reason::RankFailed);
    assert_eq!(begin.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_between_two_groups_waits_no_longer_than_it_may() {
    let limits = Config {
        max_queued: 2,
        group_wait_limit: Duration::from_secs(5),
        ..config()
    };
    let config = Config {
        regroup_limit: Duration::from_secs(20),
        ..limits
    };
    let (coordinator, _) = start_with(
        config.clone(),
        vec![Script::endless(0, 1).with_fault(6, Fault::Error)],
    )
    .await;
    let mut lost = ask(&coordinator, prompt(3, 100)).await;
    until_lost(&coordinator).await;
    let begin = Instant::now();
    let error = generate(&coordinator, prompt(3, 1)).await.err().unwrap();
    assert_eq!(
        (error.reason, begin.elapsed().as_secs()),
        (Reason::NoReadyGroup, 5)
    );
    let mut early = ask(&coordinator, prompt(3, 4)).await;
    let _second = ask(&coordinator, prompt(3, 4)).await;
    assert_eq!(refusal(&coordinator, prompt(3, 1)).await, Reason::QueueFull);
    let next = FakeRank::new(Script::endless(0, 1).with_fault(20, Fault::Error));
    take_over(&coordinator, &next, 2).await;
    assert_eq!(whole(&mut early).await.unwrap().text.len(), 4);
    assert_eq!(
        failure(&mut lost).await,
        Reason::GroupLost,
        "the next one was lost, too, and none came"
    );
    // Who comes when a group is overdue is told so at once.
    let begin = Instant::now();
    assert_eq!(
        refusal(&coordinator, prompt(3, 1)).await,
        Reason::NoReadyGroup
    );
    assert_eq!(begin.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_breaks_every_group_is_given_up() {
    let config = Config {
        regroup_limit: Duration::from_secs(3600),
        max_replays: 2,
        ..config()
    };
    let breaking = || Script::endless(0, 1).with_fault(3, Fault::Error);
    let (coordinator, _) = start_with(config.clone(), vec![breaking()]).await;
    let mut answer = ask(&coordinator, prompt(3, 100)).await;
    let reader = tokio::spawn(async move { whole(&mut answer).await });
    let readiness = coordinator.service().driver.readiness();
    for epoch in 2..4 {
        sleep(Duration::from_secs(1)).await;
        assert_eq!(
            (*readiness.borrow(), reader.is_finished()),
            (Readiness::Lost, false)
        );
        let next = FakeRank::new(breaking());
        take_over(&coordinator, &next, epoch).await;
    }
    assert_eq!(
        reader.await.unwrap().err().unwrap().reason,
        Reason::GroupLost
    );
}

#[tokio::test(start_paused = true)]
async fn a_sequence_that_fails_alone_harms_no_other() {
    let script = Script::endless(0, 1).with_fault(4, Fault::FailSequence);
    let (coordinator, ranks) = start_with(config(), vec![script]).await;
    let mut first = ask(&coordinator, prompt(3, 9)).await;
    let mut second = ask(&coordinator, prompt(3, 9)).await;
    assert_eq!(failure(&mut first).await, Reason::GroupLost);
    assert_eq!(whole(&mut second).await.unwrap().text.len(), 9);
    sleep(2 * STEP).await;
    let released: Vec<u64> = ranks[0]
        .plans()
        .into_iter()
        .flat_map(|plan| plan.release)
        .collect();
    assert_eq!(
        released,
        [1, 3],
        "what failed holds nothing that could be released"
    );
}

#[tokio::test(start_paused = true)]
async fn a_group_that_fails_its_first_step_never_serves() {
    let rank = FakeRank::new(Script::endless(0, 1).with_fault(0, Fault::Error));
    let coordinator = Coordinator::build(
        config(),
        executor(std::slice::from_ref(&rank), &config()),
        vec![rank.info()],
    )
    .unwrap();
    assert!(!coordinator.ready().await);
    assert_eq!(
        refusal(&coordinator, prompt(3, 1)).await,
        Reason::NoReadyGroup
    );
}

/// Log-probabilities of a prompt, as a client sees them; the fake rank says its position of each.
#[tokio::test(start_paused = true)]
async fn what_is_told_of_a_prompt_is_told_once_though_groups_are_lost() {
    let config = Config {
        regroup_limit: Duration::from_secs(30),
        max_replays: 5,
        ..config()
    };
    let breaking = |plan| Script::endless(0, 1).with_fault(plan, Fault::Error);
    // In the middle of the prompt; then after some tokens of the answer.
    let (coordinator, _) = start_with(config, vec![breaking(2)]).await;
    let mut asked = prompt(900, 40);
    asked.sampling = Some(Sampling {
        prompt_logprobs: Some(0),
        ..Default::default()
    });
    let mut answer = ask(&coordinator, asked).await;
    let reader = tokio::spawn(async move { events(&mut answer).await });
    until_lost(&coordinator).await;
    let next = FakeRank::new(breaking(30).with_step_time(STEP));
    take_over(&coordinator, &next, 2).await;
    until_lost(&coordinator).await;
    let last = FakeRank::new(Script::endless(0, 1));
    take_over(&coordinator, &last, 3).await;
    let events = reader.await.unwrap().unwrap();
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event.event.as_ref().unwrap() {
            Event::PromptLogprobs(prompt) => Some(prompt),
            _ => None,
        })
        .collect();
    assert_eq!(told.len(), 1);
    let [first, rest @ ..] = &told[0].tokens[..] else {
        panic!("a prompt has tokens");
    };
    assert!(first.logprob.is_nan() && first.id == 97, "{first:?}");
    let positions: Vec<f32> = rest.iter().map(|token| -token.logprob).collect();
    assert_eq!(positions, (1..900).map(|i| i as f32).collect::<Vec<_>>());
    assert!(matches!(events[1].event, Some(Event::PromptLogprobs(_))));
}

#[tokio::test(start_paused = true)]
async fn a_prompt_without_an_answer_is_read_and_told_of() {
    let (coordinator, ranks) = start_with(config(), vec![Script::endless(0, 1)]).await;
    for tokens in [1, 300] {
        let mut asked = prompt(tokens, 0);
        asked.sampling = Some(Sampling {
            prompt_logprobs: Some(0),
            ..Default::default()
        });
        let mut answer = ask(&coordinator, asked).await;
        let events = events(&mut answer).await.unwrap();
        let [_, prompt, finished] = &events[..] else {
            panic!("{events:?}");
        };
        let Some(Event::PromptLogprobs(prompt)) = &prompt.event else {
            panic!("{prompt:?}");
        };
        assert_eq!(prompt.tokens.len(), tokens as usize);
        let Some(Event::Finished(finished)) = &finished.event else {
            panic!("{finished:?}");
        };
        assert_eq!(finished.reason(), FinishReason::Read);
        assert_eq!(finished.usage.as_ref().unwrap().generated_tokens, 0);
    }
    assert!(ranks[0].plans().iter().all(|plan| {
        plan.sequences
            .iter()
            .all(|step| step.tokens.len() > 1 || !step.sample || step.init.is_some())
    }));
}
