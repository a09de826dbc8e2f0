//! Prompts cut from a text.

use std::ops::Range;

/// A text and where its words are.
#[derive(Debug)]
pub struct Corpus {
    text: String,
    /// Byte offset of each word.
    starts: Vec<usize>,
}

impl Corpus {
    /// Nothing when the text has no words.
    pub fn new(text: String) -> Option<Self> {
        let mut starts = Vec::new();
        let mut in_word = false;
        for (at, c) in text.char_indices() {
            if !c.is_whitespace() && !in_word {
                starts.push(at);
            }
            in_word = !c.is_whitespace();
        }
        (!starts.is_empty()).then_some(Self { text, starts })
    }

    /// `num_words` words in the text's own spacing, from a place that `offset` chooses, beginning
    /// anew at the end.
    pub fn prompt(&self, offset: u64, num_words: usize) -> String {
        let mut at = (offset % self.starts.len() as u64) as usize;
        let mut left = num_words.max(1);
        let mut prompt = String::new();
        while left > 0 {
            let take = left.min(self.starts.len() - at);
            if !prompt.is_empty() {
                prompt.push('\n');
            }
            prompt.push_str(self.words(at..at + take));
            left -= take;
            at = 0;
        }
        prompt
    }

    fn words(&self, range: Range<usize>) -> &str {
        let end = self
            .starts
            .get(range.end)
            .copied()
            .unwrap_or(self.text.len());
        self.text[self.starts[range.start]..end].trim_end()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cuts_words_in_their_own_spacing_and_wraps() {
        let corpus = Corpus::new("  one two\n\nthree ".into()).expect("has words");
        assert_eq!(corpus.prompt(1, 2), "two\n\nthree");
        assert_eq!(corpus.prompt(3, 2), "one two");
        assert_eq!(corpus.prompt(2, 5), "three\none two\n\nthree\none");
        assert!(Corpus::new(" \n ".into()).is_none());
    }

    proptest! {
        #[test]
        fn has_as_many_words_as_asked(
            text in "[a-zé \n]{0,60}x",
            offset: u64,
            num_words in 1usize..200,
        ) {
            let prompt = Corpus::new(text).expect("ends with a word").prompt(offset, num_words);
            prop_assert_eq!(prompt.split_whitespace().count(), num_words);
        }
    }
}
