//! Requests with a guide, over ranks that do not look at it.

use palimpsest_proto::internal::v1::SequenceStep;
use palimpsest_proto::v1::{Chat, ChatMessage, Guide, Tool, ToolMode};

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

/// A sequence whose guide is late has the same tokens, in twice as many steps, and the sequence
/// beside it has one in every step.
#[tokio::test(start_paused = true)]
async fn a_late_guide_costs_its_own_sequence_steps_and_nobody_else() {
    let mut said = Vec::new();
    for script in [
        Script::endless(0, 1),
        Script::endless(0, 1).with_late_guides(),
    ] {
        let (coordinator, ranks) = start_with(config(), vec![script]).await;
        ranks[0].forget_plans();
        let mut late = ask(&coordinator, guided(3, 12)).await;
        let mut beside = ask(&coordinator, prompt(5, 24)).await;
        let (late, beside) = tokio::join!(whole(&mut late), whole(&mut beside));
        let (late, beside) = (late.unwrap(), beside.unwrap());
        assert_eq!((late.text.len(), beside.text.len()), (12, 24));
        let plans = ranks[0].plans();
        let steps = |id| {
            let of = move |step: &&SequenceStep| step.sequence == id;
            plans.iter().flat_map(|plan| &plan.sequences).filter(of)
        };
        let ids: Vec<u64> = plans
            .iter()
            .flat_map(|plan| &plan.sequences)
            .map(|one| one.sequence)
            .collect();
        let (first, last) = (ids.iter().min().unwrap(), ids.iter().max().unwrap());
        let fed = |id| steps(id).map(|step| step.tokens.len()).sum::<usize>();
        assert_eq!((fed(*first), fed(*last)), (3 + 11, 5 + 23));
        said.push((
            late.text,
            beside.text,
            steps(*first).count(),
            steps(*last).count(),
        ));
    }
    assert_eq!((&said[0].0, &said[0].1), (&said[1].0, &said[1].1));
    assert_eq!((said[0].2, said[1].2), (12, 24));
    assert_eq!(said[0].3, said[1].3);
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

/// A chat with one tool.
fn calling(mode: ToolMode, strict: bool, parameters: &str) -> GenerateRequest {
    let tool = Tool {
        name: "add".into(),
        parameters: parameters.into(),
        strict,
        ..Default::default()
    };
    GenerateRequest {
        input: Some(Input::Chat(Chat {
            messages: vec![ChatMessage::new("user", "1 + 2?")],
            tools: vec![tool],
            tool_mode: mode.into(),
            ..Default::default()
        })),
        ..prompt(1, 30)
    }
}

const INTEGER: &str = r#"{"type": "object", "required": ["a"], "additionalProperties": false,
                          "properties": {"a": {"type": "integer", "maximum": 5}}}"#;
/// Lists of different items cannot be enforced.
const DIFFERENT: &str = r#"{"type": "object", "properties": {"a": {"type": "array", "maxItems": 2,
                            "items": {"type": "integer"}, "uniqueItems": true}}}"#;

/// Calls that must be, and those of a strict tool, follow the schema; others are the model's.
#[tokio::test(start_paused = true)]
async fn ranks_get_the_schemas_of_tools_whose_calls_are_guided() {
    let says = "add\", \"arguments\": {\"a\": 3}}";
    let (coordinator, ranks) = start_with(config(), vec![Script::saying(says, 0, 1)]).await;
    for (mode, strict, is_guided) in [
        (ToolMode::Required, false, true),
        (ToolMode::Auto, true, true),
        (ToolMode::Auto, false, false),
        (ToolMode::None, true, false),
    ] {
        ranks[0].forget_plans();
        let answer = generate(&coordinator, calling(mode, strict, INTEGER)).await;
        assert!(answer.unwrap().finished.usage.unwrap().warnings.is_empty());
        let plans = ranks[0].plans();
        let mut steps = plans.iter().flat_map(|plan| &plan.sequences);
        let init = steps.find_map(|step| step.init.as_ref()).unwrap();
        assert_eq!(init.guide, None);
        let grammar = init.calls.as_ref().map(|calls| calls.grammar.as_str());
        assert_eq!(grammar.is_some(), is_guided, "{mode:?}, {strict}");
        assert!(grammar.is_none_or(|grammar| grammar.contains("%json")));
    }
}

/// What of a schema cannot be enforced is refused for a strict tool, and told for another.
#[tokio::test(start_paused = true)]
async fn schemas_of_tools_that_cannot_be_enforced_are_refused_or_told() {
    let (coordinator, _) = start_with(config(), vec![Script::endless(0, 1)]).await;
    let service = coordinator.service();
    let refused = |request| async move {
        let error = service.generate(request, None).await.err().unwrap();
        (error.reason, error.field, error.to_string())
    };
    for bad in [
        DIFFERENT,
        r#"{"type": "array"}"#,
        r##"{"$ref": "#/$defs/x", "type": "object"}"##,
    ] {
        let (reason, field, message) = refused(calling(ToolMode::Auto, true, bad)).await;
        assert_eq!(
            (reason, field),
            (Reason::BadChat, Some("chat.tools")),
            "{message}"
        );
        assert!(message.contains("tools[0]"), "{message}");
    }
    let answer = generate(&coordinator, calling(ToolMode::Required, false, DIFFERENT)).await;
    let warnings = answer.unwrap().finished.usage.unwrap().warnings;
    assert!(
        warnings.iter().any(|one| one.contains("uniqueItems")),
        "{warnings:?}"
    );
    let array = calling(ToolMode::Required, false, r#"{"type": "array"}"#);
    let warnings = generate(&coordinator, array)
        .await
        .unwrap()
        .finished
        .usage
        .unwrap()
        .warnings;
    assert!(
        warnings.iter().any(|one| one.contains("any JSON object")),
        "{warnings:?}"
    );
    let mut endless = calling(ToolMode::Required, false, INTEGER);
    endless.stopping.get_or_insert_default().ignore_eos = true;
    let (reason, field, message) = refused(endless).await;
    assert_eq!(
        (reason, field),
        (Reason::BadStopping, Some("stopping.ignore_eos")),
        "{message}"
    );
}
