use proptest::prelude::*;

use super::*;

/// What an answer says, however it was cut: calls with their arguments, and the text beside them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Read {
    calls: Vec<(String, String)>,
    text: String,
}

fn read_pieces<'a>(
    format: ToolFormat,
    single: bool,
    pieces: impl IntoIterator<Item = &'a str>,
) -> Read {
    let mut reader = ToolReader::new(ToolCalls {
        format,
        known: vec!["get_weather".into(), "add".into()],
        single,
    });
    let mut out = Vec::new();
    for piece in pieces {
        let mut new = Vec::new();
        reader.push(piece, &mut new);
        out.append(&mut new);
    }
    reader.finish(&mut out);
    let mut read = Read::default();
    for piece in out {
        match piece {
            Piece::Text(text) => read.text.push_str(&text),
            Piece::Reasoning(_) => panic!("no thoughts here"),
            Piece::Call { index, name } => {
                assert_eq!(index as usize, read.calls.len());
                read.calls.push((name, String::new()));
            }
            Piece::Arguments { index, text } => {
                assert_eq!(index as usize + 1, read.calls.len());
                read.calls[index as usize].1.push_str(&text);
            }
        }
    }
    assert_eq!(reader.has_calls(), !read.calls.is_empty());
    read
}

fn read(format: ToolFormat, text: &str) -> Read {
    read_pieces(format, false, [text])
}

/// Calls as they should be read.
fn calls(calls: &[(&str, &str)], text: &str) -> Read {
    let calls = calls.iter();
    Read {
        calls: calls
            .map(|(name, json)| ((*name).into(), (*json).into()))
            .collect(),
        text: text.into(),
    }
}

const PARIS: &str = r#"{"city": "Paris \"{}\" <é>"}"#;

/// A whole answer of each family, and what it says.
fn samples() -> Vec<(ToolFormat, String, Read)> {
    use ToolFormat::{Llama, MistralList, MistralNamed, Plain, Tagged};
    let call = |key: &str| format!(r#"{{"name": "get_weather", "{key}": {PARIS}}}"#);
    let both = [("get_weather", PARIS), ("add", "{}")];
    let add = r#"{"arguments": {}, "name": "add"}"#;
    vec![
        (
            Tagged,
            format!(
                "I look.\n<tool_call>\n{}\n</tool_call>\n<tool_call>{add}</tool_call>\n",
                call("arguments")
            ),
            calls(&both, "I look."),
        ),
        (
            Tagged,
            format!("<tool_call>{}</tool_call> Done < here", call("arguments")),
            calls(&both[..1], "Done < here"),
        ),
        (
            MistralList,
            format!("[TOOL_CALLS][{}, {add}]", call("arguments")),
            calls(&both, ""),
        ),
        (
            MistralNamed,
            format!(
                "Well.[TOOL_CALLS]get_weather[ARGS]{PARIS}[TOOL_CALLS]add[CALL_ID]abcdefghi\
                 [ARGS]{{}}"
            ),
            calls(&both, "Well."),
        ),
        (
            MistralList,
            format!("[TOOL_CALLS]get_weather{PARIS}"),
            calls(&both[..1], ""),
        ),
        (
            Llama,
            format!("<|python_tag|>{}; {add}", call("parameters")),
            calls(&both, ""),
        ),
        (
            Llama,
            format!("\n{}", call("parameters")),
            calls(&both[..1], ""),
        ),
        (
            Plain,
            format!("{}\n{add}\nDone.", call("arguments")),
            calls(&both, "Done."),
        ),
        (
            Plain,
            r#"{"id": [1, {"a": "}"}], "name": "add"}"#.into(),
            calls(&[("add", "{}")], ""),
        ),
        (
            Plain,
            r#"{"name": "add", "arguments": "{\"a\": 1}"}"#.into(),
            calls(&[("add", r#"{"a": 1}"#)], ""),
        ),
        (
            Plain,
            r#"{"arguments": null, "name": "add"}"#.into(),
            calls(&[("add", "{}")], ""),
        ),
    ]
}

#[test]
fn calls_of_all_families_are_read() {
    for (format, text, expected) in samples() {
        assert_eq!(read(format, &text), expected, "{format:?}: {text}");
    }
}

/// Each character alone, and every cut in two.
#[test]
fn where_an_answer_is_cut_does_not_matter() {
    for (format, text, expected) in samples() {
        let each: Vec<String> = text.chars().map(String::from).collect();
        let alone = read_pieces(format, false, each.iter().map(String::as_str));
        assert_eq!(alone, expected, "{text}");
        for (at, _) in text.char_indices() {
            let (a, b) = text.split_at(at);
            assert_eq!(read_pieces(format, false, [a, b]), expected, "{a}|{b}");
        }
    }
}

proptest! {
    /// Also for what is nearly a call.
    #[test]
    fn any_cut_of_any_text_says_the_same(
        parts in prop::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("[TOOL_CALLS]"), Just("[ARGS]"),
            Just("<|python_tag|>"), Just("{\"name\": \"add\""), Just(", \"arguments\": {"),
            Just("}"), Just("\""), Just("\\"), Just(" "), Just("\n"), Just("["), Just("]"),
            Just(","), Just("add"), Just("<"), Just("é"), Just("{}"), Just(":"),
        ], 0..14),
        cuts in prop::collection::vec(0..9usize, 0..30),
    ) {
        let text = parts.concat();
        let chars: Vec<char> = text.chars().collect();
        let mut pieces: Vec<String> = Vec::new();
        let mut rest = &chars[..];
        for cut in cuts {
            let (piece, next) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece.iter().collect());
            rest = next;
        }
        pieces.push(rest.iter().collect());
        for format in [
            ToolFormat::Tagged, ToolFormat::MistralList, ToolFormat::MistralNamed,
            ToolFormat::Llama, ToolFormat::Plain,
        ] {
            let cut = read_pieces(format, false, pieces.iter().map(String::as_str));
            prop_assert_eq!(cut, read(format, &text));
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    use ToolFormat::{Llama, MistralList, Plain, Tagged};
    for (format, text, expected) in [
        (Tagged, "<tool_call>no", "<tool_call>no"),
        (
            Tagged,
            "<tool_call>{\"name\": 3}",
            "<tool_call>{\"name\": 3}",
        ),
        (Tagged, " a <tool_cal ", " a <tool_cal "),
        (Tagged, "{\"name\": \"add\"}", "{\"name\": \"add\"}"),
        (
            Plain,
            "{\"name\": \"Ada\", \"arguments\": {}}",
            "{\"name\": \"Ada\", \"arguments\": {}}",
        ),
        (Plain, "Use {\"name\": \"add\"}", "Use {\"name\": \"add\"}"),
        (Plain, "{\"a\": 1}", "{\"a\": 1}"),
        (Llama, "<|python_tag|>print(1)", "print(1)"),
        (MistralList, "[TOOL_CALLS] no", " no"),
        (Plain, "", ""),
    ] {
        assert_eq!(
            read(format, text),
            calls(&[], expected),
            "{format:?}: {text}"
        );
    }
}

/// An answer that `max_tokens` ends leaves what there is of its call.
#[test]
fn a_call_that_is_cut_off_stays_a_call_once_it_has_a_name() {
    let whole = r#"<tool_call>{"name": "add", "arguments": {"a": [1, 2"#;
    let expected = calls(&[("add", r#"{"a": [1, 2"#)], "");
    assert_eq!(read(ToolFormat::Tagged, whole), expected);
    let nameless = r#"<tool_call>{"na"#;
    assert_eq!(read(ToolFormat::Tagged, nameless), calls(&[], nameless));
    let closing = r#"<tool_call>{"name": "add"}</tool"#;
    assert_eq!(
        read(ToolFormat::Tagged, closing),
        calls(&[("add", "{}")], "")
    );
}

#[test]
fn one_call_is_enough_where_no_more_are_wanted() {
    for (format, text, expected) in samples() {
        let read = read_pieces(format, true, [text.as_str()]);
        assert_eq!(read.calls, expected.calls[..1], "{text}");
    }
}

#[test]
fn a_forced_opening_goes_on_as_a_call() {
    use ToolFormat::{Llama, MistralList, MistralNamed, Plain, Tagged};
    for format in [Tagged, MistralList, MistralNamed, Llama, Plain] {
        let named = format.opening(Some("add"));
        let read = read_pieces(format, false, [named.as_str(), "{\"a\": 1}", "}"]);
        assert_eq!(
            read.calls,
            calls(&[("add", "{\"a\": 1}")], "").calls,
            "{format:?}"
        );
    }
    let open = Tagged.opening(None);
    let read = read_pieces(Tagged, false, [open.as_str(), "add\", \"arguments\": {}}"]);
    assert_eq!(read, calls(&[("add", "{}")], ""));
}

#[test]
fn the_format_is_the_templates() {
    for (template, format) in [
        ("{{ messages }}", ToolFormat::Plain),
        ("{{ tools }} <tool_call>", ToolFormat::Tagged),
        ("{{ tools }} <tool_call><function=x>", ToolFormat::Plain),
        ("{{ tools }} [TOOL_CALLS]", ToolFormat::MistralList),
        ("{{ tools }} [TOOL_CALLS]x[ARGS]", ToolFormat::MistralNamed),
        ("{{ tools }} <|start_header_id|>", ToolFormat::Llama),
        ("{{ tools }} <|call|>", ToolFormat::Plain),
        ("{{ tools }} <|channel|>x<|message|>", ToolFormat::Harmony),
    ] {
        assert_eq!(ToolFormat::of(template), format, "{template}");
    }
}

/// A model may write a name, a key or arguments of any length.
#[test]
fn what_is_held_has_a_bound() {
    let long = "x".repeat(10_000);
    let name = format!("<tool_call>{{\"name\": \"{long}\"}}");
    assert_eq!(read(ToolFormat::Tagged, &name).text, name);
    let key = format!("{{\"{long}\": 1, \"name\": \"add\"}}");
    assert_eq!(read(ToolFormat::Plain, &key).text, key);
    let held = format!("{{\"arguments\": {{\"a\": \"{}\"}}", "x".repeat(2 << 20));
    assert_eq!(read(ToolFormat::Plain, &held).text, held);
    let blanks = format!("a{}b", " ".repeat(10_000));
    assert_eq!(read(ToolFormat::Tagged, &blanks).text, blanks);
}
