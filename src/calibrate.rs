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
use palimpsest_proto::v1::{Chat, ChatMessage};

use crate::args::{CalibrateArgs, KvArgs, TargetArg};
use crate::progress::Progress;
use crate::{embedded, pull};

/// Documents of a tuning, unless the operator says otherwise, and weights up to which a model is
/// tuned unasked.
const TUNE_STEPS: usize = 104;
const TUNED_UNASKED: u64 = 1_000_000_000;

/// Fits scorers or reads those to start from, tunes them, writes the indexer.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    ensure!(
        args.holdout >= 2 && args.documents >= args.holdout,
        "--documents must be at least --holdout, that at least 2"
    );
    ensure!(
        args.tune_rate > 0.0 && args.tune_rate < 1.0,
        "--tune-rate must be above 0 and below 1, try 0.003"
    );
    let text = corpus::read_directory(&args.corpus)?;
    let model_file = pull::pull(&crate::args::pull_options(&args.model.model))?;
    let model = Model::open(&model_file)?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(model.tokenizer()?.tokenizer_json)
        .map_err(|e| anyhow::anyhow!("the model's tokenizer: {e}"))?;
    let turns = turns(&model.tokenizer()?)?;
    let samples = args
        .samples
        .clone()
        .unwrap_or_else(|| args.out.with_extension("samples"));
    // All that can be wrong with what was given is said before the long work.
    let steps = args
        .tune
        .unwrap_or(if model.config().parameters <= TUNED_UNASKED {
            TUNE_STEPS
        } else {
            0
        });
    let documents = match steps {
        0 => None,
        _ => Some(Documents::new(
            &text,
            &tokenizer,
            &turns,
            args.model.stride as usize,
        )?),
    };
    let parent = args
        .out
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    ensure!(
        parent.is_none_or(Path::is_dir),
        "there is no directory for {}",
        args.out.display()
    );
    let mut indexer = match &args.start[..] {
        [] => fit(args, &text, (&tokenizer, &turns.opening), samples.clone())?,
        files => start(files, &model)?,
    };
    if let Some(documents) = &documents {
        tune(args, steps, &model, &mut indexer, documents)?;
    }
    if args.tune.is_none() && steps == 0 {
        println!(
            "not tuned end to end: a large model takes long; ask for it with --tune {TUNE_STEPS}"
        );
    }
    std::fs::write(&args.out, indexer.to_bytes()?)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}", args.out.display());
    if args.samples.is_none() && args.start.is_empty() {
        std::fs::remove_dir_all(&samples)
            .with_context(|| format!("cannot delete {}", samples.display()))?;
    }
    Ok(())
}

/// Scorers that predict attention, and the paper's two pieces; reports on held-out documents.
fn fit(
    args: &CalibrateArgs,
    text: &str,
    (tokenizer, prefix): (&tokenizers::Tokenizer, &str),
    samples: PathBuf,
) -> anyhow::Result<Indexer> {
    let mut rank = embedded::open_rank(&args.model, &KvArgs::none())?;
    let info = rank.info.model.take().context("a rank reports its model")?;
    let documents = corpus::documents(
        text,
        tokenizer,
        prefix,
        Amount {
            documents: args.documents,
            tokens: args.tokens,
        },
        args.seed,
    )?;
    let instruction = ServedTokenizer::from_bytes(&info.tokenizer)?.encode(INSTRUCTION, false)?;
    let features = AssociativeOptions::default()
        .features
        .min(info.head_dim as usize * 2);
    let options = Options {
        holdout: args.holdout,
        ridge: args.ridge,
        seed: args.seed,
        query: Some(QueryOptions::default()),
        memory: Some(AssociativeOptions {
            features,
            ..AssociativeOptions::default()
        }),
        target: match args.target {
            TargetArg::Attention => Target::Attention,
            TargetArg::Surprisal => Target::Surprisal,
        },
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
    indexer.metadata = metadata(args, &info);
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
    args: &CalibrateArgs,
    steps: usize,
    model: &Model,
    indexer: &mut Indexer,
    documents: &Documents<'_>,
) -> anyhow::Result<()> {
    let mut scorers = RetentionWeights::of(indexer)?;
    tune::add_second(&mut scorers.layers);
    indexer.set(&scorers);
    let stride = args.model.stride as usize;
    let (rate, seed) = (args.tune_rate, args.seed);
    let options = tune::Options {
        steps,
        rate,
        seed,
        stride,
        state: args.out.with_extension("tuning"),
    };
    let backend = embedded::cpu(&args.model, args.model.threads);
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
    let message = |(role, content): (&str, &str)| ChatMessage {
        role: role.into(),
        content: content.into(),
    };
    let messages = [("user", FIRST), ("assistant", ANSWER), ("user", SECOND)].map(message);
    let text = template.render(&Chat {
        messages: messages.into(),
        answer_prefix: String::new(),
    })?;
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

fn metadata(args: &CalibrateArgs, info: &ModelInfo) -> HashMap<String, String> {
    let entries = [
        ("model", info.name.clone()),
        (
            "target",
            match args.target {
                TargetArg::Attention => {
                    "ln max attention while the context is repeated".to_string()
                }
                TargetArg::Surprisal => {
                    "ln max surprisal-weighted attention while the context is repeated".to_string()
                }
            },
        ),
        ("documents", args.documents.to_string()),
        ("tokens", args.tokens.to_string()),
        ("seed", args.seed.to_string()),
        ("ridge", args.ridge.to_string()),
        ("stride", args.model.stride.to_string()),
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
