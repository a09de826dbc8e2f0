//! What may follow the forced opening of a call, as a grammar.

use std::fmt::Write as _;

use palimpsest_proto::v1::Tool;

use super::ToolFormat;

impl ToolFormat {
    /// The grammar of what a model may write behind [`Self::opening`], in Lark as llguidance reads
    /// it: the rest of one call, whose arguments match the schema of its tool. `None` where a
    /// control token would have to stand in the middle, which no mask of a grammar lets through.
    pub fn grammar(self, tools: &[Tool], name: Option<&str>) -> Option<String> {
        if self == Self::MistralNamed && name.is_none() {
            return None;
        }
        let chosen = tools
            .iter()
            .filter(|tool| name.is_none_or(|name| name == tool.name));
        let mut rules = String::new();
        let mut calls = Vec::new();
        for (index, tool) in chosen.enumerate() {
            let schema = match tool.parameters.trim() {
                "" => r#"{"type": "object"}"#,
                schema => schema,
            };
            let head = match name {
                Some(_) => String::new(),
                None => quoted(&format!("{}\", \"{}\": ", tool.name, self.key())) + " ",
            };
            let written = writeln!(rules, "call_{index}: {head}%json {schema}");
            written.expect("memory takes everything");
            calls.push(format!("call_{index}"));
        }
        let end = match self {
            Self::Tagged => quoted("}\n</tool_call>"),
            Self::MistralList => quoted("}]"),
            Self::MistralNamed => String::new(),
            Self::Llama | Self::Plain => quoted("}"),
        };
        let start = format!("start: ({}) {end}", calls.join(" | "));
        Some(format!("{}\n{rules}", start.trim_end()))
    }

    /// The name that arguments have.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::Llama => "parameters",
            Self::Tagged | Self::MistralList | Self::MistralNamed | Self::Plain => "arguments",
        }
    }
}

/// A text as Lark has it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: &str) -> Tool {
        Tool {
            name: name.into(),
            parameters: parameters.into(),
            ..Default::default()
        }
    }

    /// Opening and grammar together are the whole of a call.
    #[test]
    fn a_grammar_goes_on_where_the_opening_ends() {
        let tools = [tool("add", r#"{"type": "object"}"#), tool("now", "")];
        assert_eq!(
            ToolFormat::Tagged.grammar(&tools, None).unwrap(),
            "start: (call_0 | call_1) \"}\\n</tool_call>\"\n\
             call_0: \"add\\\", \\\"arguments\\\": \" %json {\"type\": \"object\"}\n\
             call_1: \"now\\\", \\\"arguments\\\": \" %json {\"type\": \"object\"}\n"
        );
        assert_eq!(
            ToolFormat::Llama.grammar(&tools, Some("now")).unwrap(),
            "start: (call_0) \"}\"\ncall_0: %json {\"type\": \"object\"}\n"
        );
        assert_eq!(
            ToolFormat::MistralNamed
                .grammar(&tools, Some("add"))
                .unwrap(),
            "start: (call_0)\ncall_0: %json {\"type\": \"object\"}\n"
        );
        assert_eq!(ToolFormat::MistralNamed.grammar(&tools, None), None);
    }
}
