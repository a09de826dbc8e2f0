//! Formats whose calls begin with a mark: Hermes, Qwen, Mistral.

use super::super::ToolFormat;
use super::shape::{Begun, Shape};
use super::writer::{Writer, escaped, quoted};
use crate::text::marks::{ARGUMENTS, CALLS, TAG, TAG_END, THINK_END, THINK_START};

/// What stands before the name of a call in JSON.
const NAME: &str = "{\"name\": \"";

pub(super) fn write(shape: &Shape<'_>, writer: &mut Writer<'_>) {
    let options = match shape.begun {
        Begun::Nothing => free(shape, writer),
        Begun::Call => vec![behind_opening(shape, writer)],
        Begun::Arguments => vec![only_arguments(shape, writer)],
    };
    writer.start(&options);
}

/// Behind the opening of a call, up to the end of the answer.
fn behind_opening(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let first = match shape.format {
        ToolFormat::MistralNamed => head(shape, writer),
        _ => writer.named(shape.format, shape.tools),
    };
    format!("{first} {}", behind_first(shape, writer))
}

/// Behind the opening of a call whose name stands there.
fn only_arguments(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let arguments = match shape.tools {
        [tool, ..] => writer.arguments(0, tool),
        [] => String::new(),
    };
    match shape.format {
        ToolFormat::MistralNamed => arguments,
        _ => {
            let end = behind_first(shape, writer);
            format!("{arguments} {} {end}", quoted("}"))
        }
    }
}

/// Behind the first call: its end, and the others.
fn behind_first(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let repeats = shape.may_repeat();
    match shape.format {
        ToolFormat::Tagged => {
            let end = tag_end(writer);
            if !repeats {
                return end;
            }
            let (blanks, tag) = (writer.blanks(), writer.mark(TAG));
            let (name, body) = (quoted(NAME), writer.named(shape.format, shape.tools));
            format!("{end} ({blanks} {tag} {blanks} {name} {body} {end})*")
        }
        ToolFormat::MistralList => {
            let end = quoted("]");
            if !repeats {
                return end;
            }
            let (name, body) = (
                quoted(&format!(", {NAME}")),
                writer.named(shape.format, shape.tools),
            );
            format!("({name} {body})* {end}")
        }
        _ if repeats => {
            let (mark, head) = (writer.mark(CALLS), head(shape, writer));
            format!("({mark} {head})*")
        }
        _ => String::new(),
    }
}

fn tag_end(writer: &mut Writer<'_>) -> String {
    let (blanks, end) = (writer.blanks(), writer.mark(TAG_END));
    writer.rule("tag_end", &format!("{blanks} {end}"))
}

/// A name and its arguments, as Mistral's later models write them.
fn head(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let mark = writer.mark(ARGUMENTS);
    let mut options = Vec::new();
    for (index, tool) in shape.tools.iter().enumerate() {
        let (name, arguments) = (quoted(&tool.name), writer.arguments(index, tool));
        let is = format!("{name} {mark} {arguments}");
        options.push(writer.rule(&format!("named_{index}"), &is));
    }
    writer.rule("head", &options.join(" | "))
}

/// An answer that may be text, or calls behind text.
fn free(shape: &Shape<'_>, writer: &mut Writer<'_>) -> Vec<String> {
    let calls = behind_mark(shape, writer);
    let tail = tail(shape, &calls, None, writer);
    let Some(has_begun) = shape.thinks else {
        return tail;
    };
    let behind = writer.rule("behind", &tail.join(" | "));
    if has_begun {
        let mut options = vec![writer.up_to("thought", THINK_END, None) + " " + &behind];
        if shape.answer.is_none() {
            // A thought without an end.
            options.push(writer.text());
        }
        return options;
    }
    let mut unended = None;
    let thought = if writer.is_control(THINK_END) {
        let (blanks, start) = (writer.blanks(), writer.mark(THINK_START));
        let end = writer.up_to("thought", THINK_END, None);
        unended = Some(format!("{blanks} {start} {}", writer.text()));
        format!("{blanks} {start} {end}")
    } else {
        let (start, end) = (escaped(THINK_START), escaped(THINK_END));
        writer.rule("thought[lazy]", &format!(r"/\s*{start}(.|\n)*{end}/"))
    };
    // What begins with a thought has no call before the thought has ended.
    let thinks = format!(r"\s*{}(.|\n)*", escaped(THINK_START));
    let mut options = self::tail(shape, &calls, Some(&thinks), writer);
    options.push(format!("{thought} {behind}"));
    options.extend(unended.filter(|_| shape.answer.is_none()));
    options
}

/// The calls, behind the mark of the first.
fn behind_mark(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    let calls = behind_opening(shape, writer);
    let is = match shape.format {
        ToolFormat::Tagged => format!("{} {} {calls}", writer.blanks(), quoted(NAME)),
        ToolFormat::MistralList => {
            format!(
                "{} {} {calls}",
                writer.blanks(),
                quoted(&format!("[{NAME}"))
            )
        }
        _ => calls,
    };
    writer.rule("calls", &is)
}

/// Text and calls, or an answer or calls; `but`: see [`Writer::up_to`].
fn tail(shape: &Shape<'_>, calls: &str, but: Option<&str>, writer: &mut Writer<'_>) -> Vec<String> {
    let mark = match shape.format {
        ToolFormat::Tagged => TAG,
        _ => CALLS,
    };
    if let Some(answer) = shape.answer {
        let answer = writer.rule("answer", answer);
        if shape.tools.is_empty() {
            return vec![answer];
        }
        let (blanks, mark) = (writer.blanks(), writer.mark(mark));
        return vec![answer, format!("{blanks} {mark} {calls}")];
    }
    let name = if but.is_some() { "first" } else { "before" };
    let before = writer.up_to(name, mark, but);
    vec![writer.text(), format!("{before} {calls}")]
}
