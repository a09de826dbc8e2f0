//! Bodies of `/v1/embeddings`.

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{GenerateRequest, KvContract, Pooling};
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess};

use super::check_names;
use super::fields::{Known, Rest};
use super::lists::Prompts;
use super::read::RequestBody;
use crate::api::http::error::HttpError;

/// Inputs of one request, as in OpenAI's API.
pub const MAX_INPUTS: usize = 2048;

/// Those of neighbours.
const KNOWN: Known = Known {
    ignored: &["user"],
    unsupported: &[],
};

/// Body of `/v1/embeddings`.
#[derive(Debug, Clone, Default)]
pub struct EmbeddingBody {
    model: String,
    input: Prompts<MAX_INPUTS>,
    encoding_format: Option<Encoding>,
    dimensions: Option<u64>,
    pooling: Option<PoolingName>,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
    priority: i32,
    rest: Rest,
}

/// How the numbers of an embedding are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// As JSON numbers.
    #[default]
    Float,
    /// As base64 of little-endian f32.
    Base64,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PoolingName {
    Mean,
    Last,
}

/// What is asked of the service.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingsAsked {
    /// The texts, at least one.
    pub inputs: Vec<Input>,
    /// What is asked of each, but for its input.
    pub request: GenerateRequest,
    /// How the answer is written.
    pub encoding: Encoding,
    /// Elements that an embedding must have.
    pub dimensions: Option<u64>,
}

impl RequestBody for EmbeddingBody {
    const OWN: &'static [&'static str] = &[
        "model",
        "input",
        "encoding_format",
        "dimensions",
        "pooling",
        "kv_budget",
        "kv_policy",
        "latent_memory",
        "priority",
    ];
    const SHARED: &'static [&'static str] = &[];
    const NEEDED: Option<&'static str> = Some("input");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "model" => self.model = values.next_value()?,
            "input" => self.input = values.next_value()?,
            "encoding_format" => self.encoding_format = values.next_value()?,
            "dimensions" => self.dimensions = values.next_value()?,
            "pooling" => self.pooling = values.next_value()?,
            "kv_budget" => self.kv_budget = values.next_value()?,
            "kv_policy" => self.kv_policy = values.next_value()?,
            "latent_memory" => self.latent_memory = values.next_value()?,
            "priority" => self.priority = values.next_value()?,
            _ => _ = values.next_value::<IgnoredAny>()?,
        }
        Ok(())
    }

    fn read_other<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        self.rest.read_among(&KNOWN, name, values)
    }
}

impl EmbeddingBody {
    /// What is asked of the service.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn asked(self) -> Result<EmbeddingsAsked, HttpError> {
        self.rest.check()?;
        check_names([
            ("model", Some(&self.model)),
            ("kv_policy", self.kv_policy.as_ref()),
            ("latent_memory", self.latent_memory.as_ref()),
        ])?;
        let Prompts { inputs, count } = self.input;
        if count == 0 || count > MAX_INPUTS {
            let message = format!("input has {count} texts: send 1 to {MAX_INPUTS}");
            return Err(HttpError::invalid("input", message));
        }
        let pooling = match self.pooling.unwrap_or(PoolingName::Mean) {
            PoolingName::Mean => Pooling::Mean,
            PoolingName::Last => Pooling::Last,
        };
        let kv = KvContract {
            budget: self.kv_budget.unwrap_or(0),
            policy: self.kv_policy.unwrap_or_default(),
            memory: self.latent_memory.unwrap_or_default(),
            ..Default::default()
        };
        let request = GenerateRequest {
            model: self.model,
            kv: Some(kv),
            priority: self.priority,
            embedding: pooling.into(),
            ..Default::default()
        };
        Ok(EmbeddingsAsked {
            inputs,
            request,
            encoding: self.encoding_format.unwrap_or_default(),
            dimensions: self.dimensions,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::http::wire::{MAX_NAME_BYTES, read_body};

    fn asked(body: &Value) -> Result<EmbeddingsAsked, HttpError> {
        let bytes = body.to_string().into_bytes();
        read_body::<EmbeddingBody>(&bytes)
            .expect("readable")
            .asked()
    }

    #[test]
    fn what_is_asked_and_what_is_wrong() {
        let found = asked(&json!({
            "model": "m", "input": ["a", "b"], "encoding_format": "base64", "pooling": "last",
            "kv_budget": 64, "user": "u",
        }));
        let found = found.expect("asked");
        assert_eq!((found.inputs.len(), found.encoding), (2, Encoding::Base64));
        assert_eq!(found.request.embedding(), Pooling::Last);
        assert_eq!(found.request.kv.map(|kv| kv.budget), Some(64));
        let found = asked(&json!({"input": [1, 2, 3]})).expect("asked");
        assert_eq!((found.inputs.len(), found.encoding), (1, Encoding::Float));
        assert_eq!(found.request.embedding(), Pooling::Mean);

        let texts = vec!["x"; MAX_INPUTS + 1];
        let long = "m".repeat(MAX_NAME_BYTES + 1);
        for (body, field) in [
            (json!({"input": []}), "input"),
            (json!({"input": texts}), "input"),
            (json!({"input": "a", "model": long}), "model"),
            (json!({"input": "a", "truncate": 3}), "truncate"),
        ] {
            let error = asked(&body).expect_err("refused");
            assert_eq!(error.body.param.as_deref(), Some(field));
        }
        for bad in [
            json!({"input": {}}),
            json!({"input": "a", "pooling": "max"}),
            json!({}),
        ] {
            let bytes = bad.to_string().into_bytes();
            assert!(read_body::<EmbeddingBody>(&bytes).is_err(), "{bad}");
        }
    }
}
