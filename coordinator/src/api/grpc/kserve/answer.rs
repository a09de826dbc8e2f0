//! An answer as tensors: whole, or piece by piece.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use palimpsest_proto::error::Reason;
use palimpsest_proto::inference::infer_parameter::ParameterChoice;
use palimpsest_proto::inference::model_infer_response::InferOutputTensor;
use palimpsest_proto::inference::{
    InferParameter, InferTensorContents, ModelInferResponse, ModelStreamInferResponse,
};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::{FinishReason, Finished};
use tonic::Status;

use super::request::{BYTES, Form, OUTPUT, VERSION};
use crate::answer::Answer;
use crate::request::too_large;

/// Whether an answer of a stream is its request's last, as Triton's clients look for it.
const IS_LAST: &str = "triton_final_response";

/// All of an answer, of at most so many bytes.
pub(super) async fn whole(
    mut answer: Answer,
    form: &Form,
    most: usize,
) -> Result<ModelInferResponse, Status> {
    let (mut text, mut ended) = (String::new(), Finished::default());
    while let Some(event) = answer.next().await {
        match event?.event {
            Some(Event::Delta(delta)) => {
                text.push_str(&delta.text);
                if text.len() > most {
                    answer.given_up().because_of(Reason::AnswerTooLarge);
                    return Err(too_large(most).into());
                }
            }
            Some(Event::Finished(finished)) => ended = finished,
            _ => {}
        }
    }
    Ok(response(form, text, figures(&ended)))
}

/// What one event of the service adds to a stream; `None`: nothing.
pub(super) fn piece(event: Event, form: &Form) -> Option<ModelStreamInferResponse> {
    let (text, parameters) = match event {
        Event::Started(_)
        | Event::PromptLogprobs(_)
        | Event::Embedding(_)
        | Event::RetentionMap(_) => return None,
        Event::Delta(delta) if delta.text.is_empty() => return None,
        Event::Delta(delta) => (delta.text, last(false)),
        Event::Finished(finished) => {
            let mut parameters = figures(&finished);
            parameters.append(&mut last(true));
            (String::new(), parameters)
        }
    };
    Some(ModelStreamInferResponse {
        error_message: String::new(),
        infer_response: Some(response(form, text, parameters)),
    })
}

/// The last answer of a request that failed. The stream goes on: what is wrong with one request is
/// no fault of the next.
pub(super) fn failed(id: &str, status: &Status) -> ModelStreamInferResponse {
    // An empty message would mean that nothing is wrong.
    let error_message = match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    };
    ModelStreamInferResponse {
        error_message,
        infer_response: Some(ModelInferResponse {
            id: id.to_owned(),
            parameters: last(true),
            ..ModelInferResponse::default()
        }),
    }
}

fn response(
    form: &Form,
    text: String,
    parameters: BTreeMap<String, InferParameter>,
) -> ModelInferResponse {
    let (contents, raw) = if form.is_raw {
        let mut raw = BytesMut::with_capacity(size_of::<u32>() + text.len());
        // An answer is shorter than 4 GiB: its request says how long it may be.
        raw.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
        raw.put_slice(text.as_bytes());
        (None, vec![raw.freeze()])
    } else {
        let contents = InferTensorContents {
            bytes_contents: vec![Bytes::from(text)],
            ..InferTensorContents::default()
        };
        (Some(contents), Vec::new())
    };
    ModelInferResponse {
        model_name: form.model.clone(),
        model_version: VERSION.into(),
        id: form.id.clone(),
        parameters,
        outputs: vec![InferOutputTensor {
            name: OUTPUT.into(),
            datatype: BYTES.into(),
            shape: form.shape.clone(),
            parameters: BTreeMap::new(),
            contents,
        }],
        raw_output_contents: raw,
    }
}

fn last(is_last: bool) -> BTreeMap<String, InferParameter> {
    let flag = ParameterChoice::BoolParam(is_last);
    BTreeMap::from([(IS_LAST.to_owned(), parameter(flag))])
}

/// How a request ended, and what it took.
fn figures(finished: &Finished) -> BTreeMap<String, InferParameter> {
    let usage = finished.usage.clone().unwrap_or_default();
    let reason = match finished.reason() {
        FinishReason::Length | FinishReason::Read => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::Eos | FinishReason::Stop | FinishReason::Unspecified => "stop",
    };
    let numbers = [
        ("prompt_tokens", usage.prompt_tokens),
        ("generated_tokens", usage.generated_tokens),
        ("cached_tokens", usage.cached_tokens),
        ("evicted_tokens", usage.evicted_tokens),
        ("held_slots", usage.held_slots),
        ("held_bytes", usage.held_bytes),
        ("full_cache_bytes", usage.full_cache_bytes),
    ];
    let number = |number: u64| {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        parameter(ParameterChoice::Int64Param(number))
    };
    let mut figures: BTreeMap<String, InferParameter> = numbers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), number(value)))
        .collect();
    let mut say = |name: &str, text: String| {
        let text = ParameterChoice::StringParam(text);
        figures.insert(name.to_owned(), parameter(text));
    };
    say("finish_reason", reason.into());
    if !usage.warnings.is_empty() {
        say("warnings", usage.warnings.join("; "));
    }
    figures
}

const fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter {
        parameter_choice: Some(choice),
    }
}
