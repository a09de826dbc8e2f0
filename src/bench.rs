//! `palimpsest bench`: the engine alone, without a server.

use std::time::Instant;

use anyhow::{Context, ensure};
use palimpsest_engine::decoder::Logits;
use palimpsest_engine::kv::Contract;
use palimpsest_engine::offline::{OfflineBatch, OfflineSequence};
use palimpsest_engine::rank::Rank;
use palimpsest_kernels::Backend;
use palimpsest_proto::contract::Offer;
use palimpsest_proto::v1::KvContract;

use crate::model::{self, ModelConfig, Ranks};
use crate::term;

/// Tokens before those that are timed.
const WARM_UP: usize = 3;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Time to read a prompt.
    Prefill,
    /// Time per generated token.
    Decode,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What to measure, and on what.
#[derive(Debug)]
pub struct Config {
    /// What is measured.
    pub kind: Kind,
    /// The model.
    pub model: ModelConfig,
    /// The contract; what is unset is the default.
    pub kv: KvContract,
    /// Context lengths.
    pub depths: Vec<usize>,
    /// Tokens that are timed when decoding.
    pub tokens: usize,
    /// Sequences that decode together.
    pub sequences: u32,
    /// Whether the context is assumed and not computed.
    pub assume_context: bool,
    /// Measurements of each point, at least 1; the median is reported.
    pub repeat: usize,
    /// JSON lines instead of a table.
    pub json: bool,
    /// Whether the seconds of every stride are printed, too.
    pub strides: bool,
}

/// One measured point.
struct Point {
    kind: &'static str,
    depth: usize,
    sequences: u32,
    budget: Option<u32>,
    policy: String,
    tokens_per_second: f64,
    /// What a step reads at least: the weights, and the slots of all sequences.
    step_bytes: u64,
    peak_rss_bytes: u64,
    stride_seconds: Vec<f64>,
}

/// Measures and prints.
pub fn run(config: &Config) -> anyhow::Result<()> {
    match model::open_ranks(&config.model, &config.kv, 1)? {
        Ranks::Cpu(mut ranks) => run_on(config, &mut ranks[0]),
        Ranks::Cuda(mut ranks) => run_on(config, &mut ranks[0]),
    }
}

fn run_on<B: Backend>(config: &Config, rank: &mut Rank<B>) -> anyhow::Result<()> {
    let info = rank
        .info
        .model
        .as_ref()
        .context("a rank reports its model")?;
    let open = KvContract::default();
    let offer = Offer {
        defaults: info.default_kv.as_ref().unwrap_or(&open),
        pooled: &info.pooled_policies,
    };
    let contract = Contract::complete(&config.kv, offer)?;
    for &depth in &config.depths {
        let mut points = Vec::new();
        for _ in 0..config.repeat.max(1) {
            points.push(measure(rank, config, &contract, depth)?);
        }
        points.sort_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        print(&points[points.len() / 2], config.json);
    }
    Ok(())
}

fn measure<B: Backend>(
    rank: &mut Rank<B>,
    config: &Config,
    contract: &Contract,
    depth: usize,
) -> anyhow::Result<Point> {
    reset_peak();
    let vocabulary = rank.runner.decoder().config().vocabulary as u32;
    // Token ids without structure: the engine's time does not depend on what they say.
    let prompt: Vec<u32> = (0..depth as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % vocabulary)
        .collect();
    let (sequences, tokens_per_second, stride_seconds) = match config.kind {
        Kind::Decode => (
            config.sequences,
            decode(rank, config, contract, &prompt)?,
            Vec::new(),
        ),
        Kind::Prefill => {
            let Prefilled {
                tokens_per_second,
                stride_seconds,
            } = prefill(rank, contract, &prompt)?;
            (1, tokens_per_second, stride_seconds)
        }
    };
    let held = contract
        .exact_slots()
        .map_or(depth, |slots| slots.min(depth));
    let cache_bytes = sequences as usize * rank.runner.full_cache_bytes(held);
    let step_bytes = (rank.runner.decoder().step_weight_bytes() + cache_bytes) as u64;
    Ok(Point {
        kind: config.kind.name(),
        depth,
        sequences,
        budget: contract.budget(),
        policy: contract.policy().to_owned(),
        tokens_per_second,
        step_bytes,
        peak_rss_bytes: peak_bytes(),
        stride_seconds: if config.strides {
            stride_seconds
        } else {
            Vec::new()
        },
    })
}

/// A prompt that was read.
struct Prefilled {
    tokens_per_second: f64,
    stride_seconds: Vec<f64>,
}

fn prefill<B: Backend>(
    rank: &mut Rank<B>,
    contract: &Contract,
    prompt: &[u32],
) -> anyhow::Result<Prefilled> {
    let mut sequence = OfflineSequence::open(&mut rank.runner, contract.clone())?;
    let bar = term::progress(prompt.len() as u64, "prefill");
    let (mut stride_seconds, mut read) = (Vec::new(), 0);
    let started = Instant::now();
    for piece in prompt.chunks(sequence.stride()) {
        let piece_started = Instant::now();
        read += piece.len();
        sequence.feed(
            piece,
            if read == prompt.len() {
                Logits::Last
            } else {
                Logits::None
            },
        )?;
        stride_seconds.push(piece_started.elapsed().as_secs_f64());
        bar.inc(piece.len() as u64);
    }
    bar.finish_and_clear();
    Ok(Prefilled {
        tokens_per_second: prompt.len() as f64 / started.elapsed().as_secs_f64(),
        stride_seconds,
    })
}

/// Tokens per second of all sequences together, each going on with the token that it chose, as a
/// served one does.
fn decode<B: Backend>(
    rank: &mut Rank<B>,
    config: &Config,
    contract: &Contract,
    prompt: &[u32],
) -> anyhow::Result<f64> {
    let mut batch = OfflineBatch::open(&mut rank.runner, contract, config.sequences as usize)?;
    if config.assume_context {
        let fits = contract
            .exact_slots()
            .is_none_or(|slots| prompt.len() <= slots);
        ensure!(
            fits,
            "--assume-context is for contexts within the budget, not for {} tokens",
            prompt.len()
        );
        batch.assume(prompt.len())?;
        // What grows to the size of a step grows now.
        batch.feed(&prompt[..1])?;
    } else {
        batch.feed(prompt)?;
    }
    let mut tokens = vec![prompt[0]; config.sequences as usize];
    let mut decode = |batch: &mut OfflineBatch<'_, B>| -> anyhow::Result<()> {
        let chosen = batch.decode(&tokens)?;
        tokens = chosen.into_iter().map(Option::unwrap_or_default).collect();
        Ok(())
    };
    // Steps are captured as graphs when they come a second time.
    for _ in 0..WARM_UP {
        decode(&mut batch)?;
    }
    let started = Instant::now();
    for _ in 0..config.tokens {
        decode(&mut batch)?;
    }
    Ok((config.tokens * config.sequences as usize) as f64 / started.elapsed().as_secs_f64())
}

fn print(point: &Point, json: bool) {
    let Point {
        kind,
        depth,
        sequences,
        policy,
        tokens_per_second,
        peak_rss_bytes,
        ..
    } = point;
    if json {
        let line = serde_json::json!({
            "kind": kind, "depth": depth, "sequences": sequences, "budget": point.budget,
            "policy": policy, "tokens_per_second": tokens_per_second,
            "step_bytes": point.step_bytes, "peak_rss_bytes": peak_rss_bytes,
            "stride_seconds": point.stride_seconds,
        });
        println!("{line}");
        return;
    }
    let budget = point.budget.map_or("all".to_string(), |b| b.to_string());
    let peak = term::bytes(*peak_rss_bytes);
    println!(
        "{kind:>8} {sequences:>3} x depth {depth:>7} budget {budget:>6} {policy:>12} \
         {tokens_per_second:>9.1} tokens/s  peak {peak}"
    );
    for (i, seconds) in point.stride_seconds.iter().enumerate() {
        println!("         stride {i:>5} {:>9.2} ms", seconds * 1e3);
    }
}

/// Starts the peak of the resident set anew (Linux; elsewhere the peak stays that of the process).
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Peak resident set in bytes, 0 where the system does not say.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
