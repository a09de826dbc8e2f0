//! Every field of chats and completions that is known, and what becomes of it. The table of the
//! documentation is made of this one.

use self::What::{Bookkeeping, Honoured, Ignored, Refused};

/// A field.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) routes: Routes,
    pub(super) what: What,
}

/// Bodies that have a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Routes {
    Both,
    Chat,
    Completion,
}

/// A body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Completion,
}

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum What {
    /// It does this.
    Honoured(&'static str),
    /// It says nothing of the answer.
    Bookkeeping,
    /// It does nothing here, of which the answer warns.
    Ignored(&'static str),
    /// It would change the answer, so it is refused unless it asks for what is done anyway.
    Refused { why: &'static str, neutral: Neutral },
}

/// Values by which a field asks for nothing, beside null, an empty list and words for nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Neutral {
    pub(super) flag: bool,
    pub(super) number: Option<f64>,
}

/// Asks for nothing when it is false.
pub(super) const OFF: Neutral = Neutral {
    flag: false,
    number: None,
};

/// The same, and when it is 0.
pub(super) const NOTHING: Neutral = Neutral {
    flag: false,
    number: Some(0.0),
};

const fn honoured(name: &'static str, what: &'static str) -> Field {
    Field {
        name,
        routes: Routes::Both,
        what: Honoured(what),
    }
}

const fn chat(name: &'static str, what: &'static str) -> Field {
    Field {
        name,
        routes: Routes::Chat,
        what: Honoured(what),
    }
}

const fn bookkeeping(name: &'static str) -> Field {
    Field {
        name,
        routes: Routes::Both,
        what: Bookkeeping,
    }
}

const fn ignored(name: &'static str, why: &'static str) -> Field {
    Field {
        name,
        routes: Routes::Both,
        what: Ignored(why),
    }
}

const fn refused(name: &'static str, why: &'static str) -> Field {
    Field {
        name,
        routes: Routes::Both,
        what: Refused { why, neutral: OFF },
    }
}

/// Refused unless it is this number.
const fn only(number: f64, name: &'static str, why: &'static str) -> Field {
    let neutral = Neutral {
        flag: false,
        number: Some(number),
    };
    Field {
        name,
        routes: Routes::Both,
        what: Refused { why, neutral },
    }
}

const FUNCTIONS: &str = "OpenAI's former way to name tools: send `tools`";
const SAMPLING: &str = "this way of sampling is not supported";

/// All of them, in the order in which the documentation has them.
pub(super) const FIELDS: &[Field] = &[
    honoured("model", "the served model's name, or empty"),
    chat(
        "messages",
        "the conversation: texts, calls and their results",
    ),
    Field {
        name: "prompt",
        routes: Routes::Completion,
        what: Honoured("a text, token ids, or a list of texts and lists of token ids"),
    },
    honoured(
        "max_tokens",
        "tokens of the answer at most; 0: none; -1: what the context has room for",
    ),
    honoured("max_completion_tokens", "the same, and goes before it"),
    honoured(
        "min_tokens",
        "tokens before anything but `max_tokens` ends the answer",
    ),
    honoured("temperature", "0 is greedy; 1 when left out"),
    honoured("top_p", "0 is greedy"),
    honoured("top_k", "-1 and 0: no limit"),
    honoured("min_p", "least share of the best token's probability"),
    honoured("n", "answers to each prompt"),
    honoured("best_of", "taken where it is `n`: all answers are sent"),
    honoured("seed", "the same seed gives the same tokens"),
    honoured(
        "stop",
        "texts that end the answer; nulls among them are skipped",
    ),
    honoured("stop_token_ids", "up to 16 tokens that end the answer"),
    honoured("ignore_eos", "go on behind the model's end of sequence"),
    honoured(
        "include_stop_str_in_output",
        "the answer ends with what stopped it",
    ),
    honoured("frequency_penalty", "-2 to 2"),
    honoured("presence_penalty", "-2 to 2"),
    honoured("repetition_penalty", "above 0, up to 100"),
    honoured("logit_bias", "token id to -100 to 100"),
    Field {
        name: "logprobs",
        routes: Routes::Both,
        what: Honoured("log-probabilities of the tokens"),
    },
    chat("top_logprobs", "those of up to 20 others for each"),
    honoured(
        "prompt_logprobs",
        "log-probabilities of the prompt, with up to 20 others for each; not in streams",
    ),
    Field {
        name: "echo",
        routes: Routes::Completion,
        what: Honoured("the answer begins with the prompt"),
    },
    Field {
        name: "suffix",
        routes: Routes::Completion,
        what: Honoured(
            "what follows the answer, which fills the place between; for models with the tokens",
        ),
    },
    honoured(
        "response_format",
        "`text`, `json_schema` with a schema, or `json_object` with or without one",
    ),
    honoured(
        "structured_outputs",
        "`json`, `regex`, `choice` or `grammar`: what the answer must be",
    ),
    honoured("guided_json", "`structured_outputs.json`"),
    honoured("guided_regex", "`structured_outputs.regex`"),
    honoured("guided_choice", "`structured_outputs.choice`"),
    honoured("guided_grammar", "`structured_outputs.grammar`"),
    honoured(
        "skip_special_tokens",
        "false: control tokens of the answer show as text",
    ),
    honoured(
        "return_token_ids",
        "`token_ids` in each choice, and `prompt_token_ids` there or, of a chat, beside them",
    ),
    honoured(
        "truncate_prompt_tokens",
        "keep the last tokens of the prompt, as many as these",
    ),
    honoured("stream", "the answer comes as events"),
    honoured(
        "stream_options",
        "`include_usage`: the last chunk has the usage",
    ),
    honoured(
        "retention_map",
        "true: the stream tells at boundaries how much is kept of each token",
    ),
    chat("tools", "functions that the model may call"),
    chat(
        "tool_choice",
        "`auto`, `none`, `required`, or a function by its name",
    ),
    chat("parallel_tool_calls", "false: one call at most"),
    chat(
        "chat_template_kwargs",
        "variables for the chat template, such as `enable_thinking`",
    ),
    chat(
        "add_generation_prompt",
        "false: nothing is written behind the messages",
    ),
    chat(
        "continue_final_message",
        "the answer goes on with the last message",
    ),
    chat(
        "answer_prefix",
        "what the answer must begin with; it is not repeated",
    ),
    honoured(
        "request_id",
        "the request's name in logs and in the answer's `id`",
    ),
    honoured("priority", "-100 to 100; larger is served first"),
    honoured(
        "cache_salt",
        "only requests of the same salt share kept states",
    ),
    honoured(
        "snapshot_at",
        "positions of the prompt at which its state is kept",
    ),
    honoured("session_id", "the session that the request goes on from"),
    honoured("kv", "the KV contract, field by field"),
    honoured("kv_budget", "`kv.budget`"),
    honoured("kv_policy", "`kv.policy`"),
    honoured("latent_memory", "`kv.memory`"),
    bookkeeping("user"),
    bookkeeping("metadata"),
    bookkeeping("store"),
    bookkeeping("service_tier"),
    bookkeeping("safety_identifier"),
    bookkeeping("prompt_cache_key"),
    bookkeeping("prompt_cache_retention"),
    ignored("verbosity", "the model has no such setting"),
    ignored(
        "reasoning_effort",
        "put it in `chat_template_kwargs` if the template has it",
    ),
    ignored("include_reasoning", "thoughts come apart from the answer"),
    ignored("prediction", "it would save time and change nothing"),
    ignored("num_ctx", "the server sets it"),
    ignored("keep_alive", "the model stays loaded"),
    ignored("cache_prompt", "prompts are kept where the server has room"),
    ignored("id_slot", "the server chooses"),
    ignored("spaces_between_special_tokens", "no spaces are added"),
    ignored("guided_decoding_backend", "there is one"),
    ignored("samplers", "the order of samplers is fixed"),
    ignored("timings_per_token", "`usage.timing` has the times"),
    Field {
        name: "tools",
        routes: Routes::Completion,
        what: Refused {
            why: "tools are for conversations: use `/v1/chat/completions`",
            neutral: OFF,
        },
    },
    refused("functions", FUNCTIONS),
    refused("function_call", FUNCTIONS),
    refused("modalities", "only the modality `text` is supported"),
    refused("audio", "audio is not supported"),
    refused("web_search_options", "web search is not supported"),
    Field {
        name: "echo",
        routes: Routes::Chat,
        what: Refused {
            why: "a conversation is not repeated: use `/v1/completions`",
            neutral: OFF,
        },
    },
    Field {
        name: "suffix",
        routes: Routes::Chat,
        what: Refused {
            why: "a conversation ends with its answer: use `/v1/completions`",
            neutral: OFF,
        },
    },
    refused("use_beam_search", "beam search is not supported"),
    refused("truncation_side", "the beginning of a prompt is cut off"),
    refused("chat_template", "the model's own template is used"),
    refused(
        "documents",
        "put them in `chat_template_kwargs` if the template has them",
    ),
    refused("allowed_token_ids", "use `logit_bias`"),
    refused("bad_words", "use `logit_bias`"),
    refused("logits_processors", "code of clients is not run"),
    Field {
        name: "add_special_tokens",
        routes: Routes::Chat,
        what: Refused {
            why: "the chat template writes what stands before a conversation",
            neutral: OFF,
        },
    },
    Field {
        name: "add_special_tokens",
        routes: Routes::Completion,
        what: Refused {
            why: "send token ids to leave out what the tokenizer puts before a text",
            neutral: Neutral {
                flag: true,
                number: None,
            },
        },
    },
    refused(
        "guided_whitespace_pattern",
        "use a `grammar` of `structured_outputs`",
    ),
    refused("json_schema", "use `response_format`"),
    refused("regex", "use `structured_outputs.regex`"),
    refused("ebnf", "use `structured_outputs.grammar`, in Lark's syntax"),
    refused(
        "grammar",
        "use `structured_outputs.grammar`, in Lark's syntax",
    ),
    refused("format", "use `response_format`"),
    refused("options", "send what is in it as fields of the body"),
    refused("think", "use `chat_template_kwargs`"),
    refused("images", "only text is read"),
    refused("prompt_embeds", "send `prompt` as text or token ids"),
    refused("input_ids", "send `prompt` as token ids"),
    refused("stop_regex", "use `stop`"),
    refused("lora_path", "the served model is used as it is"),
    refused("lora", "the served model is used as it is"),
    refused("return_hidden_states", "use `/v1/embeddings`"),
    only(0.0, "n_probs", "use `logprobs`"),
    only(0.0, "n_keep", "use `kv.sinks`"),
    only(1.0, "length_penalty", "beam search is not supported"),
    only(1.0, "typical_p", SAMPLING),
    only(1.0, "tfs_z", SAMPLING),
    only(0.0, "top_a", SAMPLING),
    only(0.0, "mirostat", SAMPLING),
    only(0.0, "dry_multiplier", SAMPLING),
    only(0.0, "xtc_probability", SAMPLING),
    only(0.0, "dynatemp_range", SAMPLING),
    only(1.0, "repeat_penalty", "use `repetition_penalty`"),
    refused("num_predict", "use `max_tokens`"),
    refused("n_predict", "use `max_tokens`"),
];

/// What becomes of a field of this body; `None`: nobody knows it.
pub(super) fn find(route: Route, name: &str) -> Option<What> {
    let field = FIELDS.iter().find(|field| {
        field.name == name
            && match field.routes {
                Routes::Both => true,
                Routes::Chat => route == Route::Chat,
                Routes::Completion => route == Route::Completion,
            }
    });
    field.map(|field| field.what)
}

/// The table as the documentation has it.
#[cfg(test)]
pub(super) fn markdown() -> String {
    let mut table = "| field | in | what becomes of it |\n|---|---|---|\n".to_owned();
    for field in FIELDS {
        let routes = match field.routes {
            Routes::Both => "both",
            Routes::Chat => "chats",
            Routes::Completion => "completions",
        };
        let what = match field.what {
            Honoured(what) => what.to_owned(),
            Bookkeeping => "says nothing of the answer".to_owned(),
            Ignored(why) => format!("ignored, with a warning: {why}"),
            Refused { why, .. } => format!("refused unless it asks for nothing: {why}"),
        };
        table.push_str(&format!("| `{}` | {routes} | {what} |\n", field.name));
    }
    table
}
