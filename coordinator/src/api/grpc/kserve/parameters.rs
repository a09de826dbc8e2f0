//! Parameters of a request: what fields of ours they are, by the names that fields have over HTTP.

use palimpsest_proto::inference::InferParameter;
use palimpsest_proto::inference::infer_parameter::ParameterChoice;
use palimpsest_proto::v1::GenerateRequest;
use tonic::Status;

/// Characters of a name that an error repeats.
const NAME_CHARACTERS: usize = 64;

/// The beginning of a name that a client chose, for errors.
pub(super) fn shorten(name: &str) -> String {
    name.chars().take(NAME_CHARACTERS).collect()
}

/// Sets what a parameter asks for. Ranges are checked where those of all requests are.
///
/// # Errors
/// Names the parameter that has a value of the wrong type, or that nobody knows.
pub(super) fn set(
    request: &mut GenerateRequest,
    name: &str,
    parameter: InferParameter,
) -> Result<(), Status> {
    let value = Value {
        name,
        choice: parameter.parameter_choice,
    };
    let (sampling, stopping, kv) = (
        request.sampling.get_or_insert_default(),
        request.stopping.get_or_insert_default(),
        request.kv.get_or_insert_default(),
    );
    match name {
        "max_tokens" => stopping.max_tokens = Some(value.integer()?),
        "stop" => stopping.stop.push(value.text()?),
        "ignore_eos" => stopping.ignore_eos = value.flag()?,
        "temperature" => sampling.temperature = Some(value.number()?),
        "top_p" => sampling.top_p = Some(value.number()?),
        "top_k" => sampling.top_k = value.limit()?,
        "min_p" => sampling.min_p = value.number()?,
        "repetition_penalty" => sampling.repetition_penalty = Some(value.number()?),
        "frequency_penalty" => sampling.frequency_penalty = value.number()?,
        "presence_penalty" => sampling.presence_penalty = value.number()?,
        "seed" => sampling.seed = Some(value.bits()?),
        "kv_budget" => kv.budget = value.integer()?,
        "kv_policy" => kv.policy = value.text()?,
        "latent_memory" => kv.memory = value.text()?,
        "cache_salt" => request.cache_salt = value.text()?,
        "priority" => request.priority = value.integer()?,
        // Triton's clients give it in microseconds. Less than a millisecond is still a limit.
        "timeout" => request.deadline_ms = value.integer::<u64>()?.div_ceil(1000),
        // The last answer always comes, and says how the request ended.
        "triton_enable_empty_final_response" => _ = value.flag()?,
        _ => {
            let message = format!("parameters: unknown parameter `{}`", shorten(name));
            return Err(Status::invalid_argument(message));
        }
    }
    Ok(())
}

/// The value of a parameter.
struct Value<'a> {
    name: &'a str,
    choice: Option<ParameterChoice>,
}

impl Value<'_> {
    fn wrong(&self, kind: &str) -> Status {
        Status::invalid_argument(format!("parameters: `{}` must be {kind}", self.name))
    }

    fn integer<T: TryFrom<i64> + TryFrom<u64>>(&self) -> Result<T, Status> {
        let number = match self.choice {
            Some(ParameterChoice::Int64Param(number)) => T::try_from(number).ok(),
            Some(ParameterChoice::Uint64Param(number)) => T::try_from(number).ok(),
            _ => None,
        };
        number.ok_or_else(|| self.wrong("an integer in its range"))
    }

    /// An integer, of which -1 means "no limit" as vLLM's clients say it.
    fn limit(&self) -> Result<u32, Status> {
        match self.choice {
            Some(ParameterChoice::Int64Param(-1)) => Ok(0),
            _ => self.integer(),
        }
    }

    /// An integer of 64 bits, whichever they are.
    fn bits(&self) -> Result<u64, Status> {
        match self.choice {
            Some(ParameterChoice::Int64Param(number)) => Ok(number.cast_unsigned()),
            _ => self.integer(),
        }
    }

    fn number(&self) -> Result<f32, Status> {
        match self.choice {
            Some(ParameterChoice::DoubleParam(number)) => Ok(number as f32),
            Some(ParameterChoice::Int64Param(number)) => Ok(number as f32),
            Some(ParameterChoice::Uint64Param(number)) => Ok(number as f32),
            _ => Err(self.wrong("a number")),
        }
    }

    fn flag(&self) -> Result<bool, Status> {
        match self.choice {
            Some(ParameterChoice::BoolParam(flag)) => Ok(flag),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn text(self) -> Result<String, Status> {
        match self.choice {
            Some(ParameterChoice::StringParam(text)) => Ok(text),
            _ => Err(self.wrong("a string")),
        }
    }
}
