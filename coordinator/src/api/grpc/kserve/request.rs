//! A `ModelInferRequest` as the service takes it.

use bytes::{Buf, Bytes};
use palimpsest_proto::inference::ModelInferRequest;
use palimpsest_proto::inference::model_infer_request::InferInputTensor;
use palimpsest_proto::v1::GenerateRequest;
use palimpsest_proto::v1::generate_request::Input;
use prost::Message;
use tonic::Status;

use super::{limits, parameters};
use crate::service::Service;

/// The tensor that a request has.
pub(super) const INPUT: &str = "text_input";
/// The tensor that an answer has.
pub(super) const OUTPUT: &str = "text_output";
/// Type of both.
pub(super) const BYTES: &str = "BYTES";
/// The only version of a model.
pub(super) const VERSION: &str = "1";

/// A request, and the form of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// What is asked of the service.
    pub request: GenerateRequest,
    /// How it is answered.
    pub form: Form,
}

/// How a request is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// The client's name of the request, which comes back.
    pub id: String,
    /// The text stands apart from its tensor, as it did in the request.
    pub is_raw: bool,
    /// The tensor's dimensions, which are those of the request's.
    pub shape: Vec<i64>,
    /// Name of the model that answers; empty until that is known.
    pub model: String,
}

impl Form {
    /// The same, of an answer of this service.
    pub(super) fn of(self, service: &Service) -> Self {
        Self {
            model: service.model.name().to_owned(),
            ..self
        }
    }
}

/// Whether this is the version that a model has, or none.
pub(super) fn is_version(version: &str) -> bool {
    version.is_empty() || version == VERSION
}

/// Reads a message as it came, whose lists are counted before they are decoded.
///
/// # Errors
/// What is wrong with it, for the client.
pub fn read(message: Bytes) -> Result<Asked, Status> {
    limits::check(&message)?;
    let decoded = ModelInferRequest::decode(message);
    let bad = |_| Status::invalid_argument("the message cannot be decoded");
    asked(decoded.map_err(bad)?)
}

/// What a message asks of the service.
pub(super) fn asked(message: ModelInferRequest) -> Result<Asked, Status> {
    if !is_version(&message.model_version) {
        let message = "model_version: a model has the version \"1\" only, or leave it empty";
        return Err(Status::not_found(message));
    }
    for output in &message.outputs {
        if output.name != OUTPUT {
            return Err(bad(format!("outputs: the only output is `{OUTPUT}`")));
        }
        if !output.parameters.is_empty() {
            let what = "are not supported: leave them out";
            return Err(bad(format!("outputs: parameters of `{OUTPUT}` {what}")));
        }
    }
    let mut request = GenerateRequest {
        model: message.model_name,
        request_id: message.id.clone(),
        ..Default::default()
    };
    for (name, parameter) in message.parameters {
        parameters::set(&mut request, &name, parameter)?;
    }
    let Text {
        text,
        shape,
        is_raw,
    } = text(message.inputs, message.raw_input_contents)?;
    request.input = Some(Input::Text(text));
    let form = Form {
        id: message.id,
        is_raw,
        shape,
        model: String::new(),
    };
    Ok(Asked { request, form })
}

/// The text of a request, and how it came.
struct Text {
    text: String,
    shape: Vec<i64>,
    is_raw: bool,
}

fn text(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> Result<Text, Status> {
    if let Some(other) = inputs.iter().find(|input| input.name != INPUT) {
        let name = parameters::shorten(&other.name);
        let message = format!("inputs: `{name}` is no input, the only one is `{INPUT}`");
        return Err(bad(message));
    }
    let Ok([input]) = <[InferInputTensor; 1]>::try_from(inputs) else {
        return Err(bad(format!("inputs: send `{INPUT}` once")));
    };
    if input.datatype != BYTES || !matches!(input.shape[..], [1] | [1, 1]) {
        let message = format!("inputs: `{INPUT}` is one text, {BYTES} of the shape [1]");
        return Err(bad(message));
    }
    if !input.parameters.is_empty() {
        let message = format!("inputs: parameters of `{INPUT}` are not supported: leave them out");
        return Err(bad(message));
    }
    let is_raw = !raw.is_empty();
    let bytes = match (<[Bytes; 1]>::try_from(raw), input.contents) {
        (Ok([raw]), None) => element(raw),
        (Err(none), Some(contents)) if none.is_empty() => {
            let elements = <[Bytes; 1]>::try_from(contents.bytes_contents);
            elements.ok().map(|[element]| element)
        }
        _ => None,
    };
    let bytes = bytes.ok_or_else(|| {
        bad(format!(
            "inputs: `{INPUT}` has one element, in raw_input_contents behind its length or in \
             contents.bytes_contents"
        ))
    })?;
    let text = String::from_utf8(bytes.into());
    let text = text.map_err(|_| bad(format!("inputs: `{INPUT}` is no UTF-8")))?;
    Ok(Text {
        text,
        shape: input.shape,
        is_raw,
    })
}

/// The only element of a raw tensor of BYTES, which stands behind its length.
fn element(mut raw: Bytes) -> Option<Bytes> {
    let length = raw.try_get_u32_le().ok()?;
    (raw.len() == length as usize).then_some(raw)
}

fn bad(message: String) -> Status {
    Status::invalid_argument(message)
}
