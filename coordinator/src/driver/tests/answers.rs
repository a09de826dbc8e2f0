//! What a reader gets: events, usage, and the end of the sequence with its text or its reader.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_answer_with_characters_over_many_tokens_and_exact_usage() {
    let (coordinator, _) = start_with(
        config(),
        vec![Script::saying("é 👍🏽!", 0, 2), Script::saying("é 👍🏽!", 1, 2)],
    )
    .await;
    let request = GenerateRequest {
        request_id: "mine".into(),
        ..prompt(40, 50)
    };
    let whole = generate(&coordinator, request).await.unwrap();
    assert_eq!(whole.text, "é 👍🏽!");
    assert_eq!(
        (
            whole.started.request_id.as_str(),
            whole.started.prompt_tokens
        ),
        ("mine", 40)
    );
    assert_eq!(whole.finished.reason(), FinishReason::Eos);
    let usage = whole.finished.usage.unwrap();
    // 12 bytes and the end: 13 sampled, 52 fed; 2 layers x 2 heads x 32 bytes a token.
    assert_eq!((usage.prompt_tokens, usage.generated_tokens), (40, 13));
    assert_eq!((usage.held_slots, usage.evicted_tokens), (52, 0));
    assert_eq!(
        (usage.held_bytes, usage.full_cache_bytes),
        (52 * 128, 52 * 128)
    );
    // 40 tokens at stride 16 are 3 steps of prefill; the third samples.
    let close = |found: f64, steps: f64| (found - steps * STEP.as_secs_f64()).abs() < 0.004;
    assert!(
        close(usage.prefill_seconds, 3.0) && close(usage.decode_seconds, 12.0),
        "{usage:?}"
    );
    assert!(
        close(usage.first_token_seconds - usage.queue_seconds, 3.0),
        "{usage:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_bounded_sequence_reports_what_it_holds_and_which_positions() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let kv = KvContract {
        budget: 16,
        ..Default::default()
    };
    let request = GenerateRequest {
        kv: Some(kv),
        retention_report: true,
        ..prompt(100, 20)
    };
    let finished = generate(&coordinator, request).await.unwrap().finished;
    let usage = finished.usage.unwrap();
    // 119 fed; the last boundary is 112: 16 retained and a tail of 7.
    assert_eq!((usage.held_slots, usage.evicted_tokens), (23, 96));
    let expected: Vec<u32> = (0..4).chain(100..119).collect();
    let heads = finished.retention.unwrap().heads;
    assert_eq!(heads.len(), 4);
    assert!(
        heads.iter().all(|head| head.positions == expected),
        "{:?}",
        heads[0].positions
    );
}

/// A client sees what is kept of a prompt while it is read.
#[tokio::test(start_paused = true)]
async fn maps_come_at_every_boundary_and_where_the_prompt_ends() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let kv = KvContract {
        budget: 16,
        ..Default::default()
    };
    let request = GenerateRequest {
        kv: Some(kv),
        retention_map: true,
        ..prompt(100, 20)
    };
    let mut answer = ask(&coordinator, request).await;
    let (mut maps, mut finished) = (Vec::new(), None);
    while let Some(event) = answer.next().await {
        match event.unwrap().event.unwrap() {
            Event::RetentionMap(map) => maps.push(map),
            Event::Finished(found) => finished = Some(found),
            _ => {}
        }
    }
    let told: Vec<usize> = maps.iter().map(|map| map.shares.len()).collect();
    assert_eq!(told, [16, 32, 48, 64, 80, 96, 100, 112]);
    for map in &maps {
        let tokens = map.shares.len();
        let boundary = tokens - tokens % 16;
        let recent = if boundary > 16 { boundary - 12 } else { 0 };
        let held = |position: usize| position < 4 || position >= recent;
        let expected: Vec<u8> = (0..tokens).map(|at| 255 * u8::from(held(at))).collect();
        assert_eq!(map.shares, expected, "{tokens}");
        let slots = expected.iter().filter(|share| **share > 0).count() as u64;
        assert_eq!((map.held_slots, map.held_bytes), (slots, slots * 128));
        assert_eq!(map.full_cache_bytes, tokens as u64 * 128);
    }
    // The list of positions was not asked for.
    assert_eq!(finished.unwrap().retention, None);
}

/// A prompt that is only read has its maps too, and those of a long one are fewer.
#[tokio::test(start_paused = true)]
async fn maps_of_long_prompts_are_about_a_hundred() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let request = GenerateRequest {
        retention_map: true,
        ..prompt(16 * 300 + 1, 0)
    };
    let mut answer = ask(&coordinator, request).await;
    let mut told = Vec::new();
    while let Some(event) = answer.next().await {
        if let Event::RetentionMap(map) = event.unwrap().event.unwrap() {
            told.push(map.shares.len());
        }
    }
    let mut expected: Vec<usize> = (1..=100).map(|index| index * 48).collect();
    expected.push(16 * 300 + 1);
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn positions_that_an_answer_did_not_reach_are_no_reason_to_warn() {
    let script = || vec![Script::saying("seven.", 0, 1)];
    let usage = async |prompt_tokens| {
        let (coordinator, _) = start_with(config(), script()).await;
        // The model was trained on 512 tokens.
        let request = prompt(prompt_tokens, 20_000);
        let finished = generate(&coordinator, request).await.unwrap().finished;
        (finished.reason(), finished.usage.unwrap().warnings)
    };
    assert_eq!(usage(40).await, (FinishReason::Eos, Vec::new()));
    let warning = "positions reach 536, beyond the trained range of 512".to_owned();
    assert_eq!(usage(530).await, (FinishReason::Eos, vec![warning]));
}

#[tokio::test(start_paused = true)]
async fn stop_strings_across_tokens_end_the_sequence() {
    let (coordinator, ranks) =
        start_with(config(), vec![Script::saying("one <stop> two", 0, 1)]).await;
    let mut request = prompt(3, 50);
    request.stopping.as_mut().unwrap().stop = vec!["<stop>".into(), "zzz".into()];
    request.sampling = Some(Sampling {
        logprobs: Some(0),
        ..Default::default()
    });
    let mut answer = ask(&coordinator, request).await;
    let mut tokens = 0;
    let mut text = String::new();
    let finished = loop {
        match answer.next().await.unwrap().unwrap().event.unwrap() {
            Event::Delta(delta) => {
                assert!(delta.tokens.iter().all(|token| token.bytes.len() == 1));
                tokens += delta.tokens.len();
                text.push_str(&delta.text);
            }
            Event::Finished(finished) => break finished,
            _ => {}
        }
    };
    assert_eq!(
        (text.as_str(), finished.reason(), finished.stop.as_str()),
        ("one ", FinishReason::Stop, "<stop>")
    );
    assert_eq!((finished.usage.unwrap().generated_tokens, tokens), (10, 10));
    assert!(answer.next().await.is_none());
    sleep(3 * STEP).await;
    assert_eq!(
        ranks[0].plans().last().unwrap().release,
        [2],
        "the sequence is released though the answer still lives"
    );
}

#[tokio::test(start_paused = true)]
async fn max_tokens_and_ignored_ends() {
    let (coordinator, ranks) = start_with(config(), vec![Script::saying("ab", 0, 1)]).await;
    let whole = generate(&coordinator, prompt(3, 1)).await.unwrap();
    assert_eq!(
        (whole.text.as_str(), whole.finished.reason()),
        ("a", FinishReason::Length)
    );
    let mut request = prompt(3, 6);
    request.stopping.as_mut().unwrap().ignore_eos = true;
    let whole = generate(&coordinator, request).await.unwrap();
    assert_eq!(whole.finished.usage.unwrap().generated_tokens, 6);
    let banned = ranks[0]
        .plans()
        .into_iter()
        .flat_map(|plan| plan.sequences)
        .filter_map(|s| s.init)
        .next_back()
        .unwrap();
    assert_eq!(
        (banned.banned, banned.max_tokens),
        (vec![crate::executor::fake::IM_END], 9)
    );
}

/// Ranks are told what may not be sampled at first, by position.
#[tokio::test(start_paused = true)]
async fn ends_that_come_too_early_are_banned_up_to_their_position() {
    let (coordinator, ranks) = start_with(config(), vec![Script::saying("ab", 0, 1)]).await;
    let mut request = prompt(3, 6);
    let stopping = request.stopping.as_mut().unwrap();
    (stopping.min_tokens, stopping.stop_token_ids) = (2, vec![5]);
    generate(&coordinator, request).await.unwrap();
    let plans = ranks[0].plans().into_iter();
    let inits = plans
        .flat_map(|plan| plan.sequences)
        .filter_map(|one| one.init);
    let init = inits.last().unwrap();
    let eos = crate::executor::fake::IM_END;
    assert_eq!((init.banned_at_first, init.banned_until), (vec![eos, 5], 5));
    assert_eq!(init.banned, Vec::<u32>::new());
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_is_released_by_the_next_plan() {
    let (coordinator, ranks) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let mut other = ask(&coordinator, prompt(3, 400)).await;
    let mut answer = ask(&coordinator, prompt(3, 400)).await;
    first_delta(&mut answer).await;
    first_delta(&mut other).await;
    let before = ranks[0].plans().len();
    drop(answer);
    sleep(2 * STEP).await;
    let plans = ranks[0].plans();
    // At most the step that was under way comes before it.
    let released = plans[before..]
        .iter()
        .position(|plan| plan.release == [3])
        .unwrap();
    assert!(released <= 1, "after {released} steps");
    assert!(
        plans[before + released..]
            .iter()
            .all(|plan| plan.sequences.iter().all(|s| s.sequence != 3))
    );
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_paused_then_given_up_and_never_buffers_more_than_its_ring() {
    let config = Config {
        slow_reader_limit: Duration::from_secs(2),
        ..config()
    };
    let (coordinator, ranks) = start_with(config, vec![Script::endless(0, 1)]).await;
    let tokens = |id: u64| {
        ranks[0]
            .plans()
            .iter()
            .flat_map(|p| &p.sequences)
            .filter(|s| s.sequence == id && s.sample)
            .count()
    };
    let mut answer = ask(&coordinator, prompt(3, 400)).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens(2), 8, "a ring of 8");
    for _ in 0..6 {
        answer.next().await.unwrap().unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens(2), 13, "resumed, and full again");
    sleep(Duration::from_secs(3)).await;
    let error = whole(&mut answer).await.err();
    assert_eq!(error.map(|error| error.reason), Some(Reason::SlowReader));
    assert!(ranks[0].plans().last().unwrap().release.contains(&2));
}
