//! Conversations of gpt-oss, whose messages have channels.

use super::*;
use crate::text::output::AnswerReader;
use crate::text::piece::Piece;

/// What the template of gpt-oss does with roles, calls, their results and thoughts, shortened.
const SOURCE: &str = "<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' \
    }}{% if tools %}\nfunctions{% endif %}<|end|>{% if tools %}<|start|>developer<|message|>{% for \
    t in tools %}type {{ t.function.name }}{% endfor %}<|end|>{% endif %}{% for m in messages %}{% \
    if m.role == 'assistant' and 'tool_calls' in m %}{% if m.content and m.thinking %}{{ \
    raise_exception('both') }}{% elif m.thinking %}<|start|>assistant<|channel|>analysis<|message|>\
    {{ m.thinking }}<|end|>{% endif %}<|start|>assistant to=functions.{{ \
    m.tool_calls[0].function.name }}<|channel|>commentary json<|message|>{{ \
    m.tool_calls[0].function.arguments | tojson }}<|call|>{% elif m.role == 'assistant' \
    %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% elif m.role == 'tool' \
    %}<|start|>functions.add to=assistant<|channel|>commentary<|message|>{{ m.content | tojson \
    }}<|end|>{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor \
    %}{% if add_generation_prompt %}<|start|>assistant{% endif %}";

fn called(content: &str) -> ChatMessage {
    ChatMessage {
        content: content.into(),
        details: Some(Box::new(MessageDetails {
            tool_calls: vec![ToolCall {
                id: "one".into(),
                name: "add".into(),
                arguments: "{\"a\": 1}".into(),
            }],
            reasoning: "Use it.".into(),
            ..Default::default()
        })),
        ..ChatMessage::new("assistant", "")
    }
}

fn template() -> ChatTemplate {
    ChatTemplate::new(SOURCE, "", "").unwrap()
}

#[test]
fn thoughts_calls_and_results_are_values_of_the_template() {
    let mut chat = with_tools(ToolMode::Auto, "");
    chat.messages.push(called(""));
    chat.messages.push(ChatMessage::new("tool", "3"));
    let text = template().render(&chat).unwrap().into_text();
    let expected = "<|start|>user<|message|>1 + 2?<|end|><|start|>assistant<|channel|>analysis\
                    <|message|>Use it.<|end|><|start|>assistant to=functions.add<|channel|>\
                    commentary json<|message|>{\"a\": 1}<|call|><|start|>functions.add \
                    to=assistant<|channel|>commentary<|message|>\"3\"<|end|><|start|>assistant";
    assert!(text.ends_with(expected), "{text}");
    // The template takes a thought or what was said beside a call, and refuses both.
    chat.messages[1] = called("I look.");
    assert!(template().render(&chat).is_ok());
}

#[test]
fn an_answer_is_read_by_its_channels() {
    let template = template();
    let plain = chat(&[("user", "?")], "");
    let prompt = template.render(&plain).unwrap();
    let format = template.answer_format(&plain, &prompt).unwrap();
    assert!(format.channels && format.tools.is_none() && format.thinks.is_none());
    assert!(format.ends().contains(&"<|call|>") && format.ends().contains(&"<|return|>"));
    assert_eq!(format.begun, Begun::Nothing);
    let (mut reader, begun) = AnswerReader::new(&format);
    assert!(begun.is_empty());
    let said = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final\
                <|message|>Yes.<|return|>";
    let mut pieces = reader.push(said);
    pieces.extend(reader.finish());
    let whole =
        |pick: fn(&Piece) -> Option<&str>| -> String { pieces.iter().filter_map(pick).collect() };
    let text = whole(|piece| match piece {
        Piece::Text(text) => Some(text),
        _ => None,
    });
    let thought = whole(|piece| match piece {
        Piece::Reasoning(text) => Some(text),
        _ => None,
    });
    assert_eq!((text.as_str(), thought.as_str()), ("Yes.", "Hm."));
}

/// A model that thinks first cannot be begun for: the grammar leads it to the call.
#[test]
fn a_call_that_must_be_is_not_begun_and_is_guided() {
    let template = template();
    for (name, begun) in [("", Begun::Call), ("add", Begun::Arguments)] {
        let chat = with_tools(ToolMode::Required, name);
        let prompt = template.render(&chat).unwrap();
        assert!(prompt.text().ends_with("<|start|>assistant"));
        assert_eq!(prompt.forced(), "");
        let format = template.answer_format(&chat, &prompt).unwrap();
        assert_eq!((format.begun, format.asked.len()), (begun, 1));
        assert!(format.is_strict());
    }
    let free = with_tools(ToolMode::Auto, "");
    let prompt = template.render(&free).unwrap();
    assert!(!template.answer_format(&free, &prompt).unwrap().is_strict());
}
