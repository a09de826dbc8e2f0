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
