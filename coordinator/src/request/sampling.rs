//! How tokens are chosen: defaults and ranges.

use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::Sampling;

/// Alternatives whose log-probabilities a request may ask for.
pub const MAX_LOGPROBS: u32 = 20;
/// Entries of `logit_bias`.
pub const MAX_BIASES: usize = 1024;

const LOGIT_BIAS: &str = "sampling.logit_bias";

/// A value of a request, and whether it lies in its range.
struct Ranged {
    path: &'static str,
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
            path,
            value,
            is_valid,
            range,
        } = ranged;
        if !is_valid {
            let field = path.trim_start_matches("sampling.");
            let message = format!("{field} is {value}, it must be a number in the range {range}");
            return Err(bad(path, message));
        }
    }
    validate_biases(&sampling, vocabulary)?;
    let counts = [
        ("sampling.logprobs", sampling.logprobs),
        ("sampling.prompt_logprobs", sampling.prompt_logprobs),
    ];
    for (path, count) in counts {
        if let Some(count) = count.filter(|&count| count > MAX_LOGPROBS) {
            let field = path.trim_start_matches("sampling.");
            let message = format!("{field} is {count}, over the limit of {MAX_LOGPROBS}");
            return Err(bad(path, message));
        }
    }
    if sampling.prompt_logprobs.is_none() && sampling.prompt_logprobs_from > 0 {
        let message =
            "prompt_logprobs_from says of which tokens to tell: send prompt_logprobs, too";
        return Err(bad("sampling.prompt_logprobs_from", message.to_owned()));
    }
    sampling.seed.get_or_insert_with(rand::random);
    Ok(sampling)
}

/// What has a range. NaN and the infinities are in none.
fn ranges(sampling: &Sampling) -> [Ranged; 6] {
    let ranged = |path, value: f32, is_valid: fn(f32) -> bool, range| Ranged {
        path,
        value,
        is_valid: is_valid(value),
        range,
    };
    let penalty: fn(f32) -> bool = |value| value.abs() <= 2.0;
    [
        ranged(
            "sampling.temperature",
            sampling.temperature(),
            |value| (0.0..=100.0).contains(&value),
            "0 to 100",
        ),
        ranged(
            "sampling.top_p",
            sampling.top_p(),
            |value| value > 0.0 && value <= 1.0,
            "above 0, up to 1",
        ),
        ranged(
            "sampling.min_p",
            sampling.min_p,
            |value| (0.0..=1.0).contains(&value),
            "0 to 1",
        ),
        ranged(
            "sampling.repetition_penalty",
            sampling.repetition_penalty(),
            |value| value > 0.0 && value <= 100.0,
            "above 0, up to 100",
        ),
        ranged(
            "sampling.frequency_penalty",
            sampling.frequency_penalty,
            penalty,
            "-2 to 2",
        ),
        ranged(
            "sampling.presence_penalty",
            sampling.presence_penalty,
            penalty,
            "-2 to 2",
        ),
    ]
}

fn validate_biases(sampling: &Sampling, vocabulary: u64) -> Result<(), RequestError> {
    if sampling.logit_bias.len() > MAX_BIASES {
        let count = sampling.logit_bias.len();
        let message = format!("logit_bias has {count} entries, over the limit of {MAX_BIASES}");
        return Err(bad(LOGIT_BIAS, message));
    }
    for (&id, &bias) in &sampling.logit_bias {
        if u64::from(id) >= vocabulary {
            let message = format!(
                "logit_bias names token id {id}, which is not below the vocabulary of {vocabulary}"
            );
            return Err(bad(LOGIT_BIAS, message));
        }
        if !(-100.0..=100.0).contains(&bias) {
            let message = format!(
                "logit_bias of token {id} is {bias}, it must be a number in the range -100 to 100"
            );
            return Err(bad(LOGIT_BIAS, message));
        }
    }
    Ok(())
}

fn bad(path: &'static str, message: String) -> RequestError {
    RequestError::new(Reason::BadSampling, message).in_field(path)
}
