//! How tokens are chosen: defaults and ranges.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::Sampling;

/// Alternatives whose log-probabilities a request may ask for.
pub const MAX_LOGPROBS: u32 = 20;
/// Entries of `logit_bias`.
pub const MAX_BIASES: usize = 1024;

/// A value of a request, and whether it lies in its range.
struct Ranged {
    field: &'static str,
    value: f32,
    is_valid: bool,
    range: &'static str,
}

/// Fills defaults in and checks the result. A seed is drawn where the request gives none.
pub(super) fn validate(mut sampling: Sampling, vocabulary: u64) -> Result<Sampling, RequestError> {
    sampling.temperature.get_or_insert(0.0);
    sampling.top_p.get_or_insert(1.0);
    sampling.repetition_penalty.get_or_insert(1.0);
    for ranged in ranges(&sampling) {
        let Ranged {
            field,
            value,
            is_valid,
            range,
        } = ranged;
        if !is_valid {
            return Err(bad(format!(
                "{field} is {value}, it must be a number in the range {range}"
            )));
        }
    }
    validate_biases(&sampling, vocabulary)?;
    if let Some(count) = sampling.logprobs.filter(|&count| count > MAX_LOGPROBS) {
        return Err(bad(format!(
            "logprobs is {count}, over the limit of {MAX_LOGPROBS}"
        )));
    }
    sampling.seed.get_or_insert_with(rand::random);
    Ok(sampling)
}

/// What has a range. NaN and the infinities are in none.
fn ranges(sampling: &Sampling) -> [Ranged; 6] {
    let ranged = |field, value: f32, is_valid: fn(f32) -> bool, range| Ranged {
        field,
        value,
        is_valid: is_valid(value),
        range,
    };
    let penalty: fn(f32) -> bool = |value| value.abs() <= 2.0;
    [
        ranged(
            "temperature",
            sampling.temperature(),
            |value| (0.0..=100.0).contains(&value),
            "0 to 100",
        ),
        ranged(
            "top_p",
            sampling.top_p(),
            |value| value > 0.0 && value <= 1.0,
            "above 0, up to 1",
        ),
        ranged(
            "min_p",
            sampling.min_p,
            |value| (0.0..=1.0).contains(&value),
            "0 to 1",
        ),
        ranged(
            "repetition_penalty",
            sampling.repetition_penalty(),
            |value| value > 0.0 && value <= 100.0,
            "above 0, up to 100",
        ),
        ranged(
            "frequency_penalty",
            sampling.frequency_penalty,
            penalty,
            "-2 to 2",
        ),
        ranged(
            "presence_penalty",
            sampling.presence_penalty,
            penalty,
            "-2 to 2",
        ),
    ]
}

fn validate_biases(sampling: &Sampling, vocabulary: u64) -> Result<(), RequestError> {
    if sampling.logit_bias.len() > MAX_BIASES {
        return Err(bad(format!(
            "logit_bias has {} entries, over the limit of {MAX_BIASES}",
            sampling.logit_bias.len()
        )));
    }
    for (&id, &bias) in &sampling.logit_bias {
        if u64::from(id) >= vocabulary {
            return Err(bad(format!(
                "logit_bias names token id {id}, which is not below the vocabulary of {vocabulary}"
            )));
        }
        if !(-100.0..=100.0).contains(&bias) {
            return Err(bad(format!(
                "logit_bias of token {id} is {bias}, it must be a number in the range -100 to 100"
            )));
        }
    }
    Ok(())
}

fn bad(message: String) -> RequestError {
    RequestError::new(Reason::BadSampling, message)
}
