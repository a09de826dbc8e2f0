//! Choosing the next token. Draws are a function of (seed, position), so a replay or a resumed sequence samples the same.

use crate::policy::splitmix;
use palimpsest_proto::v1::{Sampling, TokenLogprob};
use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Sampling state of one sequence: its parameters and how often each token occurred.
pub struct Sampler {
    params: Sampling,
    banned: Vec<u32>,
    /// Occurrences in prompt and answer; only kept when a penalty needs them.
    counts: BTreeMap<u32, Occurrence>,
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
        Self { params, banned, counts: BTreeMap::new() }
    }

    fn penalised(&self) -> bool {
        let p = &self.params;
        p.repetition_penalty.unwrap_or(1.0) != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0
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

    /// Chooses from `logits` (`[V]`, changed in place) the token for absolute position `position`.
    pub fn sample(&self, logits: &mut [f32], position: u64) -> Choice {
        let raw_lse = self.params.logprobs.map(|_| log_sum_exp(logits));
        let reported = raw_lse.map(|lse| (lse, self.top(logits)));
        let before = raw_lse.map(|_| logits.to_vec());
        self.adjust(logits);
        let token = match self.params.temperature.unwrap_or(0.0) {
            t if t <= 0.0 => argmax(logits),
            t => self.draw(logits, t, position),
        };
        let logprob = reported.zip(before).map(|((lse, top), raw)| TokenLogprob {
            id: token,
            logprob: raw[token as usize] - lse,
            top: top
                .into_iter()
                .map(|id| TokenLogprob { id, logprob: raw[id as usize] - lse, ..Default::default() })
                .collect(),
            ..Default::default()
        });
        Choice { token, logprob }
    }

    fn top(&self, logits: &[f32]) -> Vec<u32> {
        let count = self.params.logprobs.unwrap_or(0) as usize;
        let mut ids = best_first(logits, count);
        ids.truncate(count);
        ids
    }

    /// Bias, penalties (as in OpenAI's API; repetition as in CTRL, arXiv 1909.05858) and bans.
    fn adjust(&self, logits: &mut [f32]) {
        let p = &self.params;
        for (&id, &bias) in &p.logit_bias {
            logits[id as usize] += bias;
        }
        let repetition = p.repetition_penalty.unwrap_or(1.0);
        for (&id, seen) in &self.counts {
            let logit = &mut logits[id as usize];
            *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            *logit -= seen.generated as f32 * p.frequency_penalty;
            *logit -= if seen.generated > 0 { p.presence_penalty } else { 0.0 };
        }
        for &id in &self.banned {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }

    fn draw(&self, logits: &[f32], temperature: f32, position: u64) -> u32 {
        let p = &self.params;
        let limit = if p.top_k == 0 { logits.len() } else { p.top_k as usize };
        let ids = best_first(logits, limit);
        let top = logits[ids[0] as usize];
        let weight = |id: u32| f64::from((logits[id as usize] - top) / temperature).exp();
        let mut kept: Vec<(u32, f64)> = ids.iter().map(|&id| (id, weight(id))).collect();
        // min-p: relative to the best token; top-p: the smallest set that reaches the mass, the best token always.
        kept.retain(|&(_, w)| w >= f64::from(p.min_p));
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let wanted = total * f64::from(p.top_p.unwrap_or(1.0));
        let mut mass = 0.0;
        let enough = kept.iter().position(|k| {
            mass += k.1;
            mass >= wanted
        });
        kept.truncate(enough.map_or(kept.len(), |i| i + 1));
        let total: f64 = kept.iter().map(|k| k.1).sum();
        let mut left = uniform(p.seed.unwrap_or(0), position) * total;
        for &(id, w) in &kept {
            left -= w;
            if left < 0.0 {
                return id;
            }
        }
        kept[kept.len() - 1].0
    }
}

/// Token ids by falling logit, ties to the smaller id; at least the best `count` are in order and nothing else is
/// returned.
fn best_first(logits: &[f32], count: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| -> Ordering { logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)) };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count > 0 && count < ids.len() {
        ids.select_nth_unstable_by(count - 1, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// Index of the largest value, the first of equals; NaN never wins.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    best.1
}

/// `ln Σ exp(x)` in double precision.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - top).exp()).sum();
    top + sum.ln() as f32
}

/// Uniform in [0, 1), a function of seed and position.
fn uniform(seed: u64, position: u64) -> f64 {
    (splitmix(splitmix(seed) ^ position) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(params: Sampling) -> Sampler {
        Sampler::new(params, Vec::new())
    }

    #[test]
    fn greedy_takes_the_first_of_the_best_and_ignores_nan() {
        let s = sampler(Sampling::default());
        assert_eq!(s.sample(&mut [0.0, 2.0, f32::NAN, 2.0], 0).token, 1);
    }

    #[test]
    fn draws_follow_the_softmax_and_repeat_by_seed() {
        let s = sampler(Sampling { temperature: Some(1.0), seed: Some(3), ..Default::default() });
        let logits = [0.0f32, 1.0, 2.0, -1.0];
        let mut hits = [0u32; 4];
        let n = 20_000;
        for position in 0..n {
            let token = s.sample(&mut logits.clone(), position).token;
            assert_eq!(token, s.sample(&mut logits.clone(), position).token);
            hits[token as usize] += 1;
        }
        let lse = log_sum_exp(&logits);
        for (hit, logit) in hits.iter().zip(logits) {
            let want = (logit - lse).exp() * n as f32;
            assert!((*hit as f32 - want).abs() < 4.0 * want.sqrt() + 1.0, "{hit} drawn, {want} expected");
        }
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let logits = [3.0f32, 2.0, 1.0, 0.0];
        let seen = |params: Sampling| {
            let s = sampler(Sampling { temperature: Some(1.0), seed: Some(1), ..params });
            let mut ids: Vec<_> = (0..2000).map(|p| s.sample(&mut logits.clone(), p).token).collect();
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        assert_eq!(seen(Sampling { top_k: 2, ..Default::default() }), [0, 1]);
        // 0.644 + 0.237 = 0.88: the third token is needed to reach 0.9
        assert_eq!(seen(Sampling { top_p: Some(0.9), ..Default::default() }), [0, 1, 2]);
        assert_eq!(seen(Sampling { top_p: Some(0.0), ..Default::default() }), [0]);
        // exp(-1) = 0.37 passes 0.3, exp(-2) = 0.14 does not
        assert_eq!(seen(Sampling { min_p: 0.3, ..Default::default() }), [0, 1]);
        assert_eq!(seen(Sampling::default()), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let mut s = sampler(Sampling { frequency_penalty: 0.6, presence_penalty: 0.5, ..Default::default() });
        s.observe(&[1], true);
        assert_eq!(s.sample(&mut [0.0, 1.0], 0).token, 0, "1.0 - 0.6 - 0.5 is below 0");
        let mut s = sampler(Sampling { repetition_penalty: Some(2.0), ..Default::default() });
        s.observe(&[1], false);
        assert_eq!(s.sample(&mut [0.6, 1.0], 0).token, 0, "1.0 / 2 is below 0.6");
        let s = sampler(Sampling { logit_bias: [(0, 5.0)].into(), ..Default::default() });
        assert_eq!(s.sample(&mut [0.0, 1.0], 0).token, 0);
        assert_eq!(Sampler::new(Sampling::default(), vec![1]).sample(&mut [0.0, 1.0], 0).token, 0);
    }

    #[test]
    fn logprobs_are_those_of_the_model_not_of_the_adjusted_logits() {
        let s = sampler(Sampling { logprobs: Some(2), logit_bias: [(0, 9.0)].into(), ..Default::default() });
        let choice = s.sample(&mut [0.0, 1.0, 2.0], 0);
        let logprob = choice.logprob.expect("asked for");
        let lse = log_sum_exp(&[0.0, 1.0, 2.0]);
        assert_eq!((choice.token, logprob.logprob), (0, 0.0 - lse));
        assert_eq!(logprob.top.iter().map(|t| t.id).collect::<Vec<_>>(), [2, 1]);
    }
}
