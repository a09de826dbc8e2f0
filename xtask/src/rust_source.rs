//! Just enough of Rust's lexical structure to measure source files: text without comments and
//! literals, where functions begin and end, and what they take. No parser is needed for that, and
//! none has to be compiled before the checks run.

mod signatures;

use std::str::Chars;

pub use signatures::signatures;

/// A function with a body.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: String,
    /// Line of its `fn`, from 1.
    pub line: usize,
    /// Lines from its `fn` to its closing brace, both included.
    pub num_lines: usize,
}

/// `source` with every character of comments, strings and character literals replaced by a space.
/// Newlines stay, so line numbers do too.
pub fn code_only(source: &str) -> String {
    with_literals_as(' ', source)
}

/// [`code_only`] with `mark` for every character of a string or character literal, so that literals
/// can be told from comments.
pub fn with_literals_as(mark: char, source: &str) -> String {
    let mut lexer = Lexer {
        rest: source.chars(),
        code: String::with_capacity(source.len()),
        previous: ' ',
        mark,
    };
    while lexer.step() {}
    lexer.code
}

struct Lexer<'a> {
    rest: Chars<'a>,
    code: String,
    /// The last character kept, to tell `r"` from `var"`.
    previous: char,
    /// What stands for a character of a literal.
    mark: char,
}

impl Lexer<'_> {
    /// Consumes one item. False at the end.
    fn step(&mut self) -> bool {
        let text = self.rest.as_str();
        let Some(first) = text.chars().next() else {
            return false;
        };
        if text.starts_with("//") {
            self.blank_until(' ', |text| text.starts_with('\n'));
        } else if text.starts_with("/*") {
            self.blank_comment();
        } else if let Some(num_hashes) = raw_string_hashes(text).filter(|_| !is_word(self.previous))
        {
            let end = format!("\"{}", "#".repeat(num_hashes));
            self.blank_until(self.mark, |text| text.starts_with('"'));
            self.blank(self.mark, 1);
            self.blank_until(self.mark, |text| text.starts_with(&end));
            self.blank(self.mark, end.len());
        } else if first == '"' {
            self.blank_quoted('"');
        } else if first == '\'' && is_char_literal(text) {
            self.blank_quoted('\'');
        } else {
            self.rest.next();
            self.code.push(first);
            self.previous = first;
        }
        true
    }

    fn blank(&mut self, mark: char, count: usize) {
        for character in self.rest.by_ref().take(count) {
            self.code.push(if character == '\n' { '\n' } else { mark });
        }
        self.previous = ' ';
    }

    fn blank_until(&mut self, mark: char, is_end: impl Fn(&str) -> bool) {
        while !self.rest.as_str().is_empty() && !is_end(self.rest.as_str()) {
            self.blank(mark, 1);
        }
    }

    fn blank_quoted(&mut self, quote: char) {
        self.blank(self.mark, 1);
        while let Some(character) = self.rest.as_str().chars().next() {
            self.blank(self.mark, if character == '\\' { 2 } else { 1 });
            if character == quote {
                break;
            }
        }
    }

    /// Block comments nest.
    fn blank_comment(&mut self) {
        let mut depth = 0;
        loop {
            let text = self.rest.as_str();
            if text.is_empty() {
                break;
            } else if text.starts_with("/*") {
                depth += 1;
                self.blank(' ', 2);
            } else if text.starts_with("*/") {
                depth -= 1;
                self.blank(' ', 2);
            } else {
                self.blank(' ', 1);
            }
            if depth == 0 {
                break;
            }
        }
    }
}

/// Number of `#` when `text` begins a raw string (`r"`, `br#"`, `cr##"`).
fn raw_string_hashes(text: &str) -> Option<usize> {
    let rest = text
        .strip_prefix(['b', 'c'])
        .unwrap_or(text)
        .strip_prefix('r')?;
    let after = rest.trim_start_matches('#');
    after.starts_with('"').then_some(rest.len() - after.len())
}

/// Tells `'x'` and `'\n'` from the lifetime `'x`.
fn is_char_literal(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    match characters.next() {
        Some('\\') => true,
        Some(_) => characters.next() == Some('\''),
        None => false,
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Byte offsets at which `word` stands alone in `code`.
pub fn find_word<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
}

/// Line of byte offset `at`, from 1.
pub fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The functions in `code`, which [`code_only`] has cleaned. Declarations without a body are left
/// out.
pub fn functions(code: &str) -> Vec<Function> {
    find_word(code, "fn")
        .filter_map(|at| function_at(code, at))
        .collect()
}

fn function_at(code: &str, at: usize) -> Option<Function> {
    let after = code[at + 2..].trim_start();
    let name: String = after
        .chars()
        .take_while(|&character| is_word(character))
        .collect();
    if name.is_empty() {
        return None; // the type `fn(…)`, or `fn $name` in a macro
    }
    let body = at + body_offset(&code[at..])?;
    let mut depth = 0usize;
    for (offset, character) in code[body..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 1 => {
                let num_lines = code[at..body + offset].matches('\n').count() + 1;
                return Some(Function {
                    name,
                    line: line_of(code, at),
                    num_lines,
                });
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Offset of the body's opening brace; `None` when a `;` comes first. Types such as `[u8; 4]` may
/// hold one.
fn body_offset(signature: &str) -> Option<usize> {
    let mut depth = 0i32;
    for (offset, character) in signature.char_indices() {
        match character {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' if depth == 0 => return Some(offset),
            ';' if depth == 0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_lines_kept() {
        let cases = [
            ("a // unsafe\nb", "a          \nb"),
            ("a /* x /* y */ z\n */ b", "a               \n    b"),
            (r#"a "un\"safe" b"#, r"a            b"),
            (r##"a r#"un"safe"# b"##, r"a              b"),
            ("a br\"x\\\" b", "a        b"),
            ("'{' 'a '\\'' \"", "    'a       "),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("var\"x\"", "var   "),
        ];
        for (source, code) in cases {
            assert_eq!(code_only(source), code, "{source}");
        }
    }

    #[test]
    fn functions_are_measured_from_fn_to_closing_brace() {
        let source = "
trait T { fn declared(&self) -> [u8; 4]; }
/// fn in a comment {
pub fn outer(f: fn(u8) -> u8, x: [u8; 2]) -> char {
    fn inner() {}
    let s = \"}\";
    '}'
}
macro_rules! m { ($name:ident) => { fn $name() {} } }
";
        let found = functions(&code_only(source));
        let outer = Function {
            name: "outer".to_owned(),
            line: 4,
            num_lines: 5,
        };
        let inner = Function {
            name: "inner".to_owned(),
            line: 5,
            num_lines: 1,
        };
        assert_eq!(found, [outer, inner]);
    }

    #[test]
    fn words_stand_alone() {
        let code = "unsafe_code unsafe { not_unsafe } (unsafe)";
        assert_eq!(find_word(code, "unsafe").collect::<Vec<_>>(), [12, 35]);
        assert_eq!(line_of("a\nb\nc", 4), 3);
    }
}
