//! Guides that are refused, in bounded time, with the reason.

use std::time::{Duration, Instant};

use super::*;

/// Far beyond what any guide takes where the library is optimised.
const TIME: Duration = Duration::from_secs(20);

fn refused(known: &Known, guide: &Guide) -> String {
    let started = Instant::now();
    let checked = known.vocabulary.check(guide);
    assert!(started.elapsed() < TIME, "{:?}", started.elapsed());
    checked.expect_err("it is refused").to_string()
}

#[test]
fn what_a_schema_has_that_cannot_be_enforced_is_named() {
    let known = byte_level();
    for (bad, said) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (
            json!({"if": {"type": "string"}, "then": {"minLength": 1}}),
            "if",
        ),
        (json!({"type": "text"}), "text"),
        (json!({"type": "string", "format": "klingon"}), "klingon"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"$ref": "https://example.org/schema"}), "example.org"),
        (json!({"type": "string", "pattern": "(?=x)y"}), "look"),
        (json!({"type": "string", "pattern": "("}), "("),
        (
            json!({"type": "integer", "minimum": 3, "maximum": 2}),
            "minimum",
        ),
        (json!(false), "object"),
        (json!([1]), "object"),
    ] {
        let message = refused(&known, &schema(&bad));
        assert!(message.contains(said), "{bad}: {message}");
        assert!(message.chars().count() < 500, "{message}");
    }
    assert!(refused(&known, &Guide::of_schema("{\"type\":")).contains("not JSON"));
}

#[test]
fn what_cannot_be_enforced_is_left_out_where_that_was_asked_for() {
    let known = byte_level();
    let guide = Guide {
        lenient: true,
        ..schema(&json!({"type": "array", "uniqueItems": true, "items": {"enum": [1]}}))
    };
    let warnings = known.vocabulary.check(&guide).expect("a guide");
    assert!(warnings.concat().contains("uniqueItems"), "{warnings:?}");
    assert!(known.accepts(&guide, "[1, 1]"));
    let plain = schema(&json!({"type": "integer", "x-unit": "m", "description": "length"}));
    assert_eq!(known.vocabulary.check(&plain), Ok(Vec::new()));
}

#[test]
fn guides_that_say_nothing_are_refused() {
    let known = byte_level();
    for (guide, said) in [
        (texts(&[]), "at least one text"),
        (Guide::default(), "one of json_schema"),
        (Kind::JsonObject(false).into(), "true"),
        (lark("  \n"), "empty"),
        (lark("start: ("), "1("),
        (lark("begin: \"a\""), "start"),
        (lark("start: <|start|>"), "special token"),
        (lark("start: <|end|>"), "special token"),
        (lark("start: <[300]>"), ""),
        (regex("("), ""),
        (regex("a(?=b)"), ""),
    ] {
        let message = refused(&known, &guide);
        assert!(message.contains(said), "{guide:?}: {message}");
    }
    let long = "x".repeat(MAX_BYTES + 1);
    for guide in [regex(&long), lark(&long), Guide::of_schema(long.as_str())] {
        let message = refused(&known, &guide);
        assert!(message.contains("over the limit"), "{message:.100}");
    }
}

/// None of these may hang, eat the memory, or end the process.
#[test]
fn guides_that_cost_too_much_end_in_time() {
    let known = byte_level();
    let parens = |count| format!("start: {}\"a\"{}", "(".repeat(count), ")".repeat(count));
    let chain = |count: usize| {
        let rules = (0..count).map(|i| format!("a{i}: \"x\" a{}\n", i + 1));
        format!("start: a0\n{}a{count}: \"y\"\n", rules.collect::<String>())
    };
    let definitions = |count: usize, of: &dyn Fn(Value) -> Value| {
        let definition = |i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), of(next))
        };
        let mut all: Map<String, Value> = (0..count).map(definition).collect();
        all.insert(format!("d{count}"), json!({"type": "null"}));
        schema(&json!({"$ref": "#/$defs/d0", "$defs": all}))
    };
    let property = |next| json!({"type": "object", "properties": {"a": next}});
    let nested = |count: usize| format!("{}{{}}{}", "{\"items\":".repeat(count), "}".repeat(count));
    for guide in [
        regex("((a{1000}){1000}){1000}"),
        regex("(x+x+)+y{500,10000}(a|b|ab)*{1,800}"),
        regex(&"(".repeat(20_000)),
        lark(&parens(20_000)),
        lark(&parens(7_000)),
        lark(&chain(300)),
        lark(&chain(1000)),
        definitions(1500, &|next| next),
        definitions(300, &property),
        definitions(900, &property),
        Guide::of_schema(nested(5000)),
        schema(&json!({"$ref": "#"})),
        schema(&json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}})),
        schema(&json!({"allOf": [{"$ref": "#"}], "type": "object"})),
        schema(&json!({"type": "string", "pattern": "^(a|b|c){1,30000}$"})),
    ] {
        let shown: String = format!("{guide:?}").chars().take(100).collect();
        let started = Instant::now();
        let checked = known.vocabulary.check(&guide);
        let said: String = format!("{checked:?}").chars().take(100).collect();
        println!("{shown}: {said} after {:?}", started.elapsed());
        assert!(started.elapsed() < TIME, "{shown}");
    }
}

/// Long lists of texts are what people have; they compile.
#[test]
fn an_enum_of_thousands_compiles_in_time() {
    let known = byte_level();
    let many: Vec<String> = (0..3000).map(|i| format!("item-{i:05}")).collect();
    for guide in [
        schema(&json!({"enum": many.clone()})),
        Guide::of_texts(many[..1600].to_vec()),
    ] {
        let started = Instant::now();
        let checked = known.vocabulary.check(&guide);
        println!("{:?} after {:?}", checked, started.elapsed());
        assert!(checked.is_ok() && started.elapsed() < TIME);
    }
}

#[test]
fn tokenizers_that_cannot_be_used_are_refused() {
    let bad = |file: &str| Vocabulary::new(file.as_bytes(), 10, &[1]).expect_err("it is none");
    for file in [
        "",
        "{}",
        "{\"decoder\": {\"type\": \"WordPiece\"}, \"added_tokens\": [], \
         \"model\": {\"vocab\": {}}}",
        "{\"decoder\": {\"type\": \"ByteLevel\"}, \"added_tokens\": 3}",
        "{\"decoder\": {\"type\": \"Sequence\", \"decoders\": [{\"type\": \"ByteFallback\"}]}, \
         \"added_tokens\": [], \"model\": {\"vocab\": {\"<0xZZ>\": 1}}}",
    ] {
        assert!(matches!(bad(file), Error::Tokenizer(_)), "{file}");
    }
    let file = "{\"decoder\": {\"type\": \"ByteLevel\"}, \"added_tokens\": [], \"model\": \
                {\"vocab\": {\"a\": 0, \"b\": 1}}}";
    for ends in [&[][..], &[7]] {
        let made = Vocabulary::new(file.as_bytes(), 2, ends);
        assert_eq!(made.expect_err("nothing ends"), Error::NoEnd);
    }
}
