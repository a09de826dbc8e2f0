//! The model under evaluation: its rank on the CPU, its tokenizer and template, and the texts it
//! reads.

use std::path::PathBuf;

use anyhow::Context;
use palimpsest_coordinator::text::{ChatTemplate, Rendered, Tokenizer};
use palimpsest_engine::rank::Rank;
use palimpsest_eval::tasks::filler::Prose;
use palimpsest_eval::{Error, TextSide};
use palimpsest_kernels::cpu::CpuBackend;
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::v1::KvContract;
use sha2::{Digest, Sha256};

use crate::model::{self, ModelConfig, Ready};
use crate::{client, texts};

/// The model's text side.
pub struct Side {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    eos_ids: Vec<u32>,
}

impl TextSide for Side {
    fn encode(&self, text: &str) -> palimpsest_eval::Result<Vec<u32>> {
        self.tokenizer
            .encode(text, false)
            .map_err(|e| Error::Text(e.to_string()))
    }

    fn decode(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids)
    }

    fn chat(&self, user: &str, answer_prefix: &str) -> palimpsest_eval::Result<String> {
        match &self.template {
            Some(template) => {
                let chat = client::question(user.into(), answer_prefix);
                template
                    .render(&chat)
                    .map(Rendered::into_text)
                    .map_err(|e| Error::Text(e.to_string()))
            }
            // A base model: the answer goes on where the question ends.
            None => Ok(format!("{user}\n{answer_prefix}")),
        }
    }

    fn ends(&self, id: u32) -> bool {
        self.eos_ids.contains(&id)
    }
}

/// Sentences of the files, or of the text without --text.
pub fn prose(files: &[PathBuf]) -> anyhow::Result<Prose> {
    Ok(Prose::new(&text(files)?)?)
}

/// The files one after the other, or the text without --text.
pub fn text(files: &[PathBuf]) -> anyhow::Result<String> {
    if files.is_empty() {
        return Ok(texts::GPL.into());
    }
    Ok(files
        .iter()
        .map(|path| texts::read(path))
        .collect::<Result<Vec<_>, _>>()?
        .join("\n"))
}

/// A model under evaluation.
pub struct Opened {
    /// The model on the CPU.
    pub rank: Rank<CpuBackend>,
    /// Its tokenizer and template.
    pub side: Side,
    /// The name that records give to model and indexer together.
    pub name: String,
}

/// Opens a model, fetching it first when it is named.
pub fn open(model: &ModelConfig) -> anyhow::Result<Opened> {
    model::check_cpu(model)?;
    let ready = Ready::find(model, &KvContract::default())?;
    let rank = model::open_rank(model, &ready)?;
    let info = rank
        .info
        .model
        .as_ref()
        .context("a rank reports its model")?;
    let side = side(info)?;
    let mut name = format!("{}, {:?} activations", info.name, model.activations);
    let file = ready.indexer.as_ref().and_then(|found| found.file.as_ref());
    if let Some(path) = file {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .take(4)
            .map(|b| format!("{b:02x}"))
            .collect();
        name += &format!(", indexer {digest}");
    }
    Ok(Opened { rank, side, name })
}

fn side(info: &ModelInfo) -> anyhow::Result<Side> {
    let template = if info.chat_template.is_empty() {
        None
    } else {
        Some(ChatTemplate::new(
            &info.chat_template,
            &info.bos_token,
            &info.eos_token,
        )?)
    };
    Ok(Side {
        tokenizer: Tokenizer::from_bytes(&info.tokenizer)?,
        template,
        eos_ids: info.eos_ids.clone(),
    })
}
