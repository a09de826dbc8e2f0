//! What functions take: their arguments as text, and the tuples in them.

use super::{find_word, is_word, line_of};

/// A function's head, with or without a body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Signature {
    /// Its name.
    pub name: String,
    /// Line of its `fn`, from 1.
    pub line: usize,
    /// Its arguments, `self` among them: pattern and type as written.
    pub arguments: Vec<String>,
}

impl Signature {
    /// Entries of the longest tuple in an argument's type; 0 without a tuple.
    pub fn longest_tuple(&self) -> usize {
        self.arguments
            .iter()
            .filter_map(|argument| type_of(argument))
            .map(longest_tuple_in)
            .max()
            .unwrap_or(0)
    }
}

/// The functions in `code`, which [`super::code_only`] has cleaned. Functions of foreign libraries,
/// whose arguments are not ours to choose, are left out: `extern fn`, and those in an `extern`
/// block.
pub fn signatures(code: &str) -> Vec<Signature> {
    let foreign = foreign_blocks(code);
    find_word(code, "fn")
        .filter(|at| !foreign.iter().any(|block| block.contains(at)))
        .filter(|&at| !code[..at].trim_end().ends_with("extern"))
        .filter_map(|at| signature_at(code, at))
        .collect()
}

/// Byte ranges of the blocks `extern { … }`.
fn foreign_blocks(code: &str) -> Vec<std::ops::Range<usize>> {
    find_word(code, "extern")
        .filter_map(|at| {
            let rest = &code[at + "extern".len()..];
            let open = at + "extern".len() + (rest.len() - rest.trim_start().len());
            code[open..]
                .starts_with('{')
                .then(|| Some(open..open + closing(&code[open..])?))?
        })
        .collect()
}

fn signature_at(code: &str, at: usize) -> Option<Signature> {
    let after = code[at + 2..].trim_start();
    let name: String = after.chars().take_while(|&c| is_word(c)).collect();
    if name.is_empty() {
        return None; // the type `fn(…)`, or `fn $name` in a macro
    }
    let open = parenthesis_of_arguments(&after[name.len()..])?;
    let list = &after[name.len() + open..];
    let inner = &list[1..closing(list)?];
    Some(Signature {
        name,
        line: line_of(code, at),
        arguments: split_at_commas(inner)
            .into_iter()
            .map(str::to_owned)
            .collect(),
    })
}

/// Offset of the `(` behind a function's name and its generic parameters.
fn parenthesis_of_arguments(text: &str) -> Option<usize> {
    let mut depth = Depth::default();
    for (offset, character) in text.char_indices() {
        if character == '(' && depth.is_outside() {
            return Some(offset);
        }
        depth.pass(&text[..offset], character);
    }
    None
}

/// Offset of what closes the bracket that `text` begins with.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (offset, character) in text.char_indices() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 1 => return Some(offset),
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Parts of `text` between commas outside of all brackets, trimmed; an empty last part is none.
fn split_at_commas(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (Depth::default(), 0, Vec::new());
    for (offset, character) in text.char_indices() {
        if character == ',' && depth.is_outside() {
            parts.push(text[start..offset].trim());
            start = offset + 1;
        }
        depth.pass(&text[..offset], character);
    }
    parts.push(text[start..].trim());
    if parts.last().is_some_and(|last| last.is_empty()) {
        parts.pop();
    }
    parts
}

/// How many brackets are open, angle brackets among them.
#[derive(Default)]
struct Depth(usize);

impl Depth {
    fn is_outside(&self) -> bool {
        self.0 == 0
    }

    /// Takes the next character; `before` is the text up to it, to tell `->` from `>`.
    fn pass(&mut self, before: &str, character: char) {
        match character {
            '(' | '[' | '{' | '<' => self.0 += 1,
            '>' if before.ends_with(['-', '=']) => {}
            ')' | ']' | '}' | '>' => self.0 = self.0.saturating_sub(1),
            _ => {}
        }
    }
}

/// The type of `pattern: Type`; `None` for a plain `self`.
fn type_of(argument: &str) -> Option<&str> {
    let mut depth = Depth::default();
    for (offset, character) in argument.char_indices() {
        if character == ':' && depth.is_outside() {
            return Some(&argument[offset + 1..]);
        }
        depth.pass(&argument[..offset], character);
    }
    None
}

/// Entries of the longest tuple in a type. The parentheses of `Fn(A, B, C)` and `fn(A, B, C)` hold
/// arguments and are no tuple.
fn longest_tuple_in(text: &str) -> usize {
    let is_tuple = |offset: usize| !text[..offset].ends_with(is_word);
    text.match_indices('(')
        .filter(|&(offset, _)| is_tuple(offset))
        .filter_map(|(offset, _)| Some(&text[offset + 1..offset + closing(&text[offset..])?]))
        .map(|inner| split_at_commas(inner).len())
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(code: &str) -> Signature {
        let mut found = signatures(code);
        assert_eq!(found.len(), 1, "{code}: {found:?}");
        found.remove(0)
    }

    #[test]
    fn arguments_are_counted_with_self() {
        let cases = [
            ("fn f() {}", 0),
            ("fn f(&self) {}", 1),
            ("fn f(a: u8,) {}", 1),
            ("fn f<F: Fn(u8, u8) -> u8>(a: F, (b, c): (u8, u8));", 2),
            (
                "fn f<'a, T>(a: HashMap<u8, u8>, b: &'a [T; 3], c: fn(u8) -> u8) {}",
                3,
            ),
            (
                "trait T { fn f(\n    a: impl Fn(u8) -> u8,\n    b: u8,\n); }",
                2,
            ),
        ];
        for (code, count) in cases {
            assert_eq!(only(code).arguments.len(), count, "{code}");
        }
    }

    #[test]
    fn tuples_are_found_wherever_they_stand_in_an_argument() {
        let cases = [
            ("fn f(a: (u8, u8)) {}", 2),
            ("fn f(a: &'a mut (u8, u8, u8)) {}", 3),
            ("fn f(a: &[(u8, Vec<(u8, u8, u8, u8)>)]) {}", 4),
            (
                "fn f(a: impl Fn(u8, u8, u8) -> (), b: fn(u8, u8, u8)) {}",
                0,
            ),
            ("fn f((a, b, c): Three) {}", 0),
            ("fn f(a: u8) -> (u8, u8, u8) {}", 0),
        ];
        for (code, entries) in cases {
            assert_eq!(only(code).longest_tuple(), entries, "{code}");
        }
    }

    #[test]
    fn foreign_functions_are_left_out() {
        let code = "unsafe extern     { fn a(x: u8); }\nextern     fn b(x: u8) {}\nfn c(x: u8) {}";
        assert_eq!(only(code).name, "c");
        assert_eq!(only(code).line, 3);
    }
}
