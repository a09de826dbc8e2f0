//! Sentences of an ordinary text, to be given back word for word. Nothing is planted, so nothing
//! says what will be asked for.

use super::filler::{Filler, Prose};
use super::question::{Draw, Judge, Question};
use super::task::SENTENCES;
use crate::draws::Draws;

/// Words of the beginning that the question shows, at least.
const SHOWN: usize = 5;
/// Words that the answer must have.
const ASKED: usize = 4;
/// Text surely within a context, bytes per token: asked-for sentences end before it. English prose
/// has about four.
const BYTES_PER_TOKEN: usize = 3;
/// Most sentences that are looked at for one to ask for.
const TRIES: usize = 200;

/// The beginning of one of several sentences among the first of a context, which one by the draw's
/// key; the answer begins, where the sentence has one, with a name or a number, which cannot be
/// guessed.
pub(super) fn question<'a>(prose: &'a Prose, draws: &mut Draws, draw: Draw) -> Question<'a> {
    let start = draws.below(prose.len());
    let sentences = prose.from(start);
    let mut bytes = 0;
    let inside = sentences.take_while(|s| {
        bytes += s.len() + 1;
        bytes <= draw.length * BYTES_PER_TOKEN
    });
    // The first is where the context begins, under the instruction.
    let inside: Vec<&str> = inside.skip(1).collect();
    let mut chosen: Vec<(&str, usize)> = Vec::new();
    for attempt in 0..TRIES {
        if chosen.len() == SENTENCES || inside.is_empty() {
            break;
        }
        let sentence = inside[draws.below(inside.len())];
        let Some((at, telling)) = cut(sentence, draws) else {
            continue;
        };
        let unique = inside
            .iter()
            .filter(|s| s.contains(&sentence[..at]))
            .count()
            == 1;
        if unique
            && (telling || attempt >= TRIES / 2)
            && chosen.iter().all(|(other, _)| *other != sentence)
        {
            chosen.push((sentence, at));
        }
    }
    // A context too short for that many asks for one again.
    let (sentence, at) = chosen
        .get(draw.key % chosen.len().max(1))
        .copied()
        .unwrap_or((prose.from(start).next().unwrap_or(""), 0));
    let (head, rest) = sentence.split_at(at);
    let answer: Vec<&str> = rest
        .split(' ')
        .filter(|w| !w.is_empty())
        .take(ASKED)
        .collect();
    let answer = answer
        .join(" ")
        .trim_end_matches(['.', ',', ';', ':', '?', '!'])
        .to_string();
    Question {
        instruction: "Read the following text. I will ask for passages of it afterwards.\n".into(),
        filler: Filler::Prose { prose, start },
        needles: Vec::new(),
        question: format!(
            "\nWhich words come next in the text above?\n{}",
            head.trim_end()
        ),
        answer_prefix: format!("In the text above it says: {}", head.trim_end()),
        expected: format!(" {answer}"),
        answers: vec![answer],
        judge: Judge::All,
        chat: true,
    }
}

/// Where a sentence is cut, a byte, and whether a name or a number follows. `None` when it is too
/// short.
fn cut(sentence: &str, draws: &mut Draws) -> Option<(usize, bool)> {
    let starts: Vec<usize> = sentence.match_indices(' ').map(|(at, _)| at + 1).collect();
    // `starts[i]` is where word `i + 1` begins.
    let cuts: Vec<usize> = starts
        .iter()
        .copied()
        .skip(SHOWN - 1)
        .take(starts.len().saturating_sub(SHOWN + ASKED - 2))
        .collect();
    let lower = |at: usize| {
        sentence[..at]
            .trim_end()
            .ends_with(|c: char| c.is_lowercase() || c == ',')
    };
    let telling = |at: &usize| match sentence[*at..].chars().next() {
        Some(c) => c.is_ascii_digit() || (c.is_uppercase() && lower(*at)),
        None => false,
    };
    let best: Vec<usize> = cuts.iter().copied().filter(telling).collect();
    let from = if best.is_empty() { &cuts } else { &best };
    (!from.is_empty()).then(|| (from[draws.below(from.len())], !best.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::super::haystack;
    use super::*;

    fn draw(length: usize, key: usize) -> Draw {
        Draw {
            seed: 0,
            index: 0,
            depth: None,
            length,
            key,
        }
    }

    fn prose() -> Prose {
        let line = |i: usize| {
            format!(
                "After {} years the fleet of Anna {i} came home to Ghent in May. It was late.",
                20 + i
            )
        };
        Prose::new(&(0..40).map(line).collect::<Vec<_>>().join(" ")).expect("sentences")
    }

    #[test]
    fn what_is_asked_for_stands_in_the_context_once_behind_its_beginning() {
        let prose = prose();
        for seed in 0..20 {
            let mut seen = Vec::new();
            for key in 0..SENTENCES {
                let q = question(&prose, &mut Draws::new(&[seed]), draw(400, key));
                let text = haystack::text(&q.filler, &q.needles, 40);
                let head = q
                    .answer_prefix
                    .strip_prefix("In the text above it says: ")
                    .expect("shown");
                assert_eq!(
                    text.matches(&format!("{head}{}", q.expected)).count(),
                    1,
                    "{head}"
                );
                assert!(q.question.ends_with(head) && head.split(' ').count() >= SHOWN);
                let first = q.answers[0].chars().next().expect("not empty");
                assert!(
                    first.is_ascii_digit() || first.is_uppercase(),
                    "{}",
                    q.answers[0]
                );
                seen.push(head.to_string() + &q.expected);
            }
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), SENTENCES);
        }
    }

    #[test]
    fn a_context_without_whole_sentences_still_asks_something() {
        let prose = prose();
        let q = question(&prose, &mut Draws::new(&[1]), draw(8, 2));
        assert!(!q.answers[0].is_empty());
    }
}
