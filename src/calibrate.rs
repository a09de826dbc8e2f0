//! `palimpsest calibrate`: trains the indexer of a model from text, forward-only.

use crate::args::{CalibrateArgs, KvArgs};
use crate::{embedded, term};
use anyhow::{Context, ensure};
use palimpsest_calibrate::fit::{Sums, predict};
use palimpsest_calibrate::report::{LayerReport, TOP_SHARE, compare};
use palimpsest_calibrate::{collect, corpus};
use palimpsest_coordinator::text::{ChatTemplate, Tokenizer as ServedTokenizer};
use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_worker::indexer::Indexer;
use palimpsest_worker::reconstruct::{INSTRUCTION, Reconstruction};
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
    let (layers, kv_heads) = (info.layers as usize, info.kv_heads as usize);
    let hidden = rank.runner.decoder().config().hidden;
    let reconstruction = Reconstruction::new(&mut rank.runner, instruction);
    let mut sums = vec![Sums::new(hidden, kv_heads); layers];
    let bar = term::progress(documents.len() as u64, "calibrating");
    for (index, document) in documents.iter().enumerate() {
        if index % args.holdout != args.holdout - 1 {
            let sample = collect::sample(&mut rank.runner, &reconstruction, document)?;
            for (layer, sums) in sums.iter_mut().enumerate() {
                sums.add(&sample, layer);
            }
        }
        bar.inc(1);
    }
    let fitted = sums.iter().enumerate().map(|(layer, sums)| sums.solve(args.ridge, layer));
    let mut scorer = Indexer {
        kv_heads,
        hidden,
        retention: fitted.collect::<Result<_, _>>()?,
        query: None,
        associative: None,
        metadata: metadata(args, &info),
    };
    let held_out = documents.iter().skip(args.holdout - 1).step_by(args.holdout);
    let mut report = vec![LayerReport::default(); layers];
    let count = held_out.len() as f64;
    for document in held_out {
        let sample = collect::sample(&mut rank.runner, &reconstruction, document)?;
        for (layer, report) in report.iter_mut().enumerate() {
            let scores = predict(&scorer.retention[layer], &sample.hidden[layer], kv_heads);
            let found = compare(&scores, &sample.targets[layer], kv_heads);
            report.rank_correlation += found.rank_correlation / count;
            report.recall += found.recall / count;
        }
    }
    bar.finish_and_clear();
    let mean = print(&report);
    scorer.metadata.insert("held_out_rank_correlation".into(), format!("{:.3}", mean.rank_correlation));
    scorer.metadata.insert("held_out_recall".into(), format!("{:.3}", mean.recall));
    std::fs::write(&args.out, scorer.to_bytes()?).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}", args.out.display());
    Ok(())
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
        ("target", "ln max attention while the context is repeated".to_string()),
        ("documents", args.documents.to_string()),
        ("tokens", args.tokens.to_string()),
        ("seed", args.seed.to_string()),
        ("ridge", args.ridge.to_string()),
        ("stride", args.model.stride.to_string()),
    ];
    entries.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}

fn print(report: &[LayerReport]) -> LayerReport {
    let mut mean = LayerReport::default();
    println!("layer  rank correlation  recall of the best {:.0} %", TOP_SHARE * 100.0);
    for (layer, r) in report.iter().enumerate() {
        println!("{layer:>5}  {:>16.3}  {:>6.3}", r.rank_correlation, r.recall);
        mean.rank_correlation += r.rank_correlation / report.len() as f64;
        mean.recall += r.recall / report.len() as f64;
    }
    println!(" mean  {:>16.3}  {:>6.3}", mean.rank_correlation, mean.recall);
    mean
}
