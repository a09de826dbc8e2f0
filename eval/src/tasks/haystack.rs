//! The text that needles are hidden in, sized to an exact number of tokens.

use std::borrow::Cow;

use super::filler::Filler;
use crate::{Error, Result, TextSide};

/// A sentence to hide.
#[derive(Debug, Clone, PartialEq)]
pub struct Needle {
    /// What it says.
    pub text: String,
    /// Where: 0 is the beginning of the haystack, 1 its end.
    pub depth: f64,
}

/// `units` units of filler with the needles between them. The last unit is always filler.
pub fn text(filler: &Filler<'_>, needles: &[Needle], units: usize) -> String {
    let mut order: Vec<&Needle> = needles.iter().collect();
    // Stable: needles at one place keep their order.
    order.sort_by(|a, b| a.depth.total_cmp(&b.depth));
    let mut order = order.into_iter().peekable();
    let found = filler.units(units);
    let last = found.len().saturating_sub(1);
    let mut parts: Vec<Cow<'_, str>> = Vec::with_capacity(found.len() + needles.len());
    for (index, unit) in found.into_iter().enumerate() {
        let due = |n: &&Needle| (n.depth * last as f64) as usize <= index;
        while let Some(needle) = order.next_if(due) {
            parts.push(needle.text.as_str().into());
        }
        parts.push(unit);
    }
    parts.extend(order.map(|n| n.text.as_str().into()));
    filler.join(&parts)
}

/// The first and the last half of `target` tokens, as LongBench cuts what is too long.
pub fn cut_middle(mut ids: Vec<u32>, target: usize) -> Vec<u32> {
    if ids.len() > target {
        let first = target / 2;
        ids.drain(first..ids.len() - (target - first));
    }
    ids
}

/// A haystack of exactly `target` tokens: the fewest units that reach it, the excess at its end cut
/// off. The number of units is found by doubling and bisection, because only tokenising tells their
/// length.
///
/// # Errors
/// [`Error::TooShort`] when the needles alone, or the fewest units that make sense, do not fit;
/// [`Error::Text`].
pub fn tokens(
    side: &dyn TextSide,
    filler: &Filler<'_>,
    needles: &[Needle],
    target: usize,
) -> Result<Vec<u32>> {
    let encode = |units: usize| side.encode(&text(filler, needles, units));
    let least = filler.least();
    let alone = encode(least)?.len();
    if alone >= target {
        return Err(Error::TooShort {
            length: target,
            needed: alone + 1,
        });
    }
    let (mut low, mut high) = (least, 2 * least.max(1));
    while encode(high)?.len() < target {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if encode(middle)?.len() < target {
            low = middle
        } else {
            high = middle
        }
    }
    let mut ids = encode(high)?;
    ids.truncate(target);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::super::filler::{NeedleKind, Repeats};
    use super::*;
    use crate::draws::Draws;
    use crate::subject::testing::Words;

    fn needle(depth: f64) -> Needle {
        Needle {
            text: "NEEDLE.".into(),
            depth,
        }
    }

    #[test]
    fn needles_stand_where_asked_and_never_last() {
        let at = |depth: f64| {
            let text = text(&Filler::Noise, &[needle(depth)], 11);
            text.split('\n')
                .position(|l| l == "NEEDLE.")
                .expect("hidden")
        };
        assert_eq!([at(0.0), at(0.5), at(1.0)], [0, 5, 10]);
    }

    #[test]
    fn haystacks_have_exactly_the_tokens_and_all_needles() {
        for target in [20, 100, 257] {
            for depth in [0.0, 0.3, 1.0] {
                let side = Words::default();
                let ids = tokens(&side, &Filler::Noise, &[needle(depth)], target).expect("fits");
                assert_eq!(ids.len(), target);
                assert_eq!(
                    side.decode(&ids).matches("NEEDLE.").count(),
                    1,
                    "{target} {depth}"
                );
            }
        }
        let error = tokens(&Words::default(), &Filler::Noise, &[needle(0.0)], 1);
        assert!(matches!(error, Err(Error::TooShort { needed: 2, .. })));
    }

    #[test]
    fn coded_words_fall_with_the_square_of_their_rank() {
        let words: Vec<String> = (0..50).map(|i| format!("w{i}")).collect();
        let filler = Filler::Coded {
            words,
            draws: Draws::new(&[3]),
        };
        let text = text(&filler, &[], 1000);
        let count = |w: &str| text.split(' ').filter(|u| *u == w).count();
        // 1000 / zeta(2) = 607.9, and a quarter, a ninth, a sixteenth of it.
        assert_eq!(
            ["w0", "w1", "w2", "w3", "w24"].map(count),
            [607, 151, 67, 37, 0]
        );
    }

    #[test]
    fn lists_have_common_words_as_often_as_asked() {
        let list =
            |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let filler = Filler::Listed {
            common: list("c", 10),
            others: list("o", 100),
            repeats: Repeats {
                common: 6,
                others: 2,
            },
            draws: Draws::new(&[3]),
        };
        let text = text(&filler, &[], 60 + 2 * 40);
        let words: Vec<&str> = text.split(' ').skip(1).step_by(2).collect();
        let count = |w: &str| words.iter().filter(|u| **u == w).count();
        assert_eq!((words.len(), count("c0"), count("c9")), (140, 6, 6));
        assert_eq!((count("o0"), count("o39"), count("o40")), (2, 2, 0));
        assert!(text.starts_with("1. ") && text.contains(" 140. "));
        let error = tokens(&Words::default(), &filler, &[], 100);
        assert!(
            matches!(error, Err(Error::TooShort { needed: 161, .. })),
            "80 numbered words are the least"
        );
    }

    #[test]
    fn distractors_are_different_and_stay_when_more_come() {
        let kind = NeedleKind {
            uuid_keys: false,
            uuid_values: false,
        };
        let filler = Filler::Distractors {
            kind,
            draws: Draws::new(&[4]),
        };
        let (few, many) = (filler.units(10), filler.units(300));
        assert_eq!(few, many[..10]);
        let key = |s: &Cow<'_, str>| {
            s.split(" for ")
                .nth(1)
                .and_then(|t| t.split(" is:").next())
                .map(String::from)
        };
        let keys: std::collections::HashSet<_> = many.iter().map(key).collect();
        assert_eq!(keys.len(), 300);
    }

    #[test]
    fn what_is_too_long_is_cut_from_its_middle() {
        assert_eq!(cut_middle((0..10).collect(), 5), [0, 1, 7, 8, 9]);
        assert_eq!(cut_middle((0..3).collect(), 5), [0, 1, 2]);
    }

    #[test]
    fn documents_are_numbered_with_the_needle_among_them() {
        let filler = Filler::Documents {
            documents: vec!["a", "b", "c"],
            draws: Draws::new(&[5]),
        };
        let text = text(&filler, &[needle(0.5)], 5);
        let parts: Vec<&str> = text.split("\n\n").collect();
        assert_eq!(parts.len(), 6);
        assert_eq!(parts[2], "Document 3:\nNEEDLE.");
        assert!(parts[5].starts_with("Document 6:\n"));
    }
}
