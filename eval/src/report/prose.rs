//! Sentences around tables.

/// Columns of a line of Markdown.
const COLUMNS: usize = 100;

/// A paragraph in lines of [`COLUMNS`], as documents have them.
pub fn paragraph(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= COLUMNS {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_and_no_word_is_lost() {
        let text = "Bytes ± and words of every length. ".repeat(40);
        let wrapped = paragraph(&text);
        assert!(wrapped.lines().all(|line| line.chars().count() <= COLUMNS));
        assert!(wrapped.lines().count() > 10);
        assert!(wrapped.split_whitespace().eq(text.split_whitespace()));
        let word = "x".repeat(200);
        assert_eq!(paragraph(&format!("a {word} b")), format!("a\n{word}\nb"));
    }
}
