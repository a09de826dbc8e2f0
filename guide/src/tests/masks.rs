//! Which tokens masks have.

use super::*;

const TEXTS: [&str; 7] = ["the", "then", "abc", "ab the", "é", "👍🏽", "12"];

/// Tokens that begin what is left of a text, and the end where nothing is left: of all texts that
/// begin with what was said.
fn by_hand(known: &Known, said: &[u8]) -> Vec<u32> {
    let rests = TEXTS
        .iter()
        .filter_map(|text| text.as_bytes().strip_prefix(said));
    let rests: Vec<&[u8]> = rests.collect();
    let leads = |token: &Vec<u8>| !token.is_empty() && rests.iter().any(|it| it.starts_with(token));
    let ids = (0u32..).zip(&known.tokens);
    let mut allowed: Vec<u32> = ids
        .filter(|(_, token)| leads(token))
        .map(|(id, _)| id)
        .collect();
    if rests.contains(&&b""[..]) {
        allowed.push(known.end);
    }
    allowed
}

/// Every way to say any of the texts in tokens, however odd.
fn walk(known: &Known, guide: &Guide, path: &mut Vec<u32>, said: &[u8]) -> usize {
    let mut matcher = known.compile(guide);
    matcher.observe(path).expect("it was allowed");
    let allowed = known.allowed(&matcher.mask().expect("it can go on"));
    assert_eq!(allowed, by_hand(known, said), "after {path:?}");
    let mut walked = 1;
    for token in allowed.into_iter().filter(|&token| token != known.end) {
        path.push(token);
        let said = [said, &known.tokens[token as usize]].concat();
        walked += walk(known, guide, path, &said);
        path.pop();
    }
    walked
}

#[test]
fn a_mask_has_the_tokens_that_lead_to_one_of_the_texts() {
    let expression = TEXTS.join("|");
    let rule: Vec<String> = TEXTS.iter().map(|text| format!("\"{text}\"")).collect();
    let grammar = format!("start: {}", rule.join(" | "));
    for known in [byte_level(), byte_fallback()] {
        for guide in [texts(&TEXTS), regex(&expression), lark(&grammar)] {
            let walked = walk(&known, &guide, &mut Vec::new(), b"");
            assert!(walked > 30, "{walked} places");
        }
    }
}

#[test]
fn a_text_of_a_choice_is_what_it_says_and_no_pattern() {
    let known = byte_level();
    let odd = [
        "a.c",
        "\"quoted\"",
        "back\\slash",
        "\\x41",
        "line\nbreak",
        "/",
        "[x]",
        "\u{7f}",
    ];
    let guide = texts(&odd);
    for text in odd {
        assert!(known.accepts(&guide, text), "{text:?}");
    }
    for other in ["abc", "quoted", "A", "x", ""] {
        assert!(!known.accepts(&guide, other), "{other:?}");
    }
}

/// Tokens after the end, and control tokens on the way, are no part of an answer.
#[test]
fn control_tokens_are_never_allowed_and_the_end_only_where_the_answer_may_end() {
    let known = byte_level();
    let start = known.end - 1;
    for (guide, text) in [
        (schema(&json!({"type": "string"})), "\"<|start|>\""),
        (regex(r"(?s).*"), "<|end|>"),
        (lark("start: /(.|\\n)*/"), "anything"),
    ] {
        let mut matcher = known.compile(&guide);
        for &byte in text.as_bytes() {
            let mask = matcher.mask().expect("it can go on");
            assert!(!mask.allows(start) && mask.allows(u32::from(byte)));
            assert!(
                known.tokens.iter().zip(0..).all(|(token, id)| {
                    !token.is_empty() || id == known.end || !mask.allows(id)
                })
            );
            matcher.observe(&[u32::from(byte)]).expect("it was allowed");
        }
        assert!(matcher.mask().expect("it can end").allows(known.end));
    }
    // Nothing but the end is left.
    let mut matcher = known.compile(&texts(&["the"]));
    matcher.observe(&[THE]).expect("it was allowed");
    assert_eq!(
        known.allowed(&matcher.mask().expect("it can end")),
        [known.end]
    );
    assert_eq!(
        known.allowed(&matcher.mask().expect("as before")),
        [known.end]
    );
}

#[test]
fn the_state_follows_from_the_tokens_however_they_come() {
    let known = byte_level();
    let guide = schema(&json!({"type": "array", "items": {"enum": ["the", "ab", 12]}}));
    let tokens: Vec<u32> = b"[\"the\", 12,\"ab\""
        .iter()
        .map(|&b| u32::from(b))
        .collect();
    let mut one = known.compile(&guide);
    for at in 0..tokens.len() {
        let mut whole = known.compile(&guide);
        whole.observe(&tokens[..at]).expect("they are allowed");
        assert_eq!(one.mask(), whole.mask(), "after {at} tokens");
        one.observe(&tokens[at..=at]).expect("it is allowed");
    }
    assert_eq!(one.observe(&[u32::from(b'}')]), Err(Error::NotAllowed));
    assert_eq!(one.mask(), Err(Error::Stuck));
}

#[test]
fn json_comes_in_the_order_of_the_schema_with_little_space_between() {
    let known = byte_level();
    let guide = schema(&json!({
        "type": "object", "additionalProperties": false, "required": ["b", "a"],
        "properties": {"b": {"type": "integer"}, "a": {"type": "boolean"}},
    }));
    for good in [
        "{\"b\":1,\"a\":true}",
        "{\"b\": -12, \"a\": false}",
        "{\n  \"b\": 1,\n  \"a\": true\n}",
    ] {
        assert!(known.accepts(&guide, good), "{good}");
    }
    for bad in [
        "{\"a\":true,\"b\":1}",
        "{\"b\":1}",
        "{\"b\":1.5,\"a\":true}",
        "{\"b\":1,\"a\":true,\"c\":1}",
        "{\"b\":  1,\"a\":true}",
        " {\"b\":1,\"a\":true}",
        "{\"b\":1,\"a\":true} ",
    ] {
        assert!(!known.accepts(&guide, bad), "{bad}");
    }
    let any = Guide::from(Kind::JsonObject(true));
    assert!(known.accepts(&any, "{\"x\": [1, {\"y\": null}]}"));
    assert!(!known.accepts(&any, "[1]"));
    let whole = schema(&json!(true));
    assert!(known.accepts(&whole, "[1.5e3, \"é\\n\"]"));
}

/// A definition that names itself is a list as long as one likes.
#[test]
fn a_schema_may_go_round() {
    let known = byte_level();
    let guide = schema(&json!({
        "$ref": "#/$defs/node",
        "$defs": {"node": {
            "type": "object", "additionalProperties": false, "required": ["v"],
            "properties": {"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}},
        }},
    }));
    assert!(known.accepts(&guide, "{\"v\":1,\"next\":{\"v\":2,\"next\":{\"v\":3}}}"));
    assert!(!known.accepts(&guide, "{\"v\":1,\"next\":{}}"));
}
