//! Rules of a grammar as they are written down.

use std::collections::BTreeSet;

use palimpsest_proto::internal::v1::CallGuide;

use super::super::ToolFormat;
use super::shape::GuidedTool;
use crate::text::tokenizer::Tokenizer;

/// Any text but the empty one.
const TEXT: &str = r"/(.|\n)+/";

/// Writes rules, each once, and notes the control tokens that stand in them.
pub(super) struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    controls: BTreeSet<u32>,
    start: String,
    rules: Vec<String>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            controls: BTreeSet::new(),
            start: String::new(),
            rules: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> CallGuide {
        let rules: String = self.rules.iter().map(|rule| format!("{rule}\n")).collect();
        CallGuide {
            grammar: format!("start: {}\n{rules}", self.start),
            control_tokens: self.controls.into_iter().collect(),
        }
    }

    /// What the whole answer is: one of these.
    pub(super) fn start(&mut self, options: &[String]) {
        self.start = options.join(" | ");
    }

    /// A rule or a lexeme, which is written once however often it is asked for. Returns its name.
    pub(super) fn rule(&mut self, name: &str, is: &str) -> String {
        let rule = format!("{name}: {is}");
        if !self.rules.contains(&rule) {
            self.rules.push(rule);
        }
        // Behind the name may stand what kind of rule it is.
        let end = name.find('[').unwrap_or(name.len());
        name[..end].to_owned()
    }

    /// Any text, or none.
    pub(super) fn text(&mut self) -> String {
        self.rule("TEXT", TEXT) + "?"
    }

    /// Up to four blanks, or none.
    pub(super) fn blanks(&mut self) -> String {
        self.rule("BLANKS", r"/[ \n]{1,4}/") + "?"
    }

    /// Whether this is a control token of the model.
    pub(super) fn is_control(&self, mark: &str) -> bool {
        !self.tokenizer.control_ids(&[mark]).is_empty()
    }

    /// A mark: a control token, or the text of it.
    pub(super) fn mark(&mut self, mark: &str) -> String {
        match self.tokenizer.control_ids(&[mark])[..] {
            [id, ..] => {
                self.controls.insert(id);
                format!("<[{id}]>")
            }
            [] => quoted(mark),
        }
    }

    /// Any text up to a mark, and the mark. `but`: what both together may not be, as a regular
    /// expression; it counts where the mark is text.
    pub(super) fn up_to(&mut self, name: &str, mark: &str, but: Option<&str>) -> String {
        if self.is_control(mark) {
            return format!("{} {}", self.text(), self.mark(mark));
        }
        let mut is = format!(r"/(.|\n)*{}/", escaped(mark));
        if let Some(but) = but {
            is.push_str(&format!(" & ~/{but}/"));
        }
        self.rule(&format!("{name}[lazy]"), &is)
    }

    /// The arguments of a tool.
    pub(super) fn arguments(&mut self, index: usize, tool: &GuidedTool) -> String {
        let is = format!("%json {}", tool.schema);
        self.rule(&format!("args_{index}"), &is)
    }

    /// The rest of one call behind the quote that its name begins with, in JSON, up to its brace.
    pub(super) fn named(&mut self, format: ToolFormat, tools: &[GuidedTool]) -> String {
        let mut options = Vec::new();
        for (index, tool) in tools.iter().enumerate() {
            let head = quoted(&format!("{}\", \"{}\": ", tool.name, format.key()));
            let arguments = self.arguments(index, tool);
            options.push(self.rule(&format!("named_{index}"), &format!("{head} {arguments}")));
        }
        let end = quoted("}");
        self.rule("body", &format!("({}) {end}", options.join(" | ")))
    }
}

/// A text as Lark has it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A text as a regular expression of Lark that matches it.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        // A backslash before one of the two would be the edge of a word.
        if c.is_ascii_punctuation() && !matches!(c, '<' | '>' | '_') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}
