//! Which clients there are.

/// What a script is written in, and what it needs.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum Kind {
    /// Python, with the packages of `xtask/requirements/PURPOSE.txt`.
    Python(&'static str),
    /// JavaScript, with the packages of `tests/clients/node`.
    Node,
    /// The shell, with what a system has, and with the programs of such Python packages.
    Shell(Option<&'static str>),
}

/// A client.
#[derive(Debug)]
pub struct Client {
    pub name: &'static str,
    pub kind: Kind,
    /// Below `tests/clients`.
    pub script: &'static str,
    /// CI runs it.
    pub is_quick: bool,
}

/// What scripts find in their environment: nothing is fetched from hubs, and nobody is told of a
/// run.
pub const ENVIRONMENT: [(&str, &str); 10] = [
    ("HF_HUB_OFFLINE", "1"),
    ("HF_DATASETS_OFFLINE", "1"),
    ("TRANSFORMERS_OFFLINE", "1"),
    ("HF_HUB_DISABLE_TELEMETRY", "1"),
    ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),
    ("LANGSMITH_TRACING", "false"),
    ("OPENAI_AGENTS_DISABLE_TRACING", "1"),
    ("AI_SDK_TELEMETRY_DISABLED", "1"),
    // Harnesses start processes; two cores are not for each of them.
    ("TOKENIZERS_PARALLELISM", "false"),
    ("PYTHONUNBUFFERED", "1"),
];

/// All of them.
pub const CLIENTS: &[Client] = &[
    quick("openai", Kind::Python("openai"), "python/openai_client.py"),
    slow("openai-node", Kind::Node, "node/openai_client.mjs"),
    slow("ai-sdk", Kind::Node, "node/ai_sdk_client.mjs"),
    quick(
        "anthropic",
        Kind::Python("anthropic"),
        "python/anthropic_client.py",
    ),
    quick(
        "anthropic-tools",
        Kind::Python("anthropic"),
        "python/anthropic_tools_client.py",
    ),
    slow(
        "litellm",
        Kind::Python("litellm"),
        "python/litellm_client.py",
    ),
    slow(
        "langchain",
        Kind::Python("langchain"),
        "python/langchain_client.py",
    ),
    slow(
        "llama-index",
        Kind::Python("llama-index"),
        "python/llama_index_client.py",
    ),
    slow(
        "instructor",
        Kind::Python("instructor"),
        "python/instructor_client.py",
    ),
    quick(
        "pydantic-ai",
        Kind::Python("pydantic-ai"),
        "python/pydantic_ai_client.py",
    ),
    slow(
        "openai-agents",
        Kind::Python("openai-agents"),
        "python/openai_agents_client.py",
    ),
    slow(
        "smolagents",
        Kind::Python("smolagents"),
        "python/smolagents_client.py",
    ),
    slow(
        "lm-eval",
        Kind::Shell(Some("lm-eval")),
        "shell/lm_eval_client.sh",
    ),
    slow(
        "lm-eval-likelihood",
        Kind::Python("lm-eval"),
        "python/lm_eval_likelihood_client.py",
    ),
    slow(
        "guidellm",
        Kind::Shell(Some("guidellm")),
        "shell/guidellm_client.sh",
    ),
    slow(
        "aiperf",
        Kind::Shell(Some("aiperf")),
        "shell/aiperf_client.sh",
    ),
    slow(
        "locust",
        Kind::Shell(Some("locust")),
        "shell/locust_client.sh",
    ),
    quick("grpcio", Kind::Python("grpc"), "python/grpcio_client.py"),
    quick(
        "tritonclient",
        Kind::Python("triton"),
        "python/tritonclient_client.py",
    ),
    quick("curl", Kind::Shell(None), "shell/curl_client.sh"),
];

const fn quick(name: &'static str, kind: Kind, script: &'static str) -> Client {
    Client {
        name,
        kind,
        script,
        is_quick: true,
    }
}

const fn slow(name: &'static str, kind: Kind, script: &'static str) -> Client {
    Client {
        is_quick: false,
        ..quick(name, kind, script)
    }
}
