//! Grammars against the library that walks them, and against the reader of calls.

use palimpsest_guide::{Matcher, Vocabulary, calls};
use serde_json::{Value, json};

use super::*;
use crate::executor::fake::{IM_START, byte_level_tokenizer};
use crate::text::output::{AnswerFormat, AnswerReader};
use crate::text::piece::Piece;
use crate::text::tools::ToolCalls;

/// A model's tokenizer, and what guides know of it.
struct Known {
    tokenizer: Tokenizer,
    vocabulary: Vocabulary,
    end: u32,
}

impl Known {
    /// Bytes, and these control tokens.
    fn with(controls: &[&str]) -> Self {
        let mut file: Value = serde_json::from_slice(&byte_level_tokenizer()).unwrap();
        let mut all = controls.to_vec();
        all.push("<|im_end|>");
        let added = (IM_START..).zip(&all).map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true,
            })
        });
        file["added_tokens"] = added.collect();
        let file = file.to_string();
        let tokenizer = Tokenizer::from_bytes(file.as_bytes()).unwrap();
        let end = tokenizer.control_ids(&["<|im_end|>"])[0];
        let vocabulary = Vocabulary::new(file.as_bytes(), end as usize + 9, &[end]).unwrap();
        Self {
            tokenizer,
            vocabulary,
            end,
        }
    }

    fn matcher(&self, shape: &Shape<'_>) -> Matcher {
        let guide = shape.grammar(&self.tokenizer).expect("it has one");
        let compiled = self.vocabulary.compile_calls(&guide);
        compiled.unwrap_or_else(|error| panic!("{error}\n{}", guide.grammar))
    }

    /// How many bytes of the text the grammar lets through, and whether the answer may end there.
    fn walk(&self, shape: &Shape<'_>, text: &str) -> (usize, bool) {
        let mut matcher = self.matcher(shape);
        let mut read = 0;
        for id in self.tokenizer.encode(text, false).unwrap() {
            match matcher.mask() {
                Ok(mask) if mask.allows(id) => {}
                _ => return (read, false),
            }
            matcher.observe(&[id]).expect("it was allowed");
            read += self.tokenizer.bytes(id).len();
        }
        let ends = matcher.mask().is_ok_and(|mask| mask.allows(self.end));
        (read, ends)
    }

    fn takes(&self, shape: &Shape<'_>, text: &str) -> bool {
        self.walk(shape, text) == (text.len(), true)
    }

    /// Fails the test where the grammar does not let the whole text through.
    #[track_caller]
    fn check(&self, shape: &Shape<'_>, text: &str) {
        let (read, ends) = self.walk(shape, text);
        let format = shape.format;
        assert!(
            (read, ends) == (text.len(), true),
            "{format:?}: {:?} stops before {:?}, may end: {ends}",
            &text[..read],
            &text[read..]
        );
    }
}

fn tools() -> Vec<GuidedTool> {
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["a"],
        "properties": {"a": {"type": "integer"}},
    });
    let tool = |name: &str, schema: &str| GuidedTool {
        name: name.into(),
        schema: calls::arguments(schema, false).unwrap(),
    };
    vec![
        tool("add", &schema.to_string()),
        tool("add.all", "{\"additionalProperties\": false}"),
    ]
}

fn shape(format: ToolFormat, tools: &[GuidedTool], begun: Begun) -> Shape<'_> {
    Shape {
        format,
        tools,
        begun,
        single: false,
        thinks: None,
        answer: None,
    }
}

/// Marks that are control tokens of some models, and texts of others.
const CONTROLS: [&[&str]; 2] = [
    &[],
    &[
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "<think>",
        "</think>",
    ],
];

/// Behind the opening that a prompt ends with, the rest of a call.
#[test]
fn a_grammar_goes_on_where_the_opening_ends() {
    use ToolFormat::{Llama, MistralList, MistralNamed, Plain, Tagged};
    let tools = tools();
    for controls in CONTROLS {
        let known = Known::with(controls);
        for (format, good) in [
            (
                Tagged,
                "add\", \"arguments\": {\"a\": 1}}\n</tool_call>\n<tool_call>\n{\"name\": \
                 \"add.all\", \"arguments\": {}}\n</tool_call>",
            ),
            (
                MistralList,
                "add\", \"arguments\": {\"a\":-12}}, {\"name\": \"add\", \"arguments\": {\"a\": \
                 3}}]",
            ),
            (
                MistralNamed,
                "add[ARGS]{\"a\": 1}[TOOL_CALLS]add.all[ARGS]{}",
            ),
            (
                Llama,
                "add\", \"parameters\": {\"a\": 1}}; {\"name\": \"add.all\", \"parameters\": {}}",
            ),
            (Plain, "add\", \"arguments\": {\"a\": 1}}"),
        ] {
            let begun = shape(format, &tools, Begun::Call);
            known.check(&begun, good);
            for bad in [
                good.replace("\"a\": 1", "\"a\": \"1\""),
                good.replace("\"a\"", "\"b\""),
                good.replacen("add", "sub", 1),
                format!("{good} and more"),
            ] {
                if bad != *good {
                    assert!(!known.takes(&begun, &bad), "{format:?}: {bad}");
                }
            }
            // The reader makes calls of it that match their schemas.
            let read = read(&begun, &(format.opening(None) + good));
            let (name, arguments) = &read[0];
            let arguments: Value = serde_json::from_str(arguments).expect("JSON");
            assert!(
                name == "add" && arguments["a"].is_i64(),
                "{format:?}: {read:?}"
            );
            let named = shape(format, &tools[..1], Begun::Arguments);
            let end = match format {
                Tagged => "}\n</tool_call>",
                MistralList => "}]",
                MistralNamed => "",
                _ => "}",
            };
            assert!(
                known.takes(&named, &format!("{{\"a\": 1}}{end}")),
                "{format:?}"
            );
            assert!(!known.takes(&named, &format!("{{}}{end}")), "{format:?}");
        }
    }
}

/// The calls of a whole answer.
fn read(shape: &Shape<'_>, text: &str) -> Vec<(String, String)> {
    let format = AnswerFormat {
        tools: Some(ToolCalls {
            format: shape.format,
            known: shape.tools.iter().map(|tool| tool.name.clone()).collect(),
            single: shape.single,
        }),
        thinks: shape.thinks,
        channels: shape.format == ToolFormat::Harmony,
        ..AnswerFormat::default()
    };
    let (mut reader, _) = AnswerReader::new(&format);
    let mut pieces = reader.push(text);
    pieces.extend(reader.finish());
    let mut calls: Vec<(String, String)> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Call { name, .. } => calls.push((name, String::new())),
            Piece::Arguments { index, text } => calls[index as usize].1.push_str(&text),
            Piece::Text(_) | Piece::Reasoning(_) => {}
        }
    }
    calls
}

/// Where a model decides, text is free until a call begins.
#[test]
fn text_is_free_until_a_call_begins() {
    use ToolFormat::{Llama, MistralList, MistralNamed, Plain, Tagged};
    let tools = tools();
    for controls in CONTROLS {
        let known = Known::with(controls);
        for (format, call) in [
            (
                Tagged,
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>",
            ),
            (
                MistralList,
                "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}}]",
            ),
            (MistralNamed, "[TOOL_CALLS]add[ARGS]{\"a\": 1}"),
            (Llama, "{\"name\": \"add\", \"parameters\": {\"a\": 1}}"),
            (Plain, "{\"name\": \"add\", \"arguments\": {\"a\": 1}}"),
        ] {
            let free = shape(format, &tools, Begun::Nothing);
            let is_marked = !matches!(format, Llama | Plain);
            for good in ["", "Just < words [é].\n", "{\"x\": [1]}", call] {
                known.check(&free, good);
            }
            // Where a call is all of an answer, one behind text is text.
            let behind = format!("I look. {call}");
            known.check(&free, &behind);
            assert_eq!(
                super::tests::read(&free, &behind).len(),
                usize::from(is_marked)
            );
            let wrong = call.replace("\"a\": 1", "\"a\": \"");
            let (read, _) = known.walk(&free, &wrong);
            let at = wrong.find(": \"}").map_or(0, |at| at + 2);
            assert_eq!(read, at, "{format:?}: {wrong}");
            let other = call.replacen("add", "sub", 1);
            assert_eq!(
                known.takes(&free, &other),
                !is_marked,
                "{format:?}: {other}"
            );
            let single = Shape {
                single: true,
                ..free.clone()
            };
            let second = match format {
                Tagged => format!("\n{call}"),
                MistralList => String::new(),
                MistralNamed => call.to_owned(),
                _ => format!("; {call}"),
            };
            if !second.is_empty() {
                let both = format!("{call}{second}");
                known.check(&free, &both);
                assert!(!known.takes(&single, &both), "{format:?}: {both}");
                assert_eq!(super::tests::read(&free, &both).len(), 2, "{both}");
            }
        }
    }
}

/// An object that would be read as a call is one that its schema guides, however it is spelled.
#[test]
fn no_call_in_plain_json_goes_round_its_schema() {
    let tools = tools();
    let known = Known::with(&["<|python_tag|>"]);
    for format in [ToolFormat::Llama, ToolFormat::Plain] {
        let free = shape(format, &tools, Begun::Nothing);
        let key = format.key();
        for bad in [
            format!("{{\"{key}\": {{\"a\": \"x\"}}, \"name\": \"add\"}}"),
            "{\"name\": \"add\"}".to_owned(),
            format!("{{\"id\": 1, \"name\": \"add\", \"{key}\": {{}}}}"),
            "{\"name\": \"\\u0061dd\"}".to_owned(),
        ] {
            assert!(!known.takes(&free, &bad), "{bad}");
            assert_eq!(read(&free, &bad).len(), 1, "it would be read as a call");
        }
        let call = format!("{{\n  \"name\": \"add\",\n  \"{key}\": {{\"a\": 1}}\n}}");
        known.check(&free, &call);
    }
    let llama = shape(ToolFormat::Llama, &tools, Begun::Nothing);
    let call = "<|python_tag|>{\"name\": \"add\", \"parameters\": {\"a\": 1}}";
    assert!(known.takes(&llama, call));
    assert!(known.takes(&llama, "<|python_tag|>print(1)"));
}

#[test]
fn what_a_model_thinks_is_free() {
    let tools = tools();
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    for controls in CONTROLS {
        let known = Known::with(controls);
        for has_begun in [false, true] {
            let thinking = Shape {
                thinks: Some(has_begun),
                ..shape(ToolFormat::Tagged, &tools, Begun::Nothing)
            };
            let start = if has_begun { "" } else { "<think>" };
            for good in [
                format!("{start}hm, <tool_call> it is</think>\n\n{call}"),
                format!("{start}hm</think>It is so."),
                format!("{start}cut off"),
            ] {
                let takes_marks = controls.is_empty() || !good.contains(", <tool_call>");
                assert_eq!(known.takes(&thinking, &good), takes_marks, "{good}");
            }
            let wrong = format!("{start}hm</think>{}", call.replace('1', "[]"));
            assert!(!known.takes(&thinking, &wrong), "{wrong}");
        }
        let before = Shape {
            thinks: Some(false),
            ..shape(ToolFormat::Tagged, &tools, Begun::Nothing)
        };
        assert!(known.takes(&before, call));
        assert!(!known.takes(&before, &call.replace('1', "[]")));
    }
}

/// A client may ask for an answer in JSON that is no call.
#[test]
fn an_answer_that_is_guided_stands_in_the_place_of_calls() {
    let tools = tools();
    let known = Known::with(&[]);
    let schema = json!({"type": "array", "items": {"type": "integer"}});
    let asked = palimpsest_proto::v1::Guide::of_schema(schema.to_string());
    let answer = calls::answer(&asked).unwrap();
    let either = Shape {
        answer: answer.as_deref(),
        ..shape(ToolFormat::Tagged, &tools, Begun::Nothing)
    };
    let call = "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    for good in ["[1, 2]", call] {
        known.check(&either, good);
    }
    for bad in ["", "words", "[\"a\"]", "[1] and words"] {
        assert!(!known.takes(&either, bad), "{bad}");
    }
    let plain = Shape {
        format: ToolFormat::Plain,
        ..either
    };
    assert_eq!(plain.grammar(&known.tokenizer), None);
}

const HARMONY: [&str; 7] = crate::text::channels::MARKS;

#[test]
fn channels_are_guided_by_their_own_marks() {
    let tools = tools();
    let known = Known::with(&HARMONY);
    let thought = "<|channel|>analysis<|message|>Hm {\"a\": 1}.<|end|><|start|>assistant";
    let call = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": 1}";
    let before = " to=functions.add.all<|channel|>commentary json<|message|>{}";
    let words = "<|channel|>final<|message|>It is 3.";
    let free = shape(ToolFormat::Harmony, &tools, Begun::Nothing);
    let must = shape(ToolFormat::Harmony, &tools, Begun::Call);
    for (good, calls) in [
        (call.to_owned(), 1),
        (before.to_owned(), 1),
        (format!("{thought}{call}"), 1),
        (words.to_owned(), 0),
        (format!("{thought}{words}"), 0),
        ("<|channel|>analysis<|message|>Hm".to_owned(), 0),
    ] {
        known.check(&free, &good);
        assert_eq!(known.takes(&must, &good), calls == 1, "{good}");
        assert_eq!(read(&free, &good).len(), calls, "{good}");
    }
    for bad in [
        call.replace("\"a\": 1", "\"a\": \"x\""),
        call.replace("add", "sub"),
        "It is 3.".to_owned(),
        format!("{words}<|end|><|start|>user"),
    ] {
        assert!(!known.takes(&free, &bad), "{bad}");
    }
    let asked = palimpsest_proto::v1::Guide::of_texts(vec!["yes".into(), "no".into()]);
    let answer = calls::answer(&asked).unwrap();
    let guided = Shape {
        answer: answer.as_deref(),
        ..shape(ToolFormat::Harmony, &[], Begun::Nothing)
    };
    assert!(known.takes(&guided, &format!("{thought}<|channel|>final<|message|>yes")));
    assert!(!known.takes(&guided, &format!("{thought}{words}")));
}

/// Time and memory do not explode with many tools.
#[test]
fn as_many_tools_as_a_request_may_have_compile() {
    let parameters = json!({
        "type": "object", "required": ["city"], "additionalProperties": false,
        "properties": {
            "city": {"type": "string", "maxLength": 40}, "days": {"type": "integer"},
            "unit": {"enum": ["C", "F"]}, "tags": {"type": "array", "items": {"type": "string"}},
        },
    });
    let schema = calls::arguments(&parameters.to_string(), false).unwrap();
    let tools: Vec<GuidedTool> = (0..128)
        .map(|index| GuidedTool {
            name: format!("tool_{index}"),
            schema: schema.clone(),
        })
        .collect();
    let known = Known::with(&HARMONY);
    for format in [
        ToolFormat::Tagged,
        ToolFormat::MistralList,
        ToolFormat::MistralNamed,
        ToolFormat::Llama,
        ToolFormat::Plain,
        ToolFormat::Harmony,
    ] {
        let free = shape(format, &tools, Begun::Nothing);
        let guide = free.grammar(&known.tokenizer).unwrap();
        let since = std::time::Instant::now();
        let checked = known.vocabulary.check_calls(&guide);
        println!(
            "{format:?}: {} bytes, {:?}",
            guide.grammar.len(),
            since.elapsed()
        );
        checked.unwrap_or_else(|error| panic!("{format:?}: {error}"));
    }
}
