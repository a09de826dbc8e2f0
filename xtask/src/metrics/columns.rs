//! How wide lines are, and which may be wider: those that no formatter can break.

use crate::rust_source::with_literals_as;

/// Columns of a line, one a character.
pub const MAX_COLUMNS: usize = 100;
/// A literal of this many characters in one line may make the line too wide: breaking it would make
/// it harder to read and to search for.
const LONG_LITERAL: usize = 60;

/// Lines of any text that are too wide, from 1.
pub fn wide_lines(text: &str) -> Vec<usize> {
    numbered(text)
        .filter(|(_, line)| is_wide(line))
        .map(|(number, _)| number)
        .collect()
}

/// Lines of Rust that are too wide, from 1, but for those with a long literal.
pub fn wide_code(source: &str) -> Vec<usize> {
    const MARK: char = '\u{1}';
    let marked = with_literals_as(MARK, source);
    let holds_long_literal = |line: &str| {
        line.split(|character| character != MARK)
            .any(|literal| literal.chars().count() >= LONG_LITERAL)
    };
    numbered(source)
        .zip(marked.lines())
        .filter(|((_, line), marked)| is_wide(line) && !holds_long_literal(marked))
        .map(|((number, _), _)| number)
        .collect()
}

/// Lines of Markdown that are too wide, from 1, but for code, tables, and lines that end in a link.
pub fn wide_prose(text: &str) -> Vec<usize> {
    let mut is_code = false;
    let mut wide = Vec::new();
    for (number, line) in numbered(text) {
        let start = line.trim_start();
        if start.starts_with("```") {
            is_code = !is_code;
        } else if !is_code && is_wide(line) && !start.starts_with('|') && !ends_in_link(line) {
            wide.push(number);
        }
    }
    wide
}

/// Whether what is too much stands in one link: a link begins within the columns and is the last
/// thing of the line.
fn ends_in_link(line: &str) -> bool {
    let begin = line.rfind('[').or_else(|| line.rfind("http"));
    begin.is_some_and(|begin| {
        let link = &line[begin..];
        let is_last = link.contains("](") || !link.contains(' ');
        line[..begin].chars().count() < MAX_COLUMNS
            && is_last
            && link.split_once(')').is_none_or(|(_, rest)| rest.len() <= 2)
    })
}

fn is_wide(line: &str) -> bool {
    line.chars().count() > MAX_COLUMNS
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_counted_not_bytes() {
        assert!(wide_lines(&"é".repeat(MAX_COLUMNS)).is_empty());
        assert_eq!(wide_lines(&format!("a\n{}", "b".repeat(101))), [2]);
    }

    #[test]
    fn a_long_literal_may_make_a_line_wide_and_a_comment_may_not() {
        let literal = format!("    f(\"{}\");", "x".repeat(100));
        assert!(wide_code(&literal).is_empty());
        let inside = format!("let x = r#\"\n{}\n\"#;", "x ".repeat(60));
        assert!(wide_code(&inside).is_empty());
        let short = format!("f({});", "\"a\", ".repeat(30));
        assert_eq!(wide_code(&short), [1]);
        let comment = format!("// {}", "x ".repeat(60));
        assert_eq!(wide_code(&comment), [1]);
    }

    #[test]
    fn prose_is_wrapped_and_code_tables_and_links_are_not() {
        let long = "word ".repeat(30);
        assert_eq!(wide_prose(&long), [1]);
        assert!(wide_prose(&format!("```sh\n{long}\n```")).is_empty());
        assert_eq!(wide_prose(&format!("```sh\n```\n{long}")), [3]);
        assert!(wide_prose(&format!("| {long} |")).is_empty());
        let link = format!("see [this]({}).", "x".repeat(100));
        assert!(wide_prose(&link).is_empty());
        assert_eq!(wide_prose(&format!("{link} {long}")), [1]);
    }
}
