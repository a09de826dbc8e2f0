//! The blocks that an answer consists of: thoughts, text, calls, in the order in which they come.

use palimpsest_proto::v1::{Delta, ToolCallDelta};
use serde_json::{Value, json};

use super::super::wire::CALL_PREFIX;

/// Kind of a block. Each call has a block of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What the model thinks.
    Thought,
    /// What it says.
    Text,
    /// The call with this number.
    Call(u32),
}

/// More of a block, or the beginning of one where the block before was of another kind.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'a> {
    /// Of what block.
    pub kind: Kind,
    /// Text, or a piece of a call's JSON.
    pub text: &'a str,
    /// Of a call: its piece, which has id and name where it is the first.
    call: Option<&'a ToolCallDelta>,
}

/// Says that thoughts are the server's own, for clients that leave out those without a signature
/// when they send a conversation back. Nothing is signed.
pub const SIGNATURE: &str = "palimpsest";

impl<'a> Piece<'a> {
    const fn plain(kind: Kind, text: &'a str) -> Self {
        Self {
            kind,
            text,
            call: None,
        }
    }

    fn of_call(call: &'a ToolCallDelta) -> Self {
        Self {
            kind: Kind::Call(call.index),
            text: &call.arguments,
            call: Some(call),
        }
    }

    /// The block that begins with it, without what the piece says.
    pub fn empty_block(&self) -> Value {
        match self.kind {
            Kind::Thought => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Text => json!({"type": "text", "text": ""}),
            Kind::Call(_) => {
                let call = self.call;
                let id = call.map_or("", |call| &call.id);
                let name = call.map_or("", |call| &call.name);
                json!({
                    "type": "tool_use", "id": format!("{CALL_PREFIX}{id}"), "name": name,
                    "input": {},
                })
            }
        }
    }
}

/// Gives `act` the pieces of a delta. `open`: the block that the answer has got to, in which a
/// delta goes on before anything else begins. Thoughts that nobody hears are left out.
pub fn each_piece(
    delta: &Delta,
    hears_thoughts: bool,
    open: Option<Kind>,
    mut act: impl FnMut(Piece<'_>),
) {
    let goes_on = |call: &&ToolCallDelta| open == Some(Kind::Call(call.index));
    let first = delta.tool_calls.iter().take_while(goes_on);
    let rest = delta.tool_calls.iter().skip_while(goes_on);
    first.map(Piece::of_call).for_each(&mut act);
    if hears_thoughts && !delta.reasoning.is_empty() {
        act(Piece::plain(Kind::Thought, &delta.reasoning));
    }
    if !delta.text.is_empty() {
        act(Piece::plain(Kind::Text, &delta.text));
    }
    rest.map(Piece::of_call).for_each(act);
}

/// The blocks of an answer that is sent whole.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    bytes: usize,
}

#[derive(Debug)]
struct Block {
    kind: Kind,
    /// The block as it begins.
    empty: Value,
    text: String,
}

impl Blocks {
    /// Adds a piece of the answer.
    pub fn add(&mut self, delta: &Delta, hears_thoughts: bool) {
        let open = self.blocks.last().map(|block| block.kind);
        each_piece(delta, hears_thoughts, open, |piece| {
            self.bytes += piece.text.len();
            match self.blocks.last_mut() {
                Some(last) if last.kind == piece.kind => last.text.push_str(piece.text),
                _ => self.blocks.push(Block {
                    kind: piece.kind,
                    empty: piece.empty_block(),
                    text: piece.text.to_owned(),
                }),
            }
        });
    }

    /// Bytes of their texts.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The blocks as objects; an answer without any has an empty text.
    pub fn objects(self) -> Value {
        if self.blocks.is_empty() {
            return json!([{"type": "text", "text": ""}]);
        }
        let object = |block: Block| {
            let Block {
                kind,
                empty: mut object,
                text,
            } = block;
            match kind {
                Kind::Thought => {
                    object["thinking"] = text.into();
                    object["signature"] = SIGNATURE.into();
                }
                Kind::Text => object["text"] = text.into(),
                Kind::Call(_) => object["input"] = input(&text),
            }
            object
        };
        self.blocks.into_iter().map(object).collect()
    }
}

/// The arguments of a call, or as much of them as is whole where the answer broke off within. They
/// are an object, whatever a model writes.
fn input(arguments: &str) -> Value {
    let read = serde_json::from_str::<Value>(arguments);
    read.or_else(|_| serde_json::from_str(&closed(arguments)))
        .ok()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}))
}

/// The longest JSON that a text begins, ended behind the last member that is whole.
fn closed(text: &str) -> String {
    let mut end = 0;
    each_mark(text, |at, mark| {
        end = if mark == ',' { at } else { at + 1 };
    });
    let begun = &text[..end];
    let mut open = Vec::new();
    each_mark(begun, |_, mark| match mark {
        '{' => open.push('}'),
        '[' => open.push(']'),
        '}' | ']' => _ = open.pop(),
        _ => {}
    });
    begun.chars().chain(open.into_iter().rev()).collect()
}

/// Calls `act` with each brace, bracket and comma of a JSON text, and its place.
fn each_mark(text: &str, mut act: impl FnMut(usize, char)) {
    let (mut in_text, mut is_escaped) = (false, false);
    for (at, c) in text.char_indices() {
        if in_text {
            in_text = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
        } else if c == '"' {
            in_text = true;
        } else if matches!(c, '{' | '[' | '}' | ']' | ',') {
            act(at, c);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_that_break_off_are_as_much_as_is_whole() {
        for (arguments, expected) in [
            (r#"{"a": 1}"#, json!({"a": 1})),
            (
                r#"{"a": 1, "b": [1, {"c": "x"}, 2"#,
                json!({"a": 1, "b": [1, {"c": "x"}]}),
            ),
            (r#"{"a": "}\"{", "b": "x"#, json!({"a": "}\"{"})),
            (r#"{"a": "x"#, json!({})),
            (r#"{"a": tru"#, json!({})),
            (r#"{"a": {"b": {"#, json!({"a": {"b": {}}})),
            ("", json!({})),
            ("}", json!({})),
            ("[1, 2", json!({})),
            ("7", json!({})),
        ] {
            assert_eq!(input(arguments), expected, "{arguments}");
        }
    }
}
