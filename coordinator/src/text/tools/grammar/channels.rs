//! The channels of gpt-oss: what may follow `<|start|>assistant`.

use super::shape::{Begun, Shape};
use super::writer::{Writer, quoted};
use crate::text::marks::{ASSISTANT, CHANNEL, CONSTRAIN, END, FUNCTIONS, MESSAGE, START};

pub(super) fn write(shape: &Shape<'_>, writer: &mut Writer<'_>) {
    let (channel, message) = (writer.mark(CHANNEL), writer.mark(MESSAGE));
    let text = writer.text();
    let thought = format!("{channel} {} {message} {text}", quoted("analysis"));
    let thought = writer.rule("thought", &thought);
    let preamble = format!("{channel} {} {message} {text}", quoted("commentary"));
    let preamble = writer.rule("preamble", &preamble);
    let (end, start) = (writer.mark(END), writer.mark(START));
    let next = writer.rule("next", &format!("{end} {start} {}", quoted(ASSISTANT)));
    let call = (!shape.tools.is_empty()).then(|| call(shape, writer));
    if let (Some(call), true) = (&call, shape.begun != Begun::Nothing) {
        return writer.start(&[format!("(({thought} | {preamble}) {next})? {call}")]);
    }
    let constrained = constrained(writer);
    let mut last = match shape.answer {
        Some(answer) => {
            let answer = writer.rule("answer", answer);
            vec![format!(
                "{channel} {} {constrained} {message} {answer}",
                quoted("final")
            )]
        }
        None => vec![
            format!("{channel} {} {message} {text}", quoted("final")),
            thought.clone(),
            preamble.clone(),
        ],
    };
    last.extend(call);
    let last = writer.rule("last", &last.join(" | "));
    writer.start(&[format!("(({thought} | {preamble}) {next})* {last}")]);
}

/// One call: another would be another answer. Its recipient stands behind the channel, or before.
fn call(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let (channel, message) = (writer.mark(CHANNEL), writer.mark(MESSAGE));
    let (constrained, commentary) = (constrained(writer), quoted("commentary"));
    let (mut behind, mut before) = (Vec::new(), Vec::new());
    for (index, tool) in shape.tools.iter().enumerate() {
        let to = quoted(&format!(" to={FUNCTIONS}{}", tool.name));
        let arguments = writer.arguments(index, tool);
        let is = format!("{to} {constrained} {message} {arguments}");
        behind.push(writer.rule(&format!("behind_{index}"), &is));
        let is = format!("{to} {channel} {commentary} {constrained} {message} {arguments}");
        before.push(writer.rule(&format!("before_{index}"), &is));
    }
    let is = format!(
        "{channel} {commentary} ({}) | {}",
        behind.join(" | "),
        before.join(" | ")
    );
    writer.rule("call", &is)
}

/// That a message is JSON, where that is said.
fn constrained(writer: &mut Writer<'_>) -> String {
    let (mark, json) = (writer.mark(CONSTRAIN), quoted("json"));
    let is = format!("\" \"? {mark} {json} | {}", quoted(" json"));
    writer.rule("constrained", &is) + "?"
}
