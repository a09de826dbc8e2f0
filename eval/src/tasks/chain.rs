//! Variable tracking.

use super::filler::Filler;
use super::haystack::{self, Needle};
use super::question::{Judge, Question};
use super::vocabulary::{distinct, letters};
use crate::draws::Draws;

/// Lines of noise in the worked example.
const EXAMPLE_NOISE: usize = 10;

/// A chain of assignments with its value.
struct Chain {
    names: Vec<String>,
    value: String,
    needles: Vec<Needle>,
}

impl Chain {
    fn new(draws: &mut Draws, hops: usize, letters_each: usize) -> Self {
        let names = distinct(hops + 1, || letters(draws, b'A', letters_each));
        let value = (10_000 + draws.below(90_000)).to_string();
        let mut depths: Vec<f64> = names.iter().map(|_| draws.unit()).collect();
        depths.sort_by(f64::total_cmp);
        let assignment = |i: usize| match i {
            0 => format!("VAR {} = {value}", names[0]),
            _ => format!("VAR {} = VAR {}", names[i], names[i - 1]),
        };
        let needles = depths
            .into_iter()
            .enumerate()
            .map(|(i, depth)| Needle {
                text: assignment(i),
                depth,
            })
            .collect();
        Self {
            names,
            value,
            needles,
        }
    }

    fn question(&self) -> String {
        format!(
            "\nQuestion: Find all variables that are assigned the value {} in the text above.",
            self.value
        )
    }

    fn answer_prefix(&self) -> String {
        format!(
            "Answer: According to the chain(s) of variable assignment in the text above, {} \
             variables are assigned the value {}, they are:",
            self.names.len(),
            self.value
        )
    }
}

const INSTRUCTION: &str =
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";

/// A chain in noise, after a worked example with shorter names and another value, as RULER has it.
pub(super) fn question<'a>(draws: &mut Draws, hops: usize) -> Question<'a> {
    let chain = Chain::new(draws, hops, 5);
    let mut example = Chain::new(draws, hops, 3);
    while example.value == chain.value {
        example = Chain::new(draws, hops, 3);
    }
    let shown = format!(
        "{INSTRUCTION}{}{} {} {}\n\n",
        haystack::text(&Filler::Noise, &example.needles, EXAMPLE_NOISE),
        example.question(),
        example.answer_prefix(),
        example.names.join(" ")
    );
    Question {
        instruction: format!("{shown}{INSTRUCTION}"),
        filler: Filler::Noise,
        question: chain.question(),
        answer_prefix: chain.answer_prefix(),
        expected: format!(" {}", chain.names.join(" ")),
        needles: chain.needles,
        answers: chain.names,
        judge: Judge::All,
        chat: true,
    }
}
