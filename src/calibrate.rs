//! `palimpsest calibrate`: trains the indexer of a model from text: fits scorers, then tunes them
//! end to end where tuning is built in.

#[cfg(feature = "calibrate")]
mod tuning;
/// Stands in where tuning is not built in: it refuses.
#[cfg(not(feature = "calibrate"))]
#[path = "calibrate/untuned.rs"]
mod tuning;

mod job;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use palimpsest_calibrate::associative::AssociativeOptions;
use palimpsest_calibrate::corpus::{self, Amount, Turns};
use palimpsest_calibrate::query::QueryOptions;
use palimpsest_calibrate::report::{Agreement, LayerReport, TOP_SHARE};
use palimpsest_calibrate::run::{self, Calibrated, Options, Source, Stage};
use palimpsest_coordinator::text::{ChatTemplate, Tokenizer as ServedTokenizer};
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::offline::reconstruction::{INSTRUCTION, Target};
use palimpsest_models::tokenizer::TokenizerFiles;
use palimpsest_models::{Model, WeightsId};
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::v1::{Chat, ChatMessage};

pub use self::job::{Config, Parts};
use self::job::{Corpus, Job};
use self::tuning::Tuning;
use crate::indexer::Subject;
use crate::model::{self, Device, ModelConfig};
use crate::progress::Progress;
use crate::{indexer, pull, texts};

/// Documents of a tuning, unless the operator says otherwise, and weights up to which a model is
/// tuned unasked.
const TUNE_STEPS: usize = 104;
const TUNED_UNASKED: u64 = 1_000_000_000;
/// Documents of a fit that takes minutes.
const FAST_DOCUMENTS: usize = 16;

impl Config {
    /// A fit of a model that takes minutes, kept where the next start looks for it.
    pub fn fast(model: ModelConfig) -> Self {
        Self {
            model,
            parts: Parts::Scorers,
            corpus: None,
            out: None,
            samples: None,
            documents: FAST_DOCUMENTS,
            tokens: 1200,
            holdout: 8,
            ridge: 3.0,
            target: Target::Attention,
            tune: Some(0),
            tune_rate: 3e-3,
            start: Vec::new(),
            seed: 7,
        }
    }

    /// The same in minutes: scorers alone, of fewer documents, as fitted.
    #[must_use]
    pub fn faster(self) -> Self {
        Self {
            parts: Parts::Scorers,
            documents: FAST_DOCUMENTS,
            tune: Some(0),
            ..self
        }
    }

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
        let parent = self.out.as_ref().and_then(|out| out.parent());
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        ensure!(
            parent.is_none_or(Path::is_dir),
            "there is no directory {} to write to",
            parent.unwrap_or(Path::new("")).display()
        );
        Ok(())
    }

    /// The text to learn from.
    fn text(&self) -> anyhow::Result<String> {
        Ok(match &self.corpus {
            Some(directory) => corpus::read_directory(directory)?,
            None => texts::OWN.concat(),
        })
    }

    /// Where the indexer of these weights goes.
    fn out(&self, weights: Option<WeightsId>) -> anyhow::Result<PathBuf> {
        if let Some(out) = &self.out {
            return Ok(out.clone());
        }
        let weights = weights.context("made weights have no place of their own: give --out")?;
        let out = indexer::kept_at(weights)?;
        let folder = out.parent().context("a folder of the cache")?;
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the directory {}", folder.display()))?;
        Ok(out)
    }

    /// Documents of the tuning of a model.
    fn steps(&self, model: &Model) -> usize {
        let config = model.config();
        let is_plain = config.differences.beyond_plain().is_none();
        let is_small = config.parameters <= TUNED_UNASKED;
        let unasked = if tuning::IS_BUILT_IN && is_plain && is_small {
            TUNE_STEPS
        } else {
            0
        };
        self.tune.unwrap_or(unasked)
    }
}

/// Trains an indexer for a model that has none, and keeps it where the next start finds it.
///
/// # Errors
/// What [`run()`] fails with.
pub fn at_first_start(model: &ModelConfig) -> anyhow::Result<()> {
    let file = pull::model_file(&model.model)?;
    let weights = model::weights_of(&file)?;
    ensure!(
        weights.is_some(),
        "--calibrate trains on weights that are stored, and {} are made: leave it out",
        model.model
    );
    let subject = Subject::new(file, weights);
    if indexer::find(&subject, model.indexer.as_deref())?.is_some() {
        return Ok(());
    }
    eprintln!("no indexer was found for {}: fitting one", model.model);
    // Scorers are fitted on the CPU wherever the model is served.
    let out = train(&Config::fast(ModelConfig {
        device: Device::Cpu,
        ..model.clone()
    }))?;
    eprintln!("the indexer is kept in {}", out.display());
    Ok(())
}

/// Trains an indexer and prints where it is.
pub fn run(config: &Config) -> anyhow::Result<()> {
    println!("{}", train(config)?.display());
    Ok(())
}

/// Fits scorers or reads those to start from, tunes them, writes the indexer; returns where.
fn train(config: &Config) -> anyhow::Result<PathBuf> {
    config.check()?;
    let text = config.text()?;
    let model_file = pull::model_file(&config.model.model)?;
    let model = Model::open(&model_file)?;
    let weights = model::weights_of(&model_file)?;
    let out = config.out(weights)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(model.tokenizer()?.tokenizer_json)
        .map_err(|e| anyhow::anyhow!("the model's tokenizer: {e}"))?;
    let corpus = Corpus {
        text: &text,
        tokenizer: &tokenizer,
        turns: turns(&model.tokenizer()?)?,
    };
    let samples = config
        .samples
        .clone()
        .unwrap_or_else(|| out.with_extension("samples"));
    // All that can be wrong with what was given is said before the long work.
    let steps = config.steps(&model);
    let job = Job {
        config,
        steps,
        model: &model,
        corpus: &corpus,
        state: out.with_extension("tuning"),
    };
    let tuning = (steps > 0).then(|| Tuning::new(&job)).transpose()?;
    let mut indexer = match &config.start[..] {
        [] => fit(config, &corpus, samples.clone())?,
        files => tuning::start(files, &model)?,
    };
    if let Some(tuning) = &tuning {
        tuning.run(&mut indexer)?;
    }
    if config.tune.is_none() && steps == 0 {
        match model.config().differences.beyond_plain() {
            Some(lack) => eprintln!("fitted, and not tuned: tuning does not know {lack}"),
            None => eprintln!("fitted, and not tuned end to end: {}", tuning::HOW),
        }
    }
    indexer::note(&mut indexer, weights);
    keep(&indexer, &out)?;
    if config.samples.is_none() && config.start.is_empty() {
        std::fs::remove_dir_all(&samples)
            .with_context(|| format!("cannot delete {}", samples.display()))?;
    }
    Ok(out)
}

/// Written beside and renamed: what the next start finds is whole.
fn keep(indexer: &Indexer, out: &Path) -> anyhow::Result<()> {
    let staged = out.with_extension("partial");
    let bytes = indexer.to_bytes()?;
    let written = std::fs::write(&staged, bytes).and_then(|()| std::fs::rename(&staged, out));
    written.with_context(|| format!("cannot write {}", out.display()))
}

/// Scorers that predict attention, and the paper's two pieces; reports on held-out documents.
fn fit(config: &Config, corpus: &Corpus<'_>, samples: PathBuf) -> anyhow::Result<Indexer> {
    let mut rank = model::open_untrained(&config.model)?;
    let info = rank.info.model.take().context("a rank reports its model")?;
    let documents = corpus::documents(
        corpus.text,
        corpus.tokenizer,
        &corpus.turns.opening,
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
    let is_all = config.parts == Parts::All;
    let options = Options {
        holdout: config.holdout,
        ridge: config.ridge,
        seed: config.seed,
        query: is_all.then(QueryOptions::default),
        memory: is_all.then(|| AssociativeOptions {
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
    eprintln!(
        "on held-out documents: rank correlation with the target, recall of its best {best:.0} %, \
         attention given back"
    );
    eprintln!("layer  retention      query-indexer  associative");
    let (mut retention, mut query, mut explained) =
        (Agreement::default(), Agreement::default(), 0.0);
    let pair = |a: &Agreement| format!("{:.3}  {:.3}", a.rank_correlation, a.recall);
    for (layer, r) in report.iter().enumerate() {
        let of_query = r.query.as_ref().map_or("-".into(), pair);
        let given_back = r
            .explained
            .map_or("-".into(), |share| format!("{share:.3}"));
        eprintln!(
            "{layer:>5}  {:<13}  {of_query:<13}  {given_back}",
            pair(&r.retention)
        );
        retention.add(r.retention, report.len());
        query.add(r.query.unwrap_or_default(), report.len());
        explained += r.explained.unwrap_or_default() / report.len() as f64;
    }
    eprintln!(
        " mean  {:<13}  {:<13}  {explained:.3}",
        pair(&retention),
        pair(&query)
    );
    retention
}
