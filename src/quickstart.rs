//! `palimpsest quickstart`: a real model, a long real document and a question about it, over gRPC,
//! in one command.

use std::path::PathBuf;

use palimpsest_coordinator::Config as Limits;
use palimpsest_proto::v1;
use palimpsest_proto::v1::generate_request::Input;

use crate::client::{self, Server};
use crate::generate::summary;
use crate::group::Group;
use crate::model::{self, ModelConfig};
use crate::{term, texts};

const QUESTION: &str = "When was the WIPO copyright treaty adopted?";
/// A model this small answers best when the answer is begun for it.
const ANSWER_PREFIX: &str = "The WIPO copyright treaty was adopted on";

/// About a fifth of the built-in document.
const BUDGET: u32 = 1536;

/// What to ask about what.
#[derive(Debug)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// The contract; what is unset is chosen here.
    pub kv: v1::KvContract,
    /// Ranks that share the model, as threads of this process.
    pub tp: usize,
    /// A document of the user's instead of the built-in one.
    pub document: Option<PathBuf>,
    /// The user's question about it.
    pub question: Option<String>,
    /// Tokens of the answer at most.
    pub max_tokens: u32,
}

/// A document and a question about it.
struct Asked {
    document: String,
    question: String,
    /// What the answer begins with.
    prefix: &'static str,
}

/// Runs the whole path once and prints what it cost.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let asked = asked(&config)?;
    let ranks =
        tokio::task::block_in_place(|| model::open_ranks(&config.model, &config.kv, config.tp))?;
    let device = ranks.infos()[0].device.clone();
    let mut group = Group::start(ranks, Limits::default(), None, None)?;
    group.ready().await?;
    let coordinator = &group.coordinator;
    let server = coordinator.serve_local().await?;
    let address = server.address;
    let client = client::connect(&Server {
        address: address.to_string(),
        ..Server::default()
    })
    .await?;

    let name = &coordinator.service().model.info.name;
    eprintln!("{name} on {device}, gRPC at {address}");
    eprintln!(
        "document: {} characters; question: {}",
        asked.document.chars().count(),
        asked.question
    );
    let spinner = term::spinner("reading the document");
    print!("{}", asked.prefix);
    let finished = client::stream(client, request(config, &asked), false).await;
    spinner.finish_and_clear();
    eprintln!("{}", summary(&finished?.usage.unwrap_or_default()));
    server.shut_down().await;
    Ok(())
}

fn asked(config: &Config) -> anyhow::Result<Asked> {
    let Some(path) = &config.document else {
        return Ok(Asked {
            document: texts::GPL.into(),
            question: QUESTION.into(),
            prefix: ANSWER_PREFIX,
        });
    };
    let question = config.question.clone();
    Ok(Asked {
        document: texts::read(path)?,
        question: question.unwrap_or_else(|| "What is this document about?".into()),
        prefix: "",
    })
}

fn request(config: Config, asked: &Asked) -> v1::GenerateRequest {
    let mut kv = config.kv;
    if kv.budget == 0 && kv.policy.is_empty() {
        kv.budget = BUDGET;
    }
    let content = format!("{}\n\n{}", asked.document, asked.question);
    v1::GenerateRequest {
        input: Some(Input::Chat(client::question(content, asked.prefix))),
        stopping: Some(v1::Stopping {
            max_tokens: Some(config.max_tokens),
            ..Default::default()
        }),
        kv: Some(kv),
        ..Default::default()
    }
}
