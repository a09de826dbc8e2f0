//! Choosing the next token: what a request asks for, as the kernels take it
//! ([`palimpsest_kernels::sample`]). Draws are a function of (seed, position), so a replay or a
//! resumed sequence samples the same.

use std::collections::BTreeMap;

use palimpsest_kernels::likelihood::best;
pub use palimpsest_kernels::likelihood::log_sum_exp;
use palimpsest_kernels::sample::{self, LogitEdit, SampleItem};
use palimpsest_proto::v1::{Sampling, TokenLogprob};

use crate::random::splitmix;

/// Sampling state of one sequence: its parameters and how often each token occurred.
pub struct Sampler {
    params: Sampling,
    banned: Vec<u32>,
    /// Not chosen before a position.
    early: EarlyBans,
    /// Occurrences in prompt and answer; only kept when a penalty needs them.
    counts: BTreeMap<u32, Occurrence>,
}

/// Tokens that are not chosen for positions below `until`: they would end an answer too early. The
/// position alone decides, so a replay chooses the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EarlyBans {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The first position that they may be chosen for.
    pub until: u64,
}

#[derive(Default)]
struct Occurrence {
    prompt: bool,
    generated: u32,
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// Token id.
    pub token: u32,
    /// Log-probabilities under the model, when asked for.
    pub logprob: Option<TokenLogprob>,
}

impl Sampler {
    /// A sampler for validated parameters; `banned` tokens are never chosen.
    pub fn new(params: Sampling, banned: Vec<u32>) -> Self {
        Self {
            params,
            banned,
            early: EarlyBans::default(),
            counts: BTreeMap::new(),
        }
    }

    /// The same sampler, which does not choose some tokens before a position.
    #[must_use]
    pub fn with_early_bans(self, early: EarlyBans) -> Self {
        Self { early, ..self }
    }

    fn penalised(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty.unwrap_or(1.0) != 1.0
            || p.frequency_penalty != 0.0
            || p.presence_penalty != 0.0
    }

    /// Takes note of tokens the sequence has read; `generated` are tokens of the answer.
    pub fn observe(&mut self, tokens: &[u32], generated: bool) {
        if !self.penalised() {
            return;
        }
        for &token in tokens {
            let seen = self.counts.entry(token).or_default();
            if generated {
                seen.generated += 1;
            } else {
                seen.prompt = true;
            }
        }
    }

    /// Whether the request wants log-probabilities, for which all logits are needed.
    pub fn reports_logprobs(&self) -> bool {
        self.params.logprobs.is_some()
    }

    /// Alternatives that are told of beside each token of the prompt; `None`: nothing is told of
    /// them.
    pub fn prompt_alternatives(&self) -> Option<usize> {
        self.params.prompt_logprobs.map(|count| count as usize)
    }

    /// Position of the first token of the prompt that is told of.
    pub const fn prompt_logprobs_from(&self) -> u64 {
        self.params.prompt_logprobs_from
    }

    /// Chooses from `logits` (`[V]`, changed in place) the token for absolute position `position`,
    /// among those of `mask` where there is one; `None` when a logit is not a number.
    pub fn sample(
        &self,
        logits: &mut [f32],
        position: u64,
        mask: Option<&[u32]>,
    ) -> Option<Choice> {
        let raw_lse = self.params.logprobs.map(|_| log_sum_exp(logits));
        let count = self.params.logprobs.unwrap_or(0) as usize;
        let reported = raw_lse.map(|lse| (lse, best(logits, count)));
        let before = raw_lse.map(|_| logits.to_vec());
        let edits = self.edits(position);
        let item = SampleItem {
            mask,
            ..self.item(&edits, position)
        };
        let token = sample::choose(logits, &item)?;
        let logprob = reported.zip(before).map(|((lse, top), raw)| TokenLogprob {
            id: token,
            logprob: raw[token as usize] - lse,
            top: top
                .into_iter()
                .map(|id| TokenLogprob {
                    id,
                    logprob: raw[id as usize] - lse,
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        });
        Some(Choice { token, logprob })
    }

    /// How the token for absolute position `position` is chosen, once `edits` are those of
    /// [`Self::edits`]. Row 0, among all tokens.
    pub fn item<'a>(&self, edits: &'a [LogitEdit], position: u64) -> SampleItem<'a> {
        let p = &self.params;
        SampleItem {
            row: 0,
            temperature: p.temperature.unwrap_or(0.0),
            top_k: p.top_k as usize,
            top_p: p.top_p.unwrap_or(1.0),
            min_p: p.min_p,
            uniform: uniform(p.seed.unwrap_or(0), position),
            edits,
            mask: None,
        }
    }

    /// Bias, penalties and bans for absolute position `position`, by token.
    pub fn edits(&self, position: u64) -> Vec<LogitEdit> {
        let p = &self.params;
        let mut edits = BTreeMap::new();
        for (&id, &bias) in &p.logit_bias {
            edits.insert(
                id,
                LogitEdit {
                    bias,
                    flags: LogitEdit::BIAS,
                    ..LogitEdit::none(id)
                },
            );
        }
        for (&id, seen) in &self.counts {
            let edit = edits.entry(id).or_insert_with(|| LogitEdit::none(id));
            edit.flags |= LogitEdit::PENALTIES;
            edit.repetition = p.repetition_penalty.unwrap_or(1.0);
            edit.frequency = seen.generated as f32 * p.frequency_penalty;
            edit.presence = if seen.generated > 0 {
                p.presence_penalty
            } else {
                0.0
            };
        }
        let early = self.early.tokens.iter();
        let early = early.take_while(|_| position < self.early.until);
        for &id in self.banned.iter().chain(early) {
            edits.entry(id).or_insert_with(|| LogitEdit::none(id)).flags |= LogitEdit::BANNED;
        }
        edits.into_values().collect()
    }
}

/// 53 random bits, a function of seed and position.
fn uniform(seed: u64, position: u64) -> u64 {
    splitmix(splitmix(seed) ^ position) >> 11
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(sampler: &Sampler, logits: &mut [f32], position: u64) -> u32 {
        sampler
            .sample(logits, position, None)
            .expect("numbers")
            .token
    }

    fn sampler(params: Sampling) -> Sampler {
        Sampler::new(params, Vec::new())
    }

    #[test]
    fn greedy_takes_the_first_of_the_best_and_nan_is_no_choice() {
        let s = sampler(Sampling::default());
        assert_eq!(token(&s, &mut [0.0, 2.0, 2.0], 0), 1);
        assert_eq!(s.sample(&mut [0.0, 2.0, f32::NAN, 2.0], 0, None), None);
    }

    #[test]
    fn draws_follow_the_softmax_and_repeat_by_seed() {
        let s = sampler(Sampling {
            temperature: Some(1.0),
            seed: Some(3),
            ..Default::default()
        });
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let mut hits = [0u32; 4];
        let n = 20_000;
        for position in 0..n {
            let drawn = token(&s, &mut logits.clone(), position);
            assert_eq!(drawn, token(&s, &mut logits.clone(), position));
            hits[drawn as usize] += 1;
        }
        let lse = log_sum_exp(&logits);
        for (hit, logit) in hits.iter().zip(logits) {
            let want = (logit - lse).exp() * n as f32;
            assert!(
                (*hit as f32 - want).abs() < 4.0 * want.sqrt() + 1.0,
                "{hit} drawn, {want} expected"
            );
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let logits = [3.0f32, 2.0, 1.0, 0.0];
        let seen = |params: Sampling| {
            let s = sampler(Sampling {
                temperature: Some(1.0),
                seed: Some(1),
                ..params
            });
            let mut ids: Vec<_> = (0..2000)
                .map(|p| token(&s, &mut logits.clone(), p))
                .collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(
            seen(Sampling {
                top_k: 2,
                ..Default::default()
            }),
            [0, 1]
        );
        // 0.644 + 0.237 = 0.88: the third token is needed to reach 0.9
        assert_eq!(
            seen(Sampling {
                top_p: Some(0.9),
                ..Default::default()
            }),
            [0, 1, 2]
        );
        assert_eq!(
            seen(Sampling {
                top_p: Some(0.0),
                ..Default::default()
            }),
            [0]
        );
        // exp(-1) = 0.37 passes 0.3, exp(-2) = 0.14 does not
        assert_eq!(
            seen(Sampling {
                min_p: 0.3,
                ..Default::default()
            }),
            [0, 1]
        );
        assert_eq!(seen(Sampling::default()), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let mut s = sampler(Sampling {
            frequency_penalty: 0.6,
            presence_penalty: 0.5,
            ..Default::default()
        });
        s.observe(&[1], true);
        assert_eq!(
            token(&s, &mut [0.0, 1.0], 0),
            0,
            "1.0 - 0.6 - 0.5 is below 0"
        );
        let mut s = sampler(Sampling {
            repetition_penalty: Some(2.0),
            ..Default::default()
        });
        s.observe(&[1], false);
        assert_eq!(token(&s, &mut [0.6, 1.0], 0), 0, "1.0 / 2 is below 0.6");
        let s = sampler(Sampling {
            logit_bias: [(0, 5.0)].into(),
            ..Default::default()
        });
        assert_eq!(token(&s, &mut [0.0, 1.0], 0), 0);
        assert_eq!(
            token(
                &Sampler::new(Sampling::default(), vec![1]),
                &mut [0.0, 1.0],
                0
            ),
            0
        );
    }

    #[test]
    fn early_bans_hold_up_to_their_position() {
        let early = EarlyBans {
            tokens: vec![1],
            until: 7,
        };
        let s = sampler(Sampling::default()).with_early_bans(early);
        let chosen = [0, 6, 7, 8].map(|position| token(&s, &mut [0.0, 1.0], position));
        assert_eq!(chosen, [0, 0, 1, 1]);
    }

    #[test]
    fn logprobs_are_those_of_the_model_not_of_the_adjusted_logits() {
        let s = sampler(Sampling {
            logprobs: Some(2),
            logit_bias: [(0, 9.0)].into(),
            ..Default::default()
        });
        let choice = s.sample(&mut [0.0, 1.0, 2.0], 0, None).expect("numbers");
        let logprob = choice.logprob.expect("asked for");
        let lse = log_sum_exp(&[0.0, 1.0, 2.0]);
        assert_eq!((choice.token, logprob.logprob), (0, 0.0 - lse));
        assert_eq!(logprob.top.iter().map(|t| t.id).collect::<Vec<_>>(), [2, 1]);
    }

    /// Bias and penalties do not bring back what a mask forbids, and log-probabilities do not see
    /// it.
    #[test]
    fn a_mask_leaves_the_choice_among_its_tokens() {
        let s = sampler(Sampling {
            temperature: Some(1.0),
            seed: Some(9),
            logprobs: Some(1),
            logit_bias: [(2, 50.0)].into(),
            ..Default::default()
        });
        let lse = log_sum_exp(&[0.0, 1.0, 2.0, 0.5]);
        let drawn: Vec<_> = (0..200)
            .map(|position| {
                let mut logits = [0.0, 1.0, 2.0, 0.5];
                let choice = s.sample(&mut logits, position, Some(&[0b1010]));
                let choice = choice.expect("numbers");
                let logprob = choice.logprob.expect("asked for");
                assert_eq!(logprob.top[0].id, 2, "the model's own");
                (choice.token, logprob.logprob)
            })
            .collect();
        for token in [1, 3] {
            assert!(drawn.iter().any(|drawn| drawn.0 == token), "{token}");
        }
        let raw = [0.0, 1.0, 2.0, 0.5f32];
        for (token, logprob) in drawn {
            assert!([1, 3].contains(&token), "{token} is not of the mask");
            assert_eq!(logprob, raw[token as usize] - lse);
        }
    }
}
