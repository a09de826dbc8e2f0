//! Prompts that begin with what is kept: what is read, what is not, and that no answer changes.

use palimpsest_proto::internal::v1::StepPlan;
use palimpsest_proto::v1::{AppendRequest, CreateSessionRequest, append_request};
use proptest::prelude::*;

use super::*;

/// Room for a few snapshots of the fake model.
const ROOM: u64 = 1 << 20;
/// Tokens between two boundaries of the fake model.
const STRIDE: u32 = 16;

/// A rank whose tokens depend on all that it was fed.
fn hashing(room: u64, rank: u32, world_size: u32) -> Script {
    let answer = Arc::new(|tokens: &[u32], prompt: usize| {
        let mix = |sum: u32, id: &u32| sum.wrapping_mul(31).wrapping_add(*id);
        97 + (tokens.iter().fold(7, mix) ^ prompt as u32) % 26
    });
    Script::answering(answer, rank, world_size).keeping(room)
}

fn ids(ids: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        input: Some(Input::TokenIds(TokenIds { ids })),
        ..prompt(1, max_tokens)
    }
}

/// `length` tokens that only prompts of the same `text` share.
fn text(text: u32, length: u32) -> Vec<u32> {
    (0..length)
        .map(|i| 97 + (i * 7 + text * 5 + i / 26 * text) % 26)
        .collect()
}

fn cached(whole: &Whole) -> u64 {
    whole.finished.usage.as_ref().unwrap().cached_tokens
}

/// Prompt tokens that ranks were given to read.
fn read(plans: &[StepPlan]) -> usize {
    let steps = plans.iter().flat_map(|plan| &plan.sequences);
    steps
        .map(|step| step.tokens.len())
        .filter(|&count| count > 1)
        .sum()
}

#[tokio::test(start_paused = true)]
async fn the_next_turn_reads_what_is_new_and_a_stride_at_most() {
    let scripts = vec![hashing(ROOM, 0, 2), hashing(ROOM, 1, 2)];
    let (coordinator, ranks) = start_with(config(), scripts).await;
    let mut conversation = text(1, 200);
    let mut longest = 0;
    for turn in 0..6 {
        ranks[0].forget_plans();
        let whole = generate(&coordinator, ids(conversation.clone(), 40))
            .await
            .unwrap();
        let unread = conversation.len() as u64 - cached(&whole);
        if turn > 0 {
            // What the last turn added is 7 tokens and the last one of its answer.
            assert!(
                unread <= u64::from(STRIDE) + 8,
                "turn {turn}: {unread} tokens read"
            );
            assert!(read(&ranks[0].plans()) as u64 <= unread, "turn {turn}");
        }
        longest = longest.max(cached(&whole));
        conversation.extend(whole.text.bytes().map(u32::from));
        conversation.extend(text(9 + turn, 7));
    }
    assert!(longest > 300);
}

#[tokio::test(start_paused = true)]
async fn a_text_that_many_ask_about_at_once_is_read_once() {
    let (coordinator, ranks) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let document = text(1, 400);
    let asked: Vec<_> = (0..10)
        .map(|question| {
            let coordinator = coordinator.clone();
            let prompt = [document.clone(), text(20 + question, 9)].concat();
            tokio::spawn(async move { generate(&coordinator, ids(prompt, 5)).await.unwrap() })
        })
        .collect();
    for answer in asked {
        answer.await.unwrap();
    }
    let read = read(&ranks[0].plans());
    assert!(
        read < 400 + 10 * (9 + STRIDE as usize),
        "{read} tokens read"
    );
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_reader_that_leaves_reads_itself() {
    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let document = text(1, 400);
    let first = ask(&coordinator, ids(document.clone(), 5)).await;
    sleep(STEP * 3).await;
    let mut second = ask(&coordinator, ids([document, text(3, 5)].concat(), 5)).await;
    sleep(STEP * 3).await;
    drop(first);
    assert_eq!(
        whole(&mut second).await.unwrap().finished.reason(),
        FinishReason::Length
    );
}

#[tokio::test(start_paused = true)]
async fn other_contracts_and_short_prompts_share_nothing() {
    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    let kv = KvContract {
        budget: 32,
        ..Default::default()
    };
    let other = GenerateRequest {
        kv: Some(kv),
        ..ids(text(1, 100), 3)
    };
    assert_eq!(cached(&generate(&coordinator, other).await.unwrap()), 0);
    assert_eq!(
        cached(&generate(&coordinator, ids(text(1, 16), 3)).await.unwrap()),
        0
    );
    // The last token is always read, since the answer follows from it.
    assert_eq!(
        cached(&generate(&coordinator, ids(text(1, 96), 3)).await.unwrap()),
        80
    );
}

#[tokio::test(start_paused = true)]
async fn a_prefix_that_was_asked_for_twice_is_kept() {
    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let mut found = Vec::new();
    for question in 0..3 {
        // Questions of three strides: the ends of these prompts are no prefix of the others.
        let prompt = [text(1, 200), text(20 + question, 48)].concat();
        found.push(cached(
            &generate(&coordinator, ids(prompt, 3)).await.unwrap(),
        ));
    }
    assert_eq!(found, [0, 0, 192]);
}

#[tokio::test(start_paused = true)]
async fn a_prompt_alone_can_be_read() {
    let (coordinator, ranks) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let (service, call) = (coordinator.service(), crate::service::Call::default());
    let new = CreateSessionRequest {
        session_id: "s".into(),
        ..Default::default()
    };
    service.create_session(&call, new).await.unwrap();
    let input = append_request::Input::TokenIds(TokenIds { ids: text(1, 100) });
    let append = AppendRequest {
        session_id: "s".into(),
        input: Some(input),
        ..Default::default()
    };
    let usage = service.append(&call, append).await.unwrap().usage.unwrap();
    assert_eq!((usage.prompt_tokens, usage.generated_tokens), (100, 0));
    let plans = ranks[0].plans();
    let mut steps = plans.iter().flat_map(|plan| &plan.sequences).skip(1);
    assert!(steps.all(|step| !step.sample), "no token is asked for");
    let whole = generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    assert_eq!(cached(&whole), 96);
}

#[tokio::test(start_paused = true)]
async fn memory_that_is_too_small_keeps_what_fits_or_nothing() {
    // A snapshot of 64 entries takes 8 KiB.
    for room in [1, 9 << 10, 20 << 10] {
        let (coordinator, _) = start_with(config(), vec![hashing(room, 0, 1)]).await;
        for round in 0..6 {
            let prompt = text(round % 3, 100 + round);
            generate(&coordinator, ids(prompt, 40)).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn another_group_begins_with_what_its_ranks_have_kept() {
    let rank = FakeRank::new(hashing(ROOM, 0, 1).with_step_time(STEP));
    let mut config = config();
    config.regroup_limit = Duration::from_secs(10);
    let (coordinator, _) = start_on(config, vec![rank.clone()]).await;
    generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    coordinator.service().driver.lose("a test".into()).await;
    until_lost(&coordinator).await;
    take_over(&coordinator, &rank, 5).await;
    assert!(coordinator.ready().await);
    let again = generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    assert_eq!(cached(&again), 96);
}

/// One request of a random run.
#[derive(Debug, Clone)]
struct Asked {
    text: u32,
    length: u32,
    rest: u32,
    max_tokens: u32,
    /// Tokens after which the client goes away; 0: it stays.
    leaves: u32,
    /// Steps until the next one is asked.
    pause: u32,
}

fn asked() -> impl Strategy<Value = Asked> {
    let lengths = (0u32..3, 1u32..200, 0u32..60);
    (lengths, 1u32..50, 0u32..9, 0u32..6).prop_map(|(lengths, max_tokens, leaves, pause)| Asked {
        text: lengths.0,
        length: lengths.1,
        rest: lengths.2,
        max_tokens,
        leaves: if leaves > 3 { 0 } else { leaves },
        pause,
    })
}

async fn answers(room: u64, asked: &[Asked]) -> Vec<String> {
    let (coordinator, _) = start_with(config(), vec![hashing(room, 0, 1)]).await;
    let mut tasks = Vec::new();
    for one in asked.iter().cloned() {
        let coordinator = coordinator.clone();
        let prompt = [text(one.text, one.length), text(7, one.rest)].concat();
        sleep(STEP * one.pause).await;
        tasks.push(tokio::spawn(async move {
            let mut answer = ask(&coordinator, ids(prompt, one.max_tokens)).await;
            if one.leaves > 0 && one.leaves < one.max_tokens {
                first_delta(&mut answer).await;
                return "left".to_owned();
            }
            whole(&mut answer).await.unwrap().text
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.push(task.await.unwrap());
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever is asked, together or in turn, answers are those of a service that keeps nothing.
    /// The fake rank refuses whatever of a plan its state does not allow.
    #[test]
    fn no_answer_changes(asked in prop::collection::vec(asked(), 1..12), room in 0u64..100_000) {
        let runtime = || tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        let without = runtime().block_on(answers(0, &asked));
        let with = runtime().block_on(answers(room, &asked));
        prop_assert_eq!(with, without);
    }
}

/// The chain of a prompt, as the service names it.
fn chain(coordinator: &Coordinator, tokens: &[u32]) -> Arc<crate::snapshots::Chain> {
    let model = &coordinator.service().model;
    let root = model.snapshot_root(&model.default_contract, crate::snapshots::Salt::default());
    Arc::new(crate::snapshots::Chain::of(&root, tokens))
}

#[tokio::test(start_paused = true)]
async fn a_state_goes_to_the_store_and_comes_back() {
    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let driver = &coordinator.service().driver;
    let tokens = text(1, 100);
    let chain = chain(&coordinator, &tokens);
    let unknown = driver.move_state(chain.clone(), Move::Suspend).await;
    assert_eq!(unknown, Err(MoveError::NotKept));

    let first = generate(&coordinator, ids(tokens.clone(), 3))
        .await
        .unwrap();
    let moves = [Move::Suspend, Move::Suspend, Move::Resume, Move::Resume];
    let mut bytes = Vec::new();
    for what in moves {
        let moved = driver.move_state(chain.clone(), what).await.unwrap();
        assert_eq!(moved.position, 96);
        bytes.push(moved.bytes > 0);
    }
    assert_eq!(bytes, [true, false, true, false]);
    driver
        .move_state(chain.clone(), Move::Suspend)
        .await
        .unwrap();

    // Whoever asks about a text in the store waits for it, and reads the rest.
    let again = generate(&coordinator, ids(tokens.clone(), 3))
        .await
        .unwrap();
    assert_eq!((cached(&again), again.text), (96, first.text));
    let all = driver.move_state(chain.clone(), Move::Forget { shared: 96 });
    assert_eq!(all.await.unwrap().bytes, 0, "others have all of it");
    let kept = driver.move_state(chain, Move::Forget { shared: 0 });
    assert_eq!(kept.await.unwrap().position, 96);
    let again = generate(&coordinator, ids(tokens, 3)).await.unwrap();
    assert_eq!(cached(&again), 0, "another request had begun with it");
}

/// Makes a session, and has it read tokens and answer them.
async fn turn(coordinator: &Coordinator, session: &str, ids: Vec<u32>) -> u64 {
    let (service, call) = (coordinator.service(), crate::service::Call::default());
    let new = CreateSessionRequest {
        session_id: session.into(),
        ..Default::default()
    };
    // The later turns find it.
    let _ = service.create_session(&call, new).await;
    let request = GenerateRequest {
        session_id: session.into(),
        input: Some(Input::TokenIds(TokenIds { ids })),
        ..prompt(1, 20)
    };
    cached(&generate(coordinator, request).await.unwrap())
}

/// Bytes of all states in memory and in the store, as dashboards see them.
fn kept_bytes(coordinator: &Coordinator) -> [u64; 2] {
    let metrics = coordinator.service().metrics.encode();
    ["memory", "store"].map(|tier| {
        let name = format!("palimpsest_snapshot_bytes{{tier=\"{tier}\"}} ");
        let bytes = metrics.lines().find_map(|line| line.strip_prefix(&name));
        bytes.expect("a gauge").parse().expect("a number")
    })
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_a_deleted_session_however_often_its_turns_used_it() {
    let script = hashing(ROOM, 0, 1);
    let (coordinator, _) = start_with(config(), vec![script]).await;
    let document = text(1, 100);
    turn(&coordinator, "doc", document.clone()).await;
    for question in 2..6 {
        let found = turn(&coordinator, "doc", text(question, 20)).await;
        assert!(found >= 96, "{found}");
    }
    let sessions = &coordinator.service().sessions;
    sessions.suspend(None, "doc").await.unwrap();
    sessions.resume(None, "doc").await.unwrap();
    assert!(kept_bytes(&coordinator).iter().all(|&bytes| bytes > 0));
    sessions.delete(None, "doc").await.unwrap();
    // Gauges follow with the next step.
    sleep(STEP * 3).await;
    assert_eq!(kept_bytes(&coordinator), [0, 0]);
    let again = generate(&coordinator, ids(document, 3)).await.unwrap();
    assert_eq!(cached(&again), 0);
}

#[tokio::test(start_paused = true)]
async fn states_that_another_session_goes_on_from_stay() {
    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let sessions = &coordinator.service().sessions;
    turn(&coordinator, "doc", text(1, 100)).await;
    sessions.fork(None, "doc", "copy").await.unwrap();
    turn(&coordinator, "doc", text(2, 60)).await;
    let tokens = sessions.show(None, "copy").await.unwrap().tokens;
    sessions.delete(None, "doc").await.unwrap();
    let found = turn(&coordinator, "copy", text(3, 20)).await;
    assert_eq!(found, tokens / u64::from(STRIDE) * u64::from(STRIDE));
    // A session with other tokens keeps nothing of it.
    turn(&coordinator, "other", text(9, 100)).await;
    sessions.delete(None, "copy").await.unwrap();
    let again = generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    assert_eq!(cached(&again), 0);
    assert!(turn(&coordinator, "other", text(3, 20)).await >= 96);
}

#[tokio::test(start_paused = true)]
async fn a_session_is_deleted_when_a_group_has_said_that_it_keeps_nothing_of_it() {
    let rank = FakeRank::new(hashing(ROOM, 0, 1).with_step_time(STEP));
    let mut config = config();
    config.regroup_limit = Duration::from_secs(100);
    let (coordinator, _) = start_on(config, vec![rank.clone()]).await;
    turn(&coordinator, "doc", text(1, 100)).await;
    coordinator.service().driver.lose("a test".into()).await;
    until_lost(&coordinator).await;
    let sessions = &coordinator.service().sessions;
    let refused = sessions.delete(None, "doc").await.unwrap_err();
    assert_eq!(refused.reason, Reason::StoreUnavailable, "{refused}");
    sessions.show(None, "doc").await.expect("it is there");

    let deleting = {
        let coordinator = coordinator.clone();
        tokio::spawn(async move { coordinator.service().sessions.delete(None, "doc").await })
    };
    sleep(STEP * 3).await;
    take_over(&coordinator, &rank, 5).await;
    deleting.await.unwrap().expect("the next group has said so");
    assert!(coordinator.ready().await);
    let again = generate(&coordinator, ids(text(1, 100), 3)).await.unwrap();
    assert_eq!(cached(&again), 0);
}

#[tokio::test(start_paused = true)]
async fn states_of_sessions_are_moved_by_the_driver() {
    use crate::service::DriverPins;
    use crate::sessions::pins::{Pinned, conformance};

    let (coordinator, _) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let service = coordinator.service();
    generate(&coordinator, ids(text(1, 50), 3)).await.unwrap();
    let pinned = |tokens: Vec<u32>| Pinned {
        tokens: tokens.into(),
        contract: service.model.default_contract.clone(),
        tenant: None,
    };
    let pins = DriverPins::new(service.driver.clone(), service.model.clone(), false);
    conformance(&pins, &pinned(text(1, 50)), &pinned(text(2, 50))).await;
}

#[tokio::test(start_paused = true)]
async fn who_cannot_begin_with_a_state_reads_its_tokens() {
    let asked = || ids(text(1, 100), 5);
    let (coordinator, ranks) = start_with(config(), vec![hashing(ROOM, 0, 1)]).await;
    let first = generate(&coordinator, asked()).await.unwrap();
    let again = generate(&coordinator, asked()).await.unwrap();
    assert_eq!(cached(&again), 96);
    let plans = ranks[0].plans();
    let forks = |plan: &StepPlan| {
        let mut begun = plan.sequences.iter().filter_map(|step| step.init.as_ref());
        begun.any(|init| !init.fork.is_empty())
    };
    let at = plans.iter().position(forks).unwrap();

    let script = hashing(ROOM, 0, 1).with_fault(at, Fault::FailSequence);
    let (coordinator, _) = start_with(config(), vec![script]).await;
    generate(&coordinator, asked()).await.unwrap();
    let again = generate(&coordinator, asked()).await.unwrap();
    // The one before it is still there.
    assert_eq!((cached(&again), again.text), (80, first.text));
    let third = generate(&coordinator, asked()).await.unwrap();
    assert_eq!(cached(&third), 96, "what was read has been kept");
}
