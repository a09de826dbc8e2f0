//! A document as one HTML file, each token shaded by how many heads still hold it when the answer
//! begins.

use std::fmt::Write;

use palimpsest_engine::decoder::Logits;
use palimpsest_engine::offline::OfflineSequence;
use palimpsest_kernels::Backend;

use crate::contracts::{CacheShape, EntrySize, held};
use crate::prompt::Prompt;
use crate::stats::argmax;
use crate::{Result, Subject, TextSide};

/// Steps of the shading.
const STEPS: usize = 20;
/// Tokens of one character at most.
const PIECES: usize = 4;

/// What was read and what is left of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Model and indexer.
    pub model: String,
    /// The cache: policy, head budget, memory.
    pub cache: String,
    /// Its budget.
    pub budget: String,
    /// Tokens read before the answer.
    pub prompt: Vec<u32>,
    /// Of these, tokens before the last boundary.
    pub context: usize,
    /// Decoder layers.
    pub layers: usize,
    /// `layer * kv_heads + kv_head`: positions held when the answer begins, increasing.
    pub heads: Vec<Vec<u32>>,
    /// Mean entries per KV head, latent memory included.
    pub held: f64,
    /// What the model answered.
    pub answer: String,
}

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Names model and indexer on the page.
    pub model: &'a str,
    /// The cache.
    pub cache: &'a CacheShape,
    /// The document and the question.
    pub prompt: &'a Prompt,
    /// Tokens of the answer at most.
    pub max_tokens: usize,
}

/// Reads a prompt under a cache and answers greedily.
///
/// # Errors
/// Those of the rank; [`crate::Error::Spec`] for a cache that cannot be.
pub fn look<B: Backend>(subject: &mut Subject<'_, B>, view: View<'_>) -> Result<Shown> {
    let View {
        model,
        cache,
        prompt,
        max_tokens,
    } = view;
    let size = EntrySize::of(subject.runner, &cache.policy);
    let layers = subject.runner.decoder().config().layers;
    let contract = cache.contract(prompt.len(), prompt.tail.len(), size)?;
    let mut sequence = OfflineSequence::open(subject.runner, contract)?;
    sequence.feed(&prompt.context, Logits::None)?;
    let mut logits = sequence.feed(&prompt.tail, Logits::Last)?;

    let held = held(sequence.cache(), size);
    let heads = sequence
        .cache()
        .heads
        .iter()
        .map(|head| head.positions.clone())
        .collect();
    let mut answer = Vec::new();
    while answer.len() < max_tokens {
        let token = argmax(&logits) as u32;
        if subject.side.ends(token) {
            break;
        }
        answer.push(token);
        logits = sequence.feed(&[token], Logits::Last)?;
    }
    Ok(Shown {
        model: model.into(),
        cache: cache.line(),
        budget: cache
            .budget
            .map_or("everything".into(), |budget| budget.to_string()),
        prompt: prompt.context.iter().chain(&prompt.tail).copied().collect(),
        context: prompt.context.len(),
        layers,
        heads,
        held,
        answer: subject.side.decode(&answer),
    })
}

/// What stands around the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The question.
    pub question: String,
    /// Forced beginning of the answer.
    pub answer_prefix: String,
    /// What was expected, and is outlined where it stands in the document; empty: unknown.
    pub expected: Vec<String>,
}

/// Tokens that make whole characters together.
struct Piece {
    /// The first one.
    at: usize,
    /// How many.
    count: usize,
    text: String,
}

fn pieces(side: &dyn TextSide, ids: &[u32]) -> Vec<Piece> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < ids.len() {
        let whole = |count: &usize| {
            !side
                .decode(&ids[at..at + count])
                .contains(char::REPLACEMENT_CHARACTER)
        };
        let count = (1..=PIECES.min(ids.len() - at)).find(whole).unwrap_or(1);
        let text = side.decode(&ids[at..at + count]);
        found.push(Piece { at, count, text });
        at += count;
    }
    found
}

/// Marks the pieces in which one of `wanted` stands.
fn marked(pieces: &[Piece], wanted: &[String]) -> Vec<bool> {
    let (mut text, mut starts) = (String::new(), Vec::with_capacity(pieces.len()));
    for piece in pieces {
        starts.push(text.len());
        text.push_str(&piece.text);
    }
    let mut marks = vec![false; pieces.len()];
    for (start, found) in wanted
        .iter()
        .filter(|w| !w.is_empty())
        .flat_map(|w| text.match_indices(w.as_str()))
    {
        let first = starts.partition_point(|s| *s <= start) - 1;
        let last = starts.partition_point(|s| *s < start + found.len());
        marks[first..last].fill(true);
    }
    marks
}

/// The page. It needs nothing beside itself; without scripts it shows all heads together.
pub fn html(side: &dyn TextSide, shown: &Shown, asked: &Asked) -> String {
    let mut counts = vec![0usize; shown.prompt.len()];
    shown
        .heads
        .iter()
        .flatten()
        .for_each(|&position| counts[position as usize] += 1);
    let expected = if asked.expected.is_empty() {
        String::new()
    } else {
        format!(
            "<p><b>Expected</b> {}</p>",
            escape(&asked.expected.join(", "))
        )
    };
    let rules: String = (0..=STEPS)
        .map(|k| format!(".k{k}{{--k:{:.0}%}}", strength(k) * 100.0))
        .collect();
    TEMPLATE
        .replace("@RULES@", &rules)
        .replace("@FACTS@", &facts(shown, &counts))
        .replace("@QUESTION@", &escape(asked.question.trim()))
        .replace("@PREFIX@", &escape(&asked.answer_prefix))
        .replace("@ANSWER@", &escape(&shown.answer))
        .replace("@EXPECTED@", &expected)
        .replace("@LAYERS@", &shown.layers.to_string())
        .replace("@HEADS@", &shown.heads.len().to_string())
        .replace("@TOKENS@", &shown.prompt.len().to_string())
        .replace("@STEPS@", &STEPS.to_string())
        .replace("@BITS@", &bits(shown))
        .replace("@BODY@", &document(side, shown, &counts, &asked.expected))
}

/// The document's tokens, shaded. `counts`: heads that hold each.
fn document(side: &dyn TextSide, shown: &Shown, counts: &[usize], expected: &[String]) -> String {
    let pieces = pieces(side, &shown.prompt);
    let marks = marked(&pieces, expected);
    let mut body = String::new();
    for (Piece { at, count, text }, mark) in pieces.iter().zip(marks) {
        if *at >= shown.context && at - shown.context < *count {
            body.push_str(
                "<hr><p class=\"note\">Read after the last boundary, held whole until the next \
                 one:</p>",
            );
        }
        let kept: usize = counts[*at..at + count].iter().sum();
        let step = (kept * STEPS).div_ceil(shown.heads.len() * count);
        let class = if mark {
            format!("k{step} asked")
        } else {
            format!("k{step}")
        };
        let text = if text.is_empty() {
            "\u{b7}".to_string()
        } else {
            escape(text)
        };
        let _ = write!(body, "<i class=\"{class}\" data-t=\"{at}\">{text}</i>");
    }
    body
}

/// What was measured, as the items of a list.
fn facts(shown: &Shown, counts: &[usize]) -> String {
    let share = shown.held / shown.prompt.len() as f64 * 100.0;
    let gone = counts.iter().filter(|c| **c == 0).count();
    let facts = [
        ("cache", format!("{}, {}", shown.cache, shown.budget)),
        (
            "held",
            format!("{:.0} entries per KV head, {share:.1} %", shown.held),
        ),
        (
            "in no head",
            format!("{gone} of {} tokens", shown.prompt.len()),
        ),
        ("model", shown.model.clone()),
    ];
    facts
        .iter()
        .map(|(k, v)| format!("<div><dt>{k}</dt><dd>{}</dd></div>", escape(v)))
        .collect()
}

/// Which head holds what: a bit for each head and position, least significant first, as hexadecimal
/// digits.
fn bits(shown: &Shown) -> String {
    let bytes = shown.prompt.len().div_ceil(8);
    let mut all = vec![0u8; bytes * shown.heads.len()];
    for (head, positions) in shown.heads.iter().enumerate() {
        for &position in positions {
            all[head * bytes + position as usize / 8] |= 1 << (position % 8);
        }
    }
    all.iter()
        .fold(String::with_capacity(2 * all.len()), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// How strong the shade of a step is. Small shares are the common ones, so they get more than their
/// part.
fn strength(step: usize) -> f64 {
    (step as f64 / STEPS as f64).powf(0.7)
}

const TEMPLATE: &str = include_str!("show.html");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::testing::Words;

    fn shown(side: &Words) -> Shown {
        let prompt = side
            .encode("one <two> three four\nfive six ")
            .expect("words");
        Shown {
            model: "m".into(),
            cache: "window".into(),
            budget: "4 entries".into(),
            prompt,
            context: 4,
            layers: 2,
            heads: vec![
                vec![0, 3, 4, 5],
                vec![0, 2, 4, 5],
                vec![0, 3, 4, 5],
                vec![0, 1, 4, 5],
            ],
            held: 4.0,
            answer: "<b>".into(),
        }
    }

    #[test]
    fn tokens_are_shaded_by_the_heads_that_hold_them() {
        let side = Words::default();
        let asked = Asked {
            question: "Q & A?".into(),
            answer_prefix: "It is".into(),
            expected: vec!["three".into()],
        };
        let page = html(&side, &shown(&side), &asked);
        for part in [
            "<i class=\"k20\" data-t=\"0\">one </i>",
            "<i class=\"k5\" data-t=\"1\">&lt;two&gt; </i>",
            "<i class=\"k5 asked\" data-t=\"2\">three </i>",
            "<i class=\"k10\" data-t=\"3\">four\n</i><hr>",
            "Q &amp; A?",
            "&lt;b&gt;",
        ] {
            assert!(page.contains(part), "no {part} in {page}");
        }
        assert!(!page.contains('@') && !page.contains("<b>") || page.contains("<b>Expected</b>"));
        assert!(!page.contains("http"), "nothing is fetched");
    }

    #[test]
    fn bits_say_which_head_holds_what() {
        let side = Words::default();
        assert_eq!(bits(&shown(&side)), "39353933");
    }
}
