//! Bodies of `/v1/score`.

use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{Completion, KvContract, ScoreRequest, completion, score_request};
use serde::de::{IgnoredAny, MapAccess};

use super::check_names;
use super::fields::{Known, Rest};
use super::lists::Prompts;
use super::read::RequestBody;
use crate::api::http::error::HttpError;
use crate::service::MAX_COMPLETIONS;

/// Those of neighbours.
const KNOWN: Known = Known {
    ignored: &["user"],
    unsupported: &[],
};

/// Body of `/v1/score`.
#[derive(Debug, Clone, Default)]
pub struct ScoreBody {
    model: Option<String>,
    prompt: Prompts<1>,
    completions: Prompts<MAX_COMPLETIONS>,
    kv_budget: Option<u32>,
    kv_policy: Option<String>,
    latent_memory: Option<String>,
    cache_salt: Option<String>,
    priority: Option<i32>,
    rest: Rest,
}

impl RequestBody for ScoreBody {
    const OWN: &'static [&'static str] = &[
        "model",
        "prompt",
        "completions",
        "kv_budget",
        "kv_policy",
        "latent_memory",
        "cache_salt",
        "priority",
    ];
    const SHARED: &'static [&'static str] = &[];
    const NEEDED: Option<&'static str> = Some("prompt");

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        field: &'static str,
        values: &mut A,
    ) -> Result<(), A::Error> {
        match field {
            "model" => self.model = values.next_value()?,
            "prompt" => self.prompt = values.next_value()?,
            "completions" => self.completions = values.next_value()?,
            "kv_budget" => self.kv_budget = values.next_value()?,
            "kv_policy" => self.kv_policy = values.next_value()?,
            "latent_memory" => self.latent_memory = values.next_value()?,
            "cache_salt" => self.cache_salt = values.next_value()?,
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

impl ScoreBody {
    /// What is asked of the service, of a request with this name.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn asked(self, request_id: String) -> Result<ScoreRequest, HttpError> {
        self.rest.check()?;
        check_names([
            ("model", self.model.as_ref()),
            ("kv_policy", self.kv_policy.as_ref()),
            ("latent_memory", self.latent_memory.as_ref()),
            ("cache_salt", self.cache_salt.as_ref()),
        ])?;
        let Prompts { inputs, count } = self.prompt;
        let prompt = match (inputs.into_iter().next(), count) {
            (Some(Input::Text(text)), 1) => score_request::Prompt::Text(text),
            (Some(Input::TokenIds(ids)), 1) => score_request::Prompt::TokenIds(ids),
            _ => {
                let message = format!("prompt has {count} texts: send one");
                return Err(HttpError::invalid("prompt", message));
            }
        };
        let Prompts { inputs, count } = self.completions;
        if count == 0 || count > MAX_COMPLETIONS {
            let message = format!("completions has {count} of them: send 1 to {MAX_COMPLETIONS}");
            return Err(HttpError::invalid("completions", message));
        }
        Ok(ScoreRequest {
            model: self.model.unwrap_or_default(),
            prompt: Some(prompt),
            completions: inputs.into_iter().map(completion).collect(),
            kv: Some(KvContract {
                budget: self.kv_budget.unwrap_or(0),
                policy: self.kv_policy.unwrap_or_default(),
                memory: self.latent_memory.unwrap_or_default(),
                ..Default::default()
            }),
            request_id,
            priority: self.priority.unwrap_or(0),
            cache_salt: self.cache_salt.unwrap_or_default(),
            ..Default::default()
        })
    }
}

fn completion(input: Input) -> Completion {
    let completion = match input {
        Input::Text(text) => Some(completion::Completion::Text(text)),
        Input::TokenIds(ids) => Some(completion::Completion::TokenIds(ids)),
        // A list has no others.
        Input::Chat(_) | Input::Infill(_) => None,
    };
    Completion { completion }
}

#[cfg(test)]
mod tests {
    use palimpsest_proto::v1::TokenIds;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::http::wire::read_body;

    fn asked(body: &Value) -> Result<ScoreRequest, HttpError> {
        let body = read_body::<ScoreBody>(body.to_string().as_bytes());
        body.expect("readable").asked("id".into())
    }

    #[test]
    fn every_field_reaches_the_request() {
        let found = asked(&json!({
            "model": "m", "prompt": "p", "completions": ["a", "b"], "kv_budget": 64,
            "kv_policy": "window", "latent_memory": "none", "cache_salt": "s", "priority": 2,
            "user": "u",
        }));
        let found = found.expect("asked");
        let text = |text: &str| Completion {
            completion: Some(completion::Completion::Text(text.into())),
        };
        assert_eq!(found.prompt, Some(score_request::Prompt::Text("p".into())));
        assert_eq!(found.completions, [text("a"), text("b")]);
        let kv = found.kv.expect("a contract");
        assert_eq!(
            (kv.budget, &*kv.policy, &*kv.memory),
            (64, "window", "none")
        );
        assert_eq!(
            (&*found.model, &*found.cache_salt, found.priority),
            ("m", "s", 2)
        );
        let found = asked(&json!({"prompt": [1, 2], "completions": [[3], [4, 5]]})).expect("asked");
        let ids = |ids: &[u32]| TokenIds { ids: ids.to_vec() };
        assert_eq!(
            found.prompt,
            Some(score_request::Prompt::TokenIds(ids(&[1, 2])))
        );
        let second = completion::Completion::TokenIds(ids(&[4, 5]));
        assert_eq!(found.completions[1].completion, Some(second));
        assert_eq!(found.request_id, "id");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let many = vec!["x"; MAX_COMPLETIONS + 1];
        for (body, field) in [
            (json!({"prompt": "p"}), "completions"),
            (json!({"prompt": "p", "completions": []}), "completions"),
            (json!({"prompt": "p", "completions": many}), "completions"),
            (
                json!({"prompt": ["p", "q"], "completions": ["x"]}),
                "prompt",
            ),
            (json!({"prompt": [], "completions": ["x"]}), "prompt"),
            // As vLLM calls them, whose scores are of another kind.
            (json!({"prompt": "p", "text_1": "x"}), "text_1"),
            (
                json!({"prompt": "p", "completions": ["x"], "cache_salt": "s".repeat(2000)}),
                "cache_salt",
            ),
        ] {
            let error = asked(&body).expect_err("refused");
            assert_eq!(error.body.param.as_deref(), Some(field), "{body}");
        }
        for bad in [
            json!({}),
            json!({"prompt": {}}),
            json!({"prompt": "p", "completions": [{}]}),
        ] {
            assert!(read_body::<ScoreBody>(bad.to_string().as_bytes()).is_err());
        }
    }
}
