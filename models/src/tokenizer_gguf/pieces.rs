//! The merges of a SentencePiece vocabulary, which GGUF files do not carry.

use serde_json::{Value, json};

use super::vocabulary::{Result, Vocabulary};
use crate::tokenizer::TokenizerError;

/// Memory that the merges of a vocabulary may take, in bytes, each counted with
/// [`BYTES_OF_A_MERGE`] beside its text. The 580,000 merges of Gemma's 256,000 pieces take a third.
const MOST_BYTES: usize = 256 << 20;
/// What a merge takes beside its text: a JSON array of two strings.
const BYTES_OF_A_MERGE: usize = 128;

/// Two pieces that join into a third. Ids of the vocabulary.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Merge {
    piece: usize,
    left: usize,
    right: usize,
}

/// Every way to join two pieces into a third, best score of the third first: what SentencePiece's
/// greedy merging by score does. Ties go by the piece's id, then by the ids of the halves.
///
/// # Errors
/// [`TokenizerError::Merges`] when they would take more than [`MOST_BYTES`].
pub(super) fn merges_of_pieces(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Result<Vec<Value>> {
    let tokens = &vocabulary.tokens;
    let mut merges = find(vocabulary, MOST_BYTES)?;
    merges.sort_by(|a, b| scores[b.piece].total_cmp(&scores[a.piece]).then(a.cmp(b)));
    let pair = |merge: Merge| json!([tokens[merge.left], tokens[merge.right]]);
    Ok(merges.into_iter().map(pair).collect())
}

/// The merges of all ordinary pieces, in no order. Time and memory grow with the text of the
/// vocabulary, however long a piece is: no piece is cut at every letter.
fn find(vocabulary: &Vocabulary<'_>, limit: usize) -> Result<Vec<Merge>> {
    let tokens = &vocabulary.tokens;
    let heads = longest_parts(&by_head(tokens), |part, whole| {
        tokens[whole].starts_with(tokens[part])
    });
    let tails = longest_parts(&by_tail(tokens), |part, whole| {
        tokens[whole].ends_with(tokens[part])
    });
    let (mut merges, mut bytes) = (Vec::new(), 0);
    for (piece, text) in tokens.iter().enumerate() {
        if vocabulary.types[piece] != 1.0 {
            continue;
        }
        // From the longest head and the shortest tail on: a tail that is too short for one head
        // is too short for all that follow.
        let mut endings: Vec<usize> = chain(&tails, piece).collect();
        for left in chain(&heads, piece) {
            let rest = text.len() - tokens[left].len();
            while endings.pop_if(|tail| tokens[*tail].len() < rest).is_some() {}
            let Some(&right) = endings.last() else {
                break;
            };
            if tokens[right].len() == rest {
                merges.push(Merge { piece, left, right });
                bytes += text.len() + BYTES_OF_A_MERGE;
                if bytes > limit {
                    return Err(TokenizerError::Merges { limit });
                }
            }
        }
    }
    Ok(merges)
}

/// The longest other token that each token begins (or ends) with, where there is one. `order`: the
/// tokens that are not empty, each behind everything that it begins with, and no other token
/// between it and the longest of those but ones that begin with it as well.
///
/// Each token is compared with one that it begins with, and every other comparison takes a token
/// from the list for good: so the text compared is at most twice that of all tokens.
fn longest_parts(order: &[usize], mut is_part: impl FnMut(usize, usize) -> bool) -> Parts {
    let mut parts = vec![None; order.iter().max().map_or(0, |last| last + 1)];
    // Each begins with the one before it.
    let mut nested: Vec<usize> = Vec::new();
    for &whole in order {
        while nested.pop_if(|part| !is_part(*part, whole)).is_some() {}
        parts[whole] = nested.last().copied();
        nested.push(whole);
    }
    parts
}

/// By id.
type Parts = Vec<Option<usize>>;

/// The tokens that `whole` begins (or ends) with, from the longest on, without itself.
fn chain(parts: &Parts, whole: usize) -> impl Iterator<Item = usize> {
    let longest = parts.get(whole).copied().flatten();
    std::iter::successors(longest, |&part| parts[part])
}

/// Ids of the tokens that are not empty, in the order of their text.
fn by_head(tokens: &[&str]) -> Vec<usize> {
    let mut order = with_text(tokens);
    order.sort_unstable_by_key(|&id| tokens[id]);
    order
}

/// As [`by_head`], by their text read backwards.
fn by_tail(tokens: &[&str]) -> Vec<usize> {
    let mut order = with_text(tokens);
    order.sort_unstable_by(|&a, &b| tokens[a].bytes().rev().cmp(tokens[b].bytes().rev()));
    order
}

fn with_text(tokens: &[&str]) -> Vec<usize> {
    (0..tokens.len())
        .filter(|&id| !tokens[id].is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn vocabulary<'a>(tokens: &[&'a str]) -> Vocabulary<'a> {
        let ids: HashMap<_, _> = tokens
            .iter()
            .enumerate()
            .map(|(id, text)| (*text, id))
            .collect();
        let types = vec![1.0; tokens.len()];
        Vocabulary {
            tokens: tokens.to_vec(),
            types,
            ids,
        }
    }

    /// Cuts every piece at every letter, and looks both halves up.
    fn at_every_letter(vocabulary: &Vocabulary<'_>) -> Vec<Merge> {
        let mut merges = Vec::new();
        for (piece, text) in vocabulary.tokens.iter().enumerate() {
            for (at, _) in text.char_indices().skip(1) {
                let (left, right) = text.split_at(at);
                let known = |half: &str| vocabulary.ids.get(half).copied();
                if let (Some(left), Some(right)) = (known(left), known(right)) {
                    merges.push(Merge { piece, left, right });
                }
            }
        }
        merges.sort_unstable();
        merges
    }

    proptest! {
        #[test]
        fn merges_are_those_of_every_cut(
            tokens in prop::collection::hash_set("[aé]{0,6}|[ab]{0,3}", 0..40),
        ) {
            let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let vocabulary = vocabulary(&tokens);
            let mut found = find(&vocabulary, MOST_BYTES).unwrap();
            found.sort_unstable();
            prop_assert_eq!(found, at_every_letter(&vocabulary));
        }
    }

    /// A piece of a megabyte was cut at each of its letters, and each half was read whole.
    #[test]
    fn a_piece_of_any_length_is_compared_a_few_times() {
        let long = "ab".repeat(1 << 19);
        let head = &long[..long.len() - 3];
        let short: Vec<String> = (1..200).map(|len| "ab".repeat(len)).collect();
        let mut tokens = vec![long.as_str(), head, "bab"];
        tokens.extend(short.iter().map(String::as_str));
        let text: usize = tokens.iter().map(|token| token.len()).sum();

        let mut compared = 0;
        longest_parts(&by_head(&tokens), |part, whole| {
            compared += tokens[part].len().min(tokens[whole].len());
            tokens[whole].starts_with(tokens[part])
        });
        assert!(compared <= 2 * text, "{compared} of {text} bytes");

        let merges = find(&vocabulary(&tokens), MOST_BYTES).unwrap();
        let whole = Merge {
            piece: 0,
            left: 1,
            right: 2,
        };
        assert!(merges.contains(&whole));
    }

    #[test]
    fn merges_that_take_too_much_are_refused() {
        let tokens: Vec<String> = (1..64).map(|len| "a".repeat(len)).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let vocabulary = vocabulary(&tokens);
        let merges = at_every_letter(&vocabulary);
        let bytes = |merge: &Merge| tokens[merge.piece].len() + BYTES_OF_A_MERGE;
        let bytes: usize = merges.iter().map(bytes).sum();
        assert_eq!(find(&vocabulary, bytes).unwrap().len(), merges.len());
        let refused = find(&vocabulary, bytes - 1).unwrap_err();
        assert!(refused.to_string().contains("Hugging Face"), "{refused}");
    }
}
