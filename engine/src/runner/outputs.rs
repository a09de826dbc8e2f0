//! What the coordinator is told of a step.

use std::collections::HashMap;

use palimpsest_guide::Mask;
use palimpsest_proto::internal::v1 as internal;
use palimpsest_proto::v1;

use super::sequence::Admitted;
use crate::decoder::Answer;
use crate::error::Error;
use crate::kv::SequenceCache;
use crate::sampler::Choice;

const NOT_A_NUMBER: &str = "the model's output is not a number; its weights may be damaged";

/// The answer to a sequence that was refused.
pub(super) fn failed(sequence: u64, error: &Error) -> internal::SequenceOutput {
    internal::SequenceOutput {
        sequence,
        error: error.to_string(),
        ..Default::default()
    }
}

/// What the guide of a sequence says of its next token.
type Guidance<'a> = std::result::Result<&'a Mask, &'a palimpsest_guide::Error>;

/// What a step did for a sequence.
pub(super) struct Done<'a> {
    /// Of the decoder; `None`: no token could be chosen yet.
    pub(super) answer: Option<Answer>,
    /// What its guide allowed, if it has one.
    pub(super) mask: Option<Guidance<'a>>,
    /// Of the tokens of the prompt that follow those of the step, if they are wanted.
    pub(super) prompt_logprobs: Vec<v1::TokenLogprob>,
}

/// The answer to a sequence of a step.
pub(super) fn output(
    admitted: &Admitted<'_>,
    done: Done<'_>,
    entry_bytes: u64,
) -> internal::SequenceOutput {
    let Done {
        answer,
        mask,
        prompt_logprobs,
    } = done;
    let (step, sequence) = (admitted.step, &admitted.sequence);
    let cache = &sequence.cache;
    let mut output = internal::SequenceOutput {
        sequence: step.sequence,
        cache: Some(internal::CacheState {
            held_entries: if cache.layout.leads {
                cache.held_entries()
            } else {
                0
            },
            evicted_entries: if cache.layout.leads { cache.evicted } else { 0 },
            held_bytes: cache.held_bytes(entry_bytes),
        }),
        ..Default::default()
    };
    let mask = match mask.transpose() {
        Ok(mask) => mask,
        Err(error) => return guide_failed(output, error.to_string()),
    };
    output.awaits_guide = answer.is_none();
    if let Some(answer) = answer.filter(|_| step.sample) {
        let choice = match answer {
            Answer::Token(token) => token.map(|token| Choice {
                token,
                logprob: None,
            }),
            Answer::Logits(mut logits) => {
                let mask = mask.map(Mask::words);
                sequence.sampler.sample(&mut logits, cache.seen, mask)
            }
        };
        let Some(choice) = choice else {
            output.error = NOT_A_NUMBER.into();
            return output;
        };
        if mask.is_some_and(|mask| !mask.allows(choice.token)) {
            let what = "no token that the guide allows has a probability: change the guide, or \
                        what bans tokens";
            return guide_failed(output, what.to_owned());
        }
        output.token = Some(choice.token);
        output.logprob = choice.logprob;
    }
    let pool = sequence.pool.as_ref().filter(|_| admitted.ends_prompt());
    let embedding = pool.map(|pool| v1::Embedding {
        values: pool.embedding(),
    });
    if !are_numbers(&prompt_logprobs, embedding.as_ref()) {
        output.token = None;
        output.error = NOT_A_NUMBER.into();
        return output;
    }
    output.prompt_logprobs = prompt_logprobs;
    output.embedding = embedding;
    if step.retention_report && cache.layout.leads && !output.awaits_guide {
        output.retention = Some(retention(cache));
    }
    output
}

/// Whether what is told of a prompt can be told.
fn are_numbers(logprobs: &[v1::TokenLogprob], embedding: Option<&v1::Embedding>) -> bool {
    let values = embedding.into_iter().flat_map(|one| &one.values);
    let logprobs = logprobs.iter().map(|one| &one.logprob);
    values.chain(logprobs).all(|value| value.is_finite())
}

/// The answer to a sequence whose guide does not let it go on.
fn guide_failed(output: internal::SequenceOutput, error: String) -> internal::SequenceOutput {
    internal::SequenceOutput {
        error,
        guide_failed: true,
        ..output
    }
}

/// Which positions each head retains.
pub fn retention(cache: &SequenceCache) -> v1::RetentionReport {
    let heads = cache
        .heads
        .iter()
        .enumerate()
        .map(|(index, head)| v1::HeadRetention {
            layer: cache.layout.layer_of(index) as u32,
            kv_head: cache.layout.kv_head_of(index) as u32,
            positions: head.positions.clone(),
        });
    v1::RetentionReport {
        heads: heads.collect(),
    }
}

/// Brings the answers into the order of the plan's sequences.
pub(super) fn sort(outputs: &mut [internal::SequenceOutput], plan: &internal::StepPlan) {
    let order: HashMap<u64, usize> = plan
        .sequences
        .iter()
        .enumerate()
        .map(|(i, s)| (s.sequence, i))
        .collect();
    outputs.sort_by_key(|o| order.get(&o.sequence).copied());
}
