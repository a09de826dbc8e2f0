//! Sampling: the reference's token, whatever the filters, edits, masks and draws, and the
//! reference's likelihoods.

use super::report::Failure;
use super::suite::{Check, Named, Random, Suite, refused};
use crate::backend::Sampling;
use crate::likelihood::{KnownToken, Likelihood, TokenLikelihood};
use crate::reference::ReferenceBackend;
use crate::sample::{LogitEdit, SampleItem, mask_words};

impl<B: Sampling> Suite<'_, B> {
    /// Cases of [`Sampling`].
    ///
    /// # Errors
    /// The [`Failure`] that ended the part; values that differ are told by [`Suite::finish`].
    pub fn sampling(&mut self) -> Result<(), Failure> {
        for vocabulary in [1, 31, 700] {
            for filter in FILTERS {
                check(self, vocabulary, filter)?;
            }
        }
        for vocabulary in [1, 31, 1500] {
            likelihoods(self, vocabulary)?;
        }
        refusals(self)
    }

    /// Cases of [`Sampling`] with vocabularies of served models.
    ///
    /// # Errors
    /// As [`Self::sampling`].
    pub fn large_sampling(&mut self) -> Result<(), Failure> {
        for vocabulary in [49_152, 151_936] {
            for filter in FILTERS {
                check(self, vocabulary, filter)?;
            }
        }
        Ok(())
    }
}

/// What narrows a choice.
#[derive(Clone, Copy)]
struct Filter {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

const fn filter(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Filter {
    Filter {
        temperature,
        top_k,
        top_p,
        min_p,
    }
}

const FILTERS: [Filter; 11] = [
    filter(0.0, 0, 1.0, 0.0),
    filter(1.0, 0, 1.0, 0.0),
    filter(0.7, 5, 1.0, 0.0),
    filter(1.3, 0, 0.9, 0.0),
    filter(1.0, 0, 1.0, 0.2),
    filter(0.8, 40, 0.95, 0.05),
    filter(1.0, 1, 0.5, 0.0),
    filter(1.0, 0, 0.0, 0.0),
    filter(1e-30, 0, 0.9, 0.0),
    filter(50.0, 100_000, 0.5, 1e-6),
    filter(0.2, 3, 0.3, 1.0),
];

/// Rows of logits: smooth, with ties, with infinities, all alike, with nothing left, not numbers.
fn rows<B>(suite: &mut Suite<'_, B>, vocabulary: usize) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = (0..2).map(|_| suite.random.values(vocabulary)).collect();
    rows[1].iter_mut().for_each(|x| *x *= 9.0);
    let coarse: Vec<f32> = rows[0]
        .iter()
        .map(|x| if x.abs() < 0.3 { -0.0 } else { x.round() })
        .collect();
    let mut with = |at: usize, value: f32| {
        let mut row = suite.random.values(vocabulary);
        row[at % vocabulary] = value;
        row
    };
    rows.extend([
        coarse,
        with(3, f32::INFINITY),
        with(5, f32::NEG_INFINITY),
        with(7, f32::NAN),
    ]);
    rows.extend([vec![0.5; vocabulary], vec![f32::NEG_INFINITY; vocabulary]]);
    rows
}

fn edits<B>(suite: &mut Suite<'_, B>, vocabulary: usize) -> Vec<LogitEdit> {
    let count = suite.random.below(vocabulary.min(9));
    let tokens: Vec<u32> = suite
        .random
        .shuffled(vocabulary)
        .into_iter()
        .take(count)
        .collect();
    let edit = |token| LogitEdit {
        token,
        bias: suite.random.value(),
        repetition: 1.0 + suite.random.value().abs(),
        frequency: 0.3 * suite.random.below(4) as f32,
        presence: 0.1,
        flags: suite.random.below(8) as u32,
    };
    tokens.into_iter().map(edit).collect()
}

/// No mask for some rows; for others one with few tokens, with most of them, or with none. Bits
/// beyond the vocabulary are any.
fn mask(random: &mut Random, vocabulary: usize) -> Option<Vec<u32>> {
    let words = mask_words(vocabulary);
    let mut word = || random.next() as u32;
    let kind = word() % 4;
    let word = |_| match kind {
        1 => word() & word(),
        2 => word() | word(),
        _ => 0,
    };
    (kind > 0).then(|| (0..words).map(word).collect())
}

/// `sample`.
fn check<B: Sampling>(suite: &mut Suite<'_, B>, vocabulary: usize, filter: Filter) -> Check {
    let rows = rows(suite, vocabulary);
    let edits: Vec<Vec<LogitEdit>> = rows.iter().map(|_| edits(suite, vocabulary)).collect();
    // Values that are not taken from the cases after this one.
    let mut random = suite.random.clone();
    let masks: Vec<Option<Vec<u32>>> = rows.iter().map(|_| mask(&mut random, vocabulary)).collect();
    let Filter {
        temperature,
        top_k,
        top_p,
        min_p,
    } = filter;
    // Rows in another order than items, and one row that nobody asks for.
    let items: Vec<SampleItem<'_>> = (0..rows.len() - 1)
        .rev()
        .map(|row| SampleItem {
            row,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform: if row == 0 {
                (1 << 53) - 1
            } else {
                suite.random.next() >> 11
            },
            edits: &edits[row],
            mask: masks[row].as_deref(),
        })
        .collect();
    let case = format!("sample of {vocabulary} at {temperature}, top {top_k}, {top_p}, {min_p}");
    let mut values: Vec<f32> = rows.concat();
    let mut logits = suite.upload(&values)?;
    let want = ReferenceBackend
        .sample(&mut values, vocabulary, &items)
        .named(&case)?;
    let got = suite
        .backend
        .sample(&mut logits, vocabulary, &items)
        .named(&case)?;
    compare(suite, &case, &got, &want)
}

/// `likelihoods`.
fn likelihoods<B: Sampling>(suite: &mut Suite<'_, B>, vocabulary: usize) -> Check {
    let rows = rows(suite, vocabulary);
    let (values, mut items) = (rows.concat(), Vec::new());
    for row in (0..rows.len()).rev() {
        for alternatives in [0, 1, 7] {
            let token = suite.random.below(vocabulary) as u32;
            items.push(KnownToken {
                row,
                token,
                alternatives,
            });
        }
    }
    let case = format!("likelihoods of {vocabulary}");
    let logits = suite.upload(&values)?;
    let want = ReferenceBackend
        .likelihoods(&values, vocabulary, &items)
        .named(&case)?;
    let got = suite
        .backend
        .likelihoods(&logits, vocabulary, &items)
        .named(&case)?;
    suite.compare(&case, &tokens(&got), &tokens(&want), 0.0)?;
    suite.compare(&case, &logprobs(&got), &logprobs(&want), 1e-5)
}

/// What is told of rows of numbers; of another row nothing is but that.
fn told(all: &[Likelihood]) -> impl Iterator<Item = &TokenLikelihood> {
    all.iter().flat_map(|one| {
        let best = if one.known.logprob.is_nan() {
            &[][..]
        } else {
            &one.best
        };
        std::iter::once(&one.known).chain(best)
    })
}

fn tokens(all: &[Likelihood]) -> Vec<f32> {
    told(all).map(|one| one.token as f32).collect()
}

/// Those that are no numbers are 1, which no logarithm of a probability is; those of 0 are 2.
fn logprobs(all: &[Likelihood]) -> Vec<f32> {
    let number = |one: &TokenLikelihood| match one.logprob {
        x if x.is_nan() => 1.0,
        f32::NEG_INFINITY => 2.0,
        x => x,
    };
    told(all).map(number).collect()
}

/// Rows and tokens that are not there are refused.
fn refusals<B: Sampling>(suite: &Suite<'_, B>) -> Check {
    let mut logits = suite.upload(&[0.0; 8])?;
    let known_logits = suite.upload(&[0.0; 8])?;
    let edits = [LogitEdit::none(4)];
    let item = |row| SampleItem {
        row,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        uniform: 0,
        edits: &[],
        mask: None,
    };
    let mut refuse =
        |case, items: &[SampleItem<'_>]| refused(case, suite.backend.sample(&mut logits, 4, items));
    let known = |row, token| KnownToken {
        row,
        token,
        alternatives: 1,
    };
    for item in [known(2, 0), known(1, 4)] {
        let likelihoods = suite.backend.likelihoods(&known_logits, 4, &[item]);
        refused("a likelihood past the logits", likelihoods)?;
    }
    refuse("a row past the logits", &[item(2)])?;
    refuse("a row twice", &[item(1), item(1)])?;
    for (case, mask) in [("a mask too short", &[][..]), ("a mask too long", &[0, 0])] {
        let mask = Some(mask);
        refuse(case, &[SampleItem { mask, ..item(0) }])?;
    }
    refuse(
        "an edit past the vocabulary",
        &[SampleItem {
            edits: &edits,
            ..item(0)
        }],
    )
}

fn compare<B>(
    suite: &mut Suite<'_, B>,
    case: &str,
    got: &[Option<u32>],
    want: &[Option<u32>],
) -> Check {
    if got.len() != want.len() {
        return Err(Failure::Length {
            case: case.to_owned(),
            got: got.len(),
            want: want.len(),
        });
    }
    let floats = |tokens: &[Option<u32>]| {
        tokens
            .iter()
            .map(|t| t.map_or(-1.0, |t| t as f32))
            .collect::<Vec<f32>>()
    };
    suite.compare(case, &floats(got), &floats(want), 0.0)
}
