//! `/v1/embeddings`: OpenAI's object.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use palimpsest_proto::error::{Reason, RequestError};
use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::{Embedding, Usage};
use serde_json::json;

use super::answers::write_json;
use super::error::HttpError;
use super::generate::Caller;
use super::wire::{EmbeddingBody, EmbeddingsAsked, Encoding};
use crate::answer::Answer;
use crate::budget::held;
use crate::ids::RequestId;
use crate::request::too_large;
use crate::service::{Prompted, Service};

/// Bytes of a number as text, with its comma: embeddings have length 1, so most begin with zeros.
const FLOAT_BYTES: u64 = 12;

/// What a text became, and what that cost.
struct Embedded {
    embedding: Embedding,
    usage: Usage,
}

/// Answers a request whose body was read.
///
/// # Errors
/// What is wrong with the request, or why it is not taken or fails now; nothing is answered then.
pub async fn answer(
    service: &Service,
    caller: Caller,
    body: EmbeddingBody,
) -> Result<Response, HttpError> {
    let EmbeddingsAsked {
        inputs,
        request,
        encoding,
        dimensions,
    } = body.asked()?;
    let own = service.model.info.embedding_length;
    if own > 0 {
        let checked = check_dimensions(dimensions, own);
        let checked = checked.and_then(|()| check_size(service, inputs.len(), encoding));
        let tenant = caller.call.tenant.as_ref().map(|tenant| tenant.name());
        checked.inspect_err(|error| service.metrics.refused(tenant, error.body.code))?;
    }
    let most = service.config.max_answer_bytes;
    let mut out = br#"{"object":"list","data":["#.to_vec();
    let (mut index, mut prompt_tokens) = (0, 0);
    let mut inputs = inputs.into_iter();
    loop {
        let prompted = |(number, input)| {
            let mut request = request.clone();
            request.request_id = RequestId::of_choice(&caller.id, index + number);
            Prompted {
                input: Some(input),
                choices: vec![request],
                ..Prompted::default()
            }
        };
        let some: Vec<_> = inputs
            .by_ref()
            .take(service.at_once(&caller.call))
            .enumerate()
            .map(prompted)
            .collect();
        if some.is_empty() {
            break;
        }
        for answer in service.generate_all(&caller.call, some).await? {
            let Embedded { embedding, usage } = embedded(answer).await?;
            check_dimensions(dimensions, embedding.values.len() as u64)?;
            write(&mut out, index, encoding, &embedding);
            if out.len() > most {
                return Err(too_large(most).into());
            }
            prompt_tokens += usage.prompt_tokens;
            index += 1;
        }
    }
    let rest = json!({
        "model": service.model.name(),
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    });
    out.extend_from_slice(b"],");
    out.extend_from_slice(&rest.to_string().as_bytes()[1..]);
    let body = held(Body::from(out), None);
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// Reads an answer to its end.
async fn embedded(mut answer: Answer) -> Result<Embedded, RequestError> {
    let (mut embedding, mut usage) = (None, None);
    while let Some(event) = answer.next().await {
        match event?.event {
            Some(Event::Embedding(found)) => embedding = Some(found),
            Some(Event::Finished(finished)) => usage = finished.usage,
            _ => {}
        }
    }
    let missing = || RequestError::new(Reason::Internal, "a text was read and has no embedding");
    Ok(Embedded {
        embedding: embedding.ok_or_else(missing)?,
        usage: usage.unwrap_or_default(),
    })
}

/// Refuses texts whose embeddings would not be held, before any is read.
fn check_size(service: &Service, texts: usize, encoding: Encoding) -> Result<(), HttpError> {
    let values = service.model.info.embedding_length;
    let bytes = match encoding {
        Encoding::Float => values.saturating_mul(FLOAT_BYTES),
        // Three bytes are four characters.
        Encoding::Base64 => values.saturating_mul(4).div_ceil(3).saturating_mul(4),
    };
    let needed = bytes.saturating_mul(texts as u64);
    let most = service.config.max_answer_bytes as u64;
    if needed <= most {
        return Ok(());
    }
    let message = format!(
        "{texts} embeddings of {values} numbers take about {needed} bytes, over the limit of \
         {most} for one answer: send fewer texts at once, or ask for base64"
    );
    let error = RequestError::new(Reason::AnswerTooLarge, message);
    Err(HttpError::from(error).in_field("input"))
}

/// An embedding is not cut: what is left would be no embedding of this model.
fn check_dimensions(asked: Option<u64>, own: u64) -> Result<(), HttpError> {
    match asked.filter(|&asked| asked != own) {
        None => Ok(()),
        Some(asked) => Err(HttpError::invalid(
            "dimensions",
            format!("dimensions is {asked}, this model's embeddings have {own}: leave it out"),
        )),
    }
}

fn write(out: &mut Vec<u8>, index: usize, encoding: Encoding, embedding: &Embedding) {
    if index > 0 {
        out.push(b',');
    }
    out.extend_from_slice(br#"{"object":"embedding","index":"#);
    write_json(out, &index);
    out.extend_from_slice(br#","embedding":"#);
    match encoding {
        // As f32: as f64 they would have twice the digits.
        Encoding::Float => write_json(out, &embedding.values),
        Encoding::Base64 => {
            let values = embedding.values.iter();
            let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
            write_json(out, &STANDARD.encode(bytes));
        }
    }
    out.push(b'}');
}
