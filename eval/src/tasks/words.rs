//! Common words and frequent words.

use super::filler::{Filler, Repeats};
use super::haystack;
use super::question::{Judge, Question};
use super::vocabulary::{distinct, letters, words};
use crate::draws::Draws;

/// Letters of a coded word.
const CODED_LETTERS: usize = 6;
/// Tokens of the context per coded word.
const TOKENS_PER_CODED: usize = 50;
/// Frequent words that are asked for.
const FREQUENT: usize = 3;
/// Common words that are asked for.
const COMMON: usize = 10;
/// Contexts from this length on repeat words more often.
const LONG: usize = 4096;
/// No entry of a numbered list is shorter, tokens.
const LEAST_ENTRY: usize = 3;

/// The three most frequent of coded words. The most frequent of all is a run of dots, which does
/// not count.
pub(super) fn frequent<'a>(draws: &mut Draws, length: usize) -> Question<'a> {
    let count = (length / TOKENS_PER_CODED).max(2 * FREQUENT);
    let mut words = vec!["...".to_string()];
    words.extend(distinct(count, || letters(draws, b'a', CODED_LETTERS)));
    let answers = words[1..=FREQUENT].to_vec();
    Question {
        instruction: "Read the following coded text and track the frequency of each coded word. \
                      Find the three most frequently appeared coded words. "
            .into(),
        filler: Filler::Coded {
            words,
            draws: draws.clone(),
        },
        needles: Vec::new(),
        question: "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. \
                   What are the three most frequently appeared words in the above coded text?"
            .into(),
        answer_prefix: "Answer: According to the coded text above, the three most frequently \
                        appeared words are:"
            .into(),
        expected: format!(" {}", answers.join(" ")),
        answers,
        judge: Judge::All,
        chat: true,
    }
}

const LIST_INSTRUCTION: &str = "Here is a numbered list of words. Some words come more often than \
                                others. Memorize those that come most often.\n";
const LIST_QUESTION: &str = "\nQuestion: Which 10 words are the most common in the list above?";
const LIST_ANSWER: &str = "Answer: The 10 words that come most often in the list are:";

/// The ten common words of a list, after a worked example. Repetitions are RULER's: 6 against 1 in
/// short contexts, 30 against 3 in long ones, and in the example 3 against 1 and 10 against 3.
pub(super) fn common<'a>(draws: &mut Draws, length: usize) -> Question<'a> {
    let times = |common, others| Repeats { common, others };
    let (repeats, shown_repeats, shown) = if length < LONG {
        (times(6, 1), times(3, 1), 20)
    } else {
        (times(30, 3), times(10, 3), 40)
    };
    let mut all = words(draws, shown + COMMON + length / LEAST_ENTRY);
    let others = all.split_off(shown + COMMON);
    let answers = all.split_off(shown);
    let shown_others = all.split_off(COMMON);
    let entries = COMMON * shown_repeats.common + shown_others.len() * shown_repeats.others;
    let list = Filler::Listed {
        common: all.clone(),
        others: shown_others,
        repeats: shown_repeats,
        draws: draws.clone(),
    };
    let example = format!(
        "{LIST_INSTRUCTION}{}{LIST_QUESTION} {LIST_ANSWER} {}\n",
        haystack::text(&list, &[], entries),
        numbered(&all)
    );
    Question {
        instruction: format!("{example}{LIST_INSTRUCTION}"),
        filler: Filler::Listed {
            common: answers.clone(),
            others,
            repeats,
            draws: draws.clone(),
        },
        needles: Vec::new(),
        question: LIST_QUESTION.into(),
        answer_prefix: LIST_ANSWER.into(),
        expected: format!(" {}", numbered(&answers)),
        answers,
        judge: Judge::All,
        chat: true,
    }
}

fn numbered(words: &[String]) -> String {
    words
        .iter()
        .enumerate()
        .map(|(i, word)| format!("{}. {word}", i + 1))
        .collect::<Vec<_>>()
        .join(" ")
}
