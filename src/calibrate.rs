//! `palimpsest calibrate`: trains the indexer of a model from text, forward-only.

use crate::args::{CalibrateArgs, KvArgs, TargetArg};
use crate::{embedded, term};
use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use palimpsest_calibrate::associative::AssociativeOptions;
use palimpsest_calibrate::corpus;
use palimpsest_calibrate::query::QueryOptions;
use palimpsest_calibrate::report::{Agreement, LayerReport, TOP_SHARE};
use palimpsest_calibrate::run::{self, Options, Stage};
use palimpsest_coordinator::text::{ChatTemplate, Tokenizer as ServedTokenizer};
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_worker::reconstruct::{INSTRUCTION, Target};
use std::collections::HashMap;

/// Trains, reports on held-out documents, writes the indexer.
pub fn run(args: &CalibrateArgs) -> anyhow::Result<()> {
    ensure!(
        args.holdout >= 2 && args.documents >= args.holdout,
        "--documents must be at least --holdout, that at least 2"
    );
    let text = corpus::read_directory(&args.corpus)?;
    let mut rank = embedded::open_rank(&args.model, &KvArgs::none())?;
    let info = rank.info.model.take().context("a rank reports its model")?;
    let tokenizer = tokenizers::Tokenizer::from_bytes(&info.tokenizer)
        .map_err(|e| anyhow::anyhow!("the model's tokenizer: {e}"))?;
    let prefix = user_prefix(&info)?;
    let documents = corpus::documents(&text, &tokenizer, &prefix, (args.documents, args.tokens), args.seed)?;
    let instruction = ServedTokenizer::from_bytes(&info.tokenizer)?.encode(INSTRUCTION, false)?;
    let features = AssociativeOptions::default().features.min(info.head_dim as usize * 2);
    let options = Options {
        holdout: args.holdout,
        ridge: args.ridge,
        seed: args.seed,
        query: Some(QueryOptions::default()),
        memory: Some(AssociativeOptions { features, ..AssociativeOptions::default() }),
        target: match args.target {
            TargetArg::Attention => Target::Attention,
            TargetArg::Surprisal => Target::Surprisal,
        },
        samples: args.samples.clone().unwrap_or_else(|| args.out.with_extension("samples")),
    };
    let mut bar: Option<(Stage, ProgressBar)> = None;
    let model = format!("{} {:016x}", info.name, rank.info.digest);
    let (mut indexer, report) =
        run::calibrate(&mut rank.runner, (&documents, instruction), &model, &options, &mut |stage, done, of| {
            if bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
                bar = Some((stage, term::progress(of as u64, name(stage))));
            }
            bar.iter().for_each(|(_, bar)| bar.set_position(done as u64));
        })?;
    bar.iter().for_each(|(_, bar)| bar.finish_and_clear());
    let mean = print(&report);
    indexer.metadata = metadata(args, &info);
    indexer.metadata.insert("held_out_rank_correlation".into(), format!("{:.3}", mean.rank_correlation));
    indexer.metadata.insert("held_out_recall".into(), format!("{:.3}", mean.recall));
    std::fs::write(&args.out, indexer.to_bytes()?).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}", args.out.display());
    if args.samples.is_none() {
        std::fs::remove_dir_all(&options.samples)
            .with_context(|| format!("cannot delete {}", options.samples.display()))?;
    }
    Ok(())
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Reading => "reading",
        Stage::Scorers => "fitting scorers",
        Stage::Memories => "fitting memories",
    }
}

/// What the chat template puts before a user's text, so that training sees documents where requests have them.
fn user_prefix(info: &ModelInfo) -> anyhow::Result<String> {
    if info.chat_template.is_empty() {
        return Ok(String::new());
    }
    const MARK: &str = "PALIMPSEST-MARK";
    let template = ChatTemplate::new(&info.chat_template, &info.bos_token, &info.eos_token)?;
    let text = template.render(&crate::generate::question(MARK.into(), ""))?;
    Ok(text.split(MARK).next().unwrap_or_default().to_string())
}

fn metadata(args: &CalibrateArgs, info: &ModelInfo) -> HashMap<String, String> {
    let entries = [
        ("model", info.name.clone()),
        (
            "target",
            match args.target {
                TargetArg::Attention => "ln max attention while the context is repeated".to_string(),
                TargetArg::Surprisal => "ln max surprisal-weighted attention while the context is repeated".to_string(),
            },
        ),
        ("documents", args.documents.to_string()),
        ("tokens", args.tokens.to_string()),
        ("seed", args.seed.to_string()),
        ("ridge", args.ridge.to_string()),
        ("stride", args.model.stride.to_string()),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

/// Prints a row per layer; returns the scorers' means.
fn print(report: &[LayerReport]) -> Agreement {
    let best = TOP_SHARE * 100.0;
    println!(
        "on held-out documents: rank correlation with the target, recall of its best {best:.0} %, attention given back"
    );
    println!("layer  retention      query-indexer  associative");
    let (mut retention, mut query, mut explained) = (Agreement::default(), Agreement::default(), 0.0);
    let pair = |a: &Agreement| format!("{:.3}  {:.3}", a.rank_correlation, a.recall);
    for (layer, r) in report.iter().enumerate() {
        let of_query = r.query.as_ref().map_or("-".into(), pair);
        let given_back = r.explained.map_or("-".into(), |share| format!("{share:.3}"));
        println!("{layer:>5}  {:<13}  {of_query:<13}  {given_back}", pair(&r.retention));
        retention.add(r.retention, report.len());
        query.add(r.query.unwrap_or_default(), report.len());
        explained += r.explained.unwrap_or_default() / report.len() as f64;
    }
    println!(" mean  {:<13}  {:<13}  {explained:.3}", pair(&retention), pair(&query));
    retention
}
