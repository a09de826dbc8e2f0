//! What is typed: messages and commands.

use std::path::Path;

use anyhow::Context;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// What somebody said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// For the model.
    Message(String),
    /// An empty line.
    Nothing,
    /// `/budget N`.
    Budget(String),
    /// `/file PATH`.
    File(String),
    /// `/forget`.
    Forget,
    /// `/help`.
    Help,
    /// `/quit`.
    Quit,
    /// `/retention`.
    Retention,
    /// `/system TEXT`.
    System(String),
    /// Another word behind a slash.
    Unknown(String),
}

impl Said {
    /// A whole message, or a command.
    fn parse(text: &str) -> Self {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Self::Nothing;
        }
        let Some(command) = trimmed.strip_prefix('/') else {
            return Self::Message(text.trim_end().to_owned());
        };
        let (word, rest) = command
            .split_once(char::is_whitespace)
            .unwrap_or((command, ""));
        let rest = rest.trim().to_owned();
        match word {
            "budget" => Self::Budget(rest),
            "file" => Self::File(rest),
            "forget" => Self::Forget,
            "help" | "?" => Self::Help,
            "quit" | "exit" | "bye" => Self::Quit,
            "retention" => Self::Retention,
            "system" => Self::System(rest),
            _ => Self::Unknown(word.to_owned()),
        }
    }
}

/// Lines that make up one message.
#[derive(Debug, Default)]
struct Parts {
    text: String,
    /// Within lines of `"""`.
    is_quoted: bool,
    /// The last line ended with a backslash.
    goes_on: bool,
}

const QUOTE: &str = "\"\"\"";

impl Parts {
    /// Adds a line, and returns the message when it is whole.
    fn push(&mut self, line: &str) -> Option<String> {
        let is_quote = line.trim() == QUOTE;
        if is_quote && (self.is_quoted || self.text.is_empty()) {
            self.is_quoted = !self.is_quoted;
        } else if self.is_quoted {
            self.text.push_str(line);
            self.text.push('\n');
        } else if let Some(line) = line.strip_suffix('\\') {
            self.text.push_str(line);
            self.text.push('\n');
            self.goes_on = true;
            return None;
        } else {
            self.text.push_str(line);
        }
        self.goes_on = false;
        if self.is_quoted {
            return None;
        }
        Some(std::mem::take(&mut self.text))
    }

    fn is_open(&self) -> bool {
        self.is_quoted || self.goes_on
    }
}

/// The lines of a terminal, or of a pipe.
pub struct Lines<'f> {
    editor: DefaultEditor,
    history: Option<&'f Path>,
}

impl<'f> Lines<'f> {
    /// With the lines of earlier conversations in `history`, which may not be there yet.
    ///
    /// # Errors
    /// If there is no terminal to read, or the file cannot be read.
    pub fn open(history: Option<&'f Path>) -> anyhow::Result<Self> {
        let mut editor = DefaultEditor::new().context("the terminal cannot be read")?;
        if let Some(path) = history.filter(|path| path.exists()) {
            let loaded = editor.load_history(path);
            loaded.with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(Self { editor, history })
    }

    /// The next thing that was said; `None` at the end of the input.
    ///
    /// # Errors
    /// If the input cannot be read.
    pub fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let mut parts = Parts::default();
        loop {
            let prompt = if parts.is_open() { "| " } else { "> " };
            match self.editor.readline(prompt) {
                Ok(line) => {
                    // What was typed once can be had again; it is no loss if it cannot.
                    let _ = self.editor.add_history_entry(&line);
                    if let Some(text) = parts.push(&line) {
                        return Ok(Some(Said::parse(&text)));
                    }
                }
                // What was typed so far is dropped, as in a shell.
                Err(ReadlineError::Interrupted) => parts = Parts::default(),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(error) => return Err(error).context("the input cannot be read"),
            }
        }
    }

    /// Keeps what was typed, where that is wanted.
    pub fn save(&mut self) {
        if let Some(path) = self.history
            && let Err(error) = self.editor.save_history(path)
        {
            eprintln!("what was typed is not kept in {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_messages() {
        for (typed, said) in [
            ("", Said::Nothing),
            ("  ", Said::Nothing),
            ("hello", Said::Message("hello".into())),
            ("  indented ", Said::Message("  indented".into())),
            ("/budget 512", Said::Budget("512".into())),
            ("/file a b.txt", Said::File("a b.txt".into())),
            ("/system Be brief.", Said::System("Be brief.".into())),
            ("/forget", Said::Forget),
            ("/retention", Said::Retention),
            ("/?", Said::Help),
            ("/bye", Said::Quit),
            ("/frobnicate now", Said::Unknown("frobnicate".into())),
        ] {
            assert_eq!(Said::parse(typed), said, "{typed}");
        }
    }

    #[test]
    fn a_message_may_have_several_lines() {
        let whole = |lines: &[&str]| {
            let mut parts = Parts::default();
            let (last, before) = lines.split_last().expect("a line");
            for line in before {
                assert_eq!(parts.push(line), None, "{line}");
                assert!(parts.is_open());
            }
            parts.push(last)
        };
        assert_eq!(whole(&["one"]).as_deref(), Some("one"));
        assert_eq!(whole(&["one\\", "two"]).as_deref(), Some("one\ntwo"));
        let quoted = ["\"\"\"", "one", "", "/two\\", "\"\"\""];
        assert_eq!(whole(&quoted).as_deref(), Some("one\n\n/two\\\n"));
        // A quote in the middle of a line is text.
        assert_eq!(whole(&["say \"\"\""]).as_deref(), Some("say \"\"\""));
    }
}
