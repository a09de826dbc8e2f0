use palimpsest_proto::v1::guide::Kind;
use serde_json::{Value, json};

use super::super::{ChatRequest, CompletionRequest, read_body};
use super::*;

fn ask(extra: &Value) -> Result<(Option<Guide>, Option<&'static str>), HttpError> {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "n": 2});
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let body = read_body::<ChatRequest>(body.to_string().as_bytes());
    let choices = body.expect("well-formed").choices(false)?;
    let [first, second] = &choices.prompts[0].choices[..] else {
        panic!("two choices")
    };
    assert_eq!(first.guide, second.guide);
    Ok((first.guide.clone(), choices.guided_by))
}

fn format(schema: &Value, strict: Option<bool>) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {
        "name": "n", "description": "d", "schema": schema, "strict": strict,
    }}})
}

fn outputs(field: &str, value: Value) -> Value {
    json!({"structured_outputs": {field: value}})
}

#[test]
fn a_schema_comes_from_any_of_the_fields() {
    // Not the order of the alphabet.
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let text = Kind::JsonSchema(schema.to_string());
    for (extra, kind, field) in [
        (json!({"guided_json": schema}), text.clone(), "guided_json"),
        (
            json!({"guided_json": schema.to_string()}),
            text.clone(),
            "guided_json",
        ),
        (
            outputs("json", schema.clone()),
            text.clone(),
            "structured_outputs.json",
        ),
        (
            format(&schema, Some(true)),
            text.clone(),
            "response_format.json_schema.schema",
        ),
        (
            json!({"response_format": {"type": "json_object"}}),
            Kind::JsonObject(true),
            "response_format",
        ),
        (
            outputs("json_object", json!(true)),
            Kind::JsonObject(true),
            "structured_outputs.json_object",
        ),
    ] {
        let expected = (Some(Guide::from(kind)), Some(field));
        assert_eq!(ask(&extra).unwrap(), expected, "{extra}");
    }
}

#[test]
fn other_guides_come_from_any_of_the_fields() {
    let texts = Kind::Choice(GuideChoice {
        texts: vec!["x".into(), "y".into()],
    });
    for (extra, kind, field) in [
        (
            json!({"guided_regex": "a+"}),
            Kind::Regex("a+".into()),
            "guided_regex",
        ),
        (
            outputs("regex", json!("a+")),
            Kind::Regex("a+".into()),
            "structured_outputs.regex",
        ),
        (
            json!({"guided_choice": ["x", "y"]}),
            texts.clone(),
            "guided_choice",
        ),
        (
            outputs("choice", json!(["x", "y"])),
            texts,
            "structured_outputs.choice",
        ),
        (
            json!({"guided_grammar": "start: \"a\""}),
            Kind::Grammar("start: \"a\"".into()),
            "guided_grammar",
        ),
        (
            outputs("grammar", json!("start: \"a\"")),
            Kind::Grammar("start: \"a\"".into()),
            "structured_outputs.grammar",
        ),
    ] {
        let expected = Guide::from(kind);
        assert_eq!(
            ask(&extra).unwrap(),
            (Some(expected), Some(field)),
            "{extra}"
        );
    }
    for none in [
        json!({}),
        json!({"response_format": null, "guided_json": null, "structured_outputs": null}),
        json!({"response_format": {"type": "text"}}),
    ] {
        assert_eq!(ask(&none).unwrap(), (None, None), "{none}");
    }
}

/// As OpenAI has it: a schema that is not strict is a wish.
#[test]
fn a_format_that_is_not_strict_leaves_out_what_is_not_supported() {
    for (strict, lenient) in [(Some(true), false), (Some(false), true), (None, true)] {
        let guide = ask(&format(&json!({}), strict)).unwrap().0.unwrap();
        assert_eq!(guide.lenient, lenient, "{strict:?}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    let refused = |extra: &Value| {
        let error = ask(extra).unwrap_err();
        assert_eq!(error.status.as_u16(), 400);
        (error.body.param.unwrap(), error.body.message)
    };
    for (extra, param) in [
        (
            json!({"response_format": {"type": "xml"}}),
            "response_format.type",
        ),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format.json_schema",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"structured_outputs": {}}), "structured_outputs"),
        (
            json!({"structured_outputs": {"json_object": false}}),
            "structured_outputs",
        ),
        (
            json!({"guided_regex": "a", "guided_choice": ["a"]}),
            "guided_choice",
        ),
        (
            json!({"response_format": {"type": "json_object"}, "guided_json": {}}),
            "guided_json",
        ),
        (
            json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}),
            "structured_outputs.choice",
        ),
        (json!({"guided_regex": "x".repeat(70_000)}), "guided_regex"),
        (json!({"guided_choice": vec![""; 100_000]}), "guided_choice"),
    ] {
        let (found, message) = refused(&extra);
        assert_eq!(found, param, "{message}");
        assert!(message.len() < 200, "{message}");
    }
    let unreadable = |extra: Value| {
        let body = extra.to_string();
        let error = read_body::<CompletionRequest>(body.as_bytes()).unwrap_err();
        error.field
    };
    for (field, value) in [
        ("guided_choice", json!("a")),
        ("guided_regex", json!(7)),
        ("structured_outputs", json!({"structural_tag": "x"})),
        ("structured_outputs", json!([null])),
        ("response_format", json!("json_object")),
    ] {
        let found = unreadable(json!({"prompt": "a", field: value}));
        assert_eq!(found.as_deref(), Some(field));
    }
}

/// Nothing is held of a list beyond what a guide may have.
#[test]
fn a_list_of_texts_is_held_no_further_than_it_may_be() {
    let list = json!(vec!["ab"; 100_000]).to_string();
    let Texts(kept) = serde_json::from_str(&list).unwrap();
    assert!(
        kept.len() * size_of::<String>() <= MAX_BYTES,
        "{}",
        kept.len()
    );
}
