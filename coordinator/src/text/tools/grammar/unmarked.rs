//! Formats whose calls are all of an answer: Llama 3, and plain JSON.

use super::super::ToolFormat;
use super::shape::{Begun, Shape};
use super::writer::{Writer, escaped, quoted};
use crate::text::marks::PYTHON;

pub(super) fn write(shape: &Shape<'_>, writer: &mut Writer<'_>) {
    let more = more(shape, writer);
    let options = match (shape.begun, shape.tools) {
        (Begun::Arguments, [tool, ..]) => {
            vec![format!("{} {}", writer.arguments(0, tool), quoted("}"))]
        }
        (Begun::Nothing, [_, ..]) => free(shape, &more, writer),
        _ => vec![format!(
            "{} {more}",
            writer.named(shape.format, shape.tools)
        )],
    };
    writer.start(&options);
}

/// The calls behind the first.
fn more(shape: &Shape<'_>, writer: &mut Writer<'_>) -> String {
    if !shape.may_repeat() {
        return String::new();
    }
    let between = writer.rule("BETWEEN", r"/[;,] ?|\n/");
    let body = writer.named(shape.format, shape.tools);
    format!("({between} {} {body})*", quoted("{\"name\": \""))
}

/// Text that cannot be read as a call, or calls.
fn free(shape: &Shape<'_>, more: &str, writer: &mut Writer<'_>) -> Vec<String> {
    let names: Vec<String> = shape.tools.iter().map(|tool| escaped(&tool.name)).collect();
    // A name that is spelled with escapes is read as well.
    let call = format!(
        r#"\s*({})?\s*\{{(.|\n)*"name"\s*:\s*"(({})"|[^"]*\\)(.|\n)*"#,
        escaped(PYTHON),
        names.join("|")
    );
    let text = writer.rule("WORDS", &format!(r"/(.|\n)+/ & ~/{call}/"));
    let mut heads = Vec::new();
    for (index, tool) in shape.tools.iter().enumerate() {
        let (name, key) = (escaped(&tool.name), shape.format.key());
        let name = format!(r#"\s{{0,4}}"name"\s{{0,4}}:\s{{0,4}}"{name}"\s{{0,4}}"#);
        let head = format!(r#"/\s{{0,4}}\{{{name},\s{{0,4}}"{key}"\s{{0,4}}:/"#);
        let head = writer.rule(&format!("head_{index}[lazy]"), &head);
        let (blanks, arguments) = (writer.blanks(), writer.arguments(index, tool));
        heads.push(format!("{head} {blanks} {arguments} {blanks}"));
    }
    let calls = format!("({}) {} {more}", heads.join(" | "), quoted("}"));
    let calls = writer.rule("calls", &calls);
    let mut options = vec![format!("{text}?"), calls.clone()];
    if shape.format == ToolFormat::Llama && writer.is_control(PYTHON) {
        let mark = writer.mark(PYTHON);
        options.push(format!("{mark} ({text}? | {calls})"));
    }
    options
}
