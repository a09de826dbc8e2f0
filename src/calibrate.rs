//! `palimpsest calibrate`: trains the indexer of a model from text: fits scorers, then tunes them
//! end to end.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use palimpsest_calibrate::associative::AssociativeOptions;
use palimpsest_calibrate::corpus::{self, Amount};
use palimpsest_calibrate::query::QueryOptions;
use palimpsest_calibrate::report::{Agreement, LayerReport, TOP_SHARE};
use palimpsest_calibrate::run::{self, Calibrated, Options, Source, Stage};
use palimpsest_calibrate::tune::documents::{Documents, Turns};
use palimpsest_calibrate::tune::{self};
use palimpsest_coordinator::text::{ChatTemplate, Tokenizer as ServedTokenizer};
use palimpsest_engine::indexer::{Indexer, ModelShape};
use palimpsest_engine::offline::reconstruction::{INSTRUCTION, Target};
use palimpsest_engine::policy::retention::RetentionWeights;
use palimpsest_models::Model;
use palimpsest_models::tokenizer::TokenizerFiles;
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::v1::{Chat, ChatMessage, KvContract};

use crate::model::{self, ModelConfig};
use crate::progress::Progress;
use crate::pull;

/// Documents of a tuning, unless the operator says otherwise, and weights up to which a model is
/// tuned unasked.
const TUNE_STEPS: usize = 104;
const TUNED_UNASKED: u64 = 1_000_000_000;

/// What to train, and from what.
#[derive(Debug)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// Directory with texts to learn from.
    pub corpus: PathBuf,
    /// Indexer file to write.
    pub out: PathBuf,
    /// Directory that keeps what was read of the documents; one beside the output, deleted in the
    /// end, when `None`.
    pub samples: Option<PathBuf>,
    /// Documents.
    pub documents: usize,
    /// Tokens of a document.
    pub tokens: usize,
    /// One document in this many is held out for the report.
    pub holdout: usize,
    /// Strength of the ridge penalty.
    pub ridge: f64,
    /// What scorers learn to predict.
    pub target: Target,
    /// Documents that scorers are tuned on; by the model's size when `None`.
    pub tune: Option<usize>,
    /// How fast tuning changes the scorers, at its highest.
    pub tune_rate: f32,
    /// Indexer files to tune instead of fitting scorers.
    pub start: Vec<PathBuf>,
    /// Seed of the documents.
    pub seed: u64,
}

impl Config {
    /// Says what cannot be, before the long work.
    fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.holdout >= 2 && self.documents >= self.holdout,
            "--documents must be at least --holdout, that at least 2"
        );
        ensure!(
            self.tune_rate > 0.0 && self.tune_rate < 1.0,
            "--tune-rate must be above 0 and below 1, try 0.003"
        );
        let parent = self
            .out
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        ensure!(
            parent.is_none_or(Path::is_dir),
            "there is no directory for {}",
            self.out.display()
        );
        Ok(())
    }

    /// Documents of the tuning of a model.
    fn steps(&self, model: &Model) -> usize {
        let differences = &model.config().differences;
        let is_plain = differences.beyond_plain().is_none();
        let unasked = if is_plain && model.config().parameters <= TUNED_UNASKED {
            TUNE_STEPS
        } else {
            0
        };
        self.tune.unwrap_or(unasked)
    }
}

/// Texts to learn from, and how they become tokens.
struct Corpus<'a> {
    text: &'a str,
    tokenizer: &'a tokenizers::Tokenizer,
    /// What the chat template puts before a text.
    opening: &'a str,
}

/// Fits scorers or reads those to start from, tunes them, writes the indexer.
pub fn run(config: &Config) -> anyhow::Result<()> {
    config.check()?;
    let text = corpus::read_directory(&config.corpus)?;
    let model_file = pull::model_file(&config.model.model)?;
    let model = Model::open(&model_file)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(model.tokenizer()?.tokenizer_json)
        .map_err(|e| anyhow::anyhow!("the model's tokenizer: {e}"))?;
    let turns = turns(&model.tokenizer()?)?;
    let samples = config
        .samples
        .clone()
        .unwrap_or_else(|| config.out.with_extension("samples"));
    // All that can be wrong with what was given is said before the long work.
    let steps = config.steps(&model);
    if steps > 0 {
        tune::model::check(model.config())?;
    }
    let stride = config.model.stride as usize;
    let documents = match steps {
        0 => None,
        _ => Some(Documents::new(&text, &tokenizer, &turns, stride)?),
    };

    let mut indexer = match &config.start[..] {
        [] => {
            let corpus = Corpus {
                text: &text,
                tokenizer: &tokenizer,
                opening: &turns.opening,
            };
            fit(config, &corpus, samples.clone())?
        }
        files => start(files, &model)?,
    };
    if let Some(documents) = &documents {
        tune(config, steps, &model, &mut indexer, documents)?;
    }
    if config.tune.is_none() && steps == 0 {
        match model.config().differences.beyond_plain() {
            Some(lack) => println!("not tuned end to end: tuning does not know {lack}"),
            None => println!(
                "not tuned end to end: a large model takes long; ask for it with --tune \
                 {TUNE_STEPS}"
            ),
        }
    }
    std::fs::write(&config.out, indexer.to_bytes()?)
        .with_context(|| format!("cannot write {}", config.out.display()))?;
    println!("{}", config.out.display());
    if config.samples.is_none() && config.start.is_empty() {
        std::fs::remove_dir_all(&samples)
            .with_context(|| format!("cannot delete {}", samples.display()))?;
    }
    Ok(())
}

/// Scorers that predict attention, and the paper's two pieces; reports on held-out documents.
fn fit(config: &Config, corpus: &Corpus<'_>, samples: PathBuf) -> anyhow::Result<Indexer> {
    let mut rank = model::open_rank(&config.model, &KvContract::default())?;
    let info = rank.info.model.take().context("a rank reports its model")?;
    let documents = corpus::documents(
        corpus.text,
        corpus.tokenizer,
        corpus.opening,
        Amount {
            documents: config.documents,
            tokens: config.tokens,
        },
        config.seed,
    )?;
    let instruction = ServedTokenizer::from_bytes(&info.tokenizer)?.encode(INSTRUCTION, false)?;
    let features = AssociativeOptions::default()
        .features
        .min(info.head_dim as usize * 2);
    let options = Options {
        holdout: config.holdout,
        ridge: config.ridge,
        seed: config.seed,
        query: Some(QueryOptions::default()),
        memory: Some(AssociativeOptions {
            features,
            ..AssociativeOptions::default()
        }),
        target: config.target,
        samples,
    };
    let mut stages = Stages::default();
    let source = Source {
        documents,
        instruction,
        model: format!("{} {:016x}", info.name, rank.info.digest),
    };
    let Calibrated {
        mut indexer,
        report,
    } = run::calibrate(
        &mut rank.runner,
        &source,
        &options,
        &mut |stage, done, of| stages.at(stage, done as u64, of as u64),
    )?;
    stages.finish();
    let mean = print(&report);
    indexer.metadata = metadata(config, &info);
    indexer.metadata.insert(
        "held_out_rank_correlation".into(),
        format!("{:.3}", mean.rank_correlation),
    );
    indexer
        .metadata
        .insert("held_out_recall".into(), format!("{:.3}", mean.recall));
    Ok(indexer)
}

/// The mean of the scorers of some files, with everything else of the first.
fn start(files: &[PathBuf], model: &Model) -> anyhow::Result<Indexer> {
    let read = |path: &PathBuf| -> anyhow::Result<Indexer> {
        let bytes = std::fs::read(path)
            .with_context(|| format!("cannot read the indexer {}", path.display()))?;
        let indexer = Indexer::parse(&bytes).with_context(|| path.display().to_string())?;
        let config = model.config();
        let check = indexer.check(ModelShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            hidden: config.hidden,
        });
        check.with_context(|| path.display().to_string())?;
        Ok(indexer)
    };
    let indexers = files.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let mut mean = tune::mean_of(indexers)?;
    let stems = files
        .iter()
        .filter_map(|file| file.file_stem())
        .map(|stem| stem.to_string_lossy());
    mean.metadata
        .insert("start".into(), stems.collect::<Vec<_>>().join(" and "));
    Ok(mean)
}

/// Gives every head a second scorer and tunes both.
fn tune(
    config: &Config,
    steps: usize,
    model: &Model,
    indexer: &mut Indexer,
    documents: &Documents<'_>,
) -> anyhow::Result<()> {
    let mut scorers = RetentionWeights::of(indexer)?;
    tune::add_second(&mut scorers.layers);
    indexer.set(&scorers);
    let stride = config.model.stride as usize;
    let (rate, seed) = (config.tune_rate, config.seed);
    let options = tune::Options {
        steps,
        rate,
        seed,
        stride,
        state: config.out.with_extension("tuning"),
    };
    let backend = model::cpu(&config.model);
    let model = tune::model::Model::load(&backend, model.weights())?;
    let mut bar = Progress::new("tuning");
    let losses = tune::tune(&model, indexer, documents, &options, &mut |progress| {
        bar.at(progress.done as u64, progress.of as u64);
        tracing::info!(
            done = progress.done,
            of = progress.of,
            answers = progress.losses.answers,
            answers_full_cache = progress.losses.full,
            text_over_full_cache = progress.losses.text,
            "tuning, nats per token"
        );
    })?;
    bar.finish();
    println!(
        "tuned on {steps} documents; the last ones: answers {:.3} nats a token (full cache \
         {:.3}), text {:.3} over the full cache",
        losses.answers, losses.full, losses.text
    );
    indexer.metadata.insert(
        "tuned".into(),
        format!("{steps} documents, seed {seed}, rate {rate}"),
    );
    Ok(())
}

/// Progress of one stage after the other.
#[derive(Default)]
struct Stages(Option<(Stage, Progress)>);

impl Stages {
    fn at(&mut self, stage: Stage, done: u64, of: u64) {
        if self.0.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            self.finish();
            self.0 = Some((stage, Progress::new(name(stage))));
        }
        if let Some((_, progress)) = &mut self.0 {
            progress.at(done, of);
        }
    }

    fn finish(&mut self) {
        if let Some((_, progress)) = self.0.take() {
            progress.finish();
        }
    }
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Reading => "reading",
        Stage::Scorers => "fitting scorers",
        Stage::Memories => "fitting memories",
    }
}

/// What the chat template puts around texts, so that training sees documents where requests have
/// them.
fn turns(files: &TokenizerFiles) -> anyhow::Result<Turns> {
    let Some(source) = files
        .chat_template
        .as_deref()
        .filter(|source| !source.is_empty())
    else {
        return Ok(Turns::default());
    };
    const FIRST: &str = "PALIMPSEST-MARK-1";
    const ANSWER: &str = "PALIMPSEST-MARK-2";
    const SECOND: &str = "PALIMPSEST-MARK-3";
    let token = |token: &Option<String>| token.clone().unwrap_or_default();
    let template = ChatTemplate::new(source, &token(&files.bos_token), &token(&files.eos_token))?;
    let message = |(role, content): (&str, &str)| ChatMessage::new(role, content);
    let messages = [("user", FIRST), ("assistant", ANSWER), ("user", SECOND)].map(message);
    let rendered = template.render(&Chat {
        messages: messages.into(),
        ..Default::default()
    })?;
    let text = rendered.text();
    let between = |after: &str, before: &str| {
        let start = text.find(after).map(|at| at + after.len());
        let inner = start
            .and_then(|start| text[start..].split_once(before))
            .map(|(inner, _)| inner.to_string());
        inner.context("the model's chat template leaves out messages")
    };
    Ok(Turns {
        opening: between("", FIRST)?,
        answer: between(FIRST, ANSWER)?,
        next: between(ANSWER, SECOND)?,
    })
}

fn metadata(config: &Config, info: &ModelInfo) -> HashMap<String, String> {
    let entries = [
        ("model", info.name.clone()),
        (
            "target",
            match config.target {
                Target::Attention => "ln max attention while the context is repeated",
                Target::Surprisal => {
                    "ln max surprisal-weighted attention while the context is repeated"
                }
            }
            .to_string(),
        ),
        ("documents", config.documents.to_string()),
        ("tokens", config.tokens.to_string()),
        ("seed", config.seed.to_string()),
        ("ridge", config.ridge.to_string()),
        ("stride", config.model.stride.to_string()),
    ];
    entries
        .into_iter()
        .map(|(key, value)| (key.to_string(), value))
        .collect()
}

/// Prints a row per layer; returns the scorers' means.
fn print(report: &[LayerReport]) -> Agreement {
    let best = TOP_SHARE * 100.0;
    println!(
        "on held-out documents: rank correlation with the target, recall of its best {best:.0} %, \
         attention given back"
    );
    println!("layer  retention      query-indexer  associative");
    let (mut retention, mut query, mut explained) =
        (Agreement::default(), Agreement::default(), 0.0);
    let pair = |a: &Agreement| format!("{:.3}  {:.3}", a.rank_correlation, a.recall);
    for (layer, r) in report.iter().enumerate() {
        let of_query = r.query.as_ref().map_or("-".into(), pair);
        let given_back = r
            .explained
            .map_or("-".into(), |share| format!("{share:.3}"));
        println!(
            "{layer:>5}  {:<13}  {of_query:<13}  {given_back}",
            pair(&r.retention)
        );
        retention.add(r.retention, report.len());
        query.add(r.query.unwrap_or_default(), report.len());
        explained += r.explained.unwrap_or_default() / report.len() as f64;
    }
    println!(
        " mean  {:<13}  {:<13}  {explained:.3}",
        pair(&retention),
        pair(&query)
    );
    retention
}
