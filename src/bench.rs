//! `palimpsest bench`: the engine alone, without a server.

use crate::args::BenchRun;
use crate::embedded::{self, Ranks};
use crate::term;
use anyhow::Context;
use palimpsest_coordinator::request::with_defaults;
use palimpsest_kernels::Backend;
use palimpsest_worker::kv::Contract;
use palimpsest_worker::model::decoder::Logits;
use palimpsest_worker::rank::Rank;
use palimpsest_worker::session::Session;
use std::time::Instant;

/// One measured point.
struct Point {
    kind: &'static str,
    depth: usize,
    budget: Option<u32>,
    policy: String,
    tokens_per_second: f64,
    peak_rss_bytes: u64,
    stride_seconds: Vec<f64>,
}

/// Measures and prints.
pub fn run(kind: &'static str, run: &BenchRun) -> anyhow::Result<()> {
    match embedded::open_ranks(&run.model, &run.kv, 1)? {
        Ranks::Cpu(mut ranks) => run_on(kind, run, &mut ranks[0]),
        Ranks::Cuda(mut ranks) => run_on(kind, run, &mut ranks[0]),
    }
}

fn run_on<B: Backend>(kind: &'static str, run: &BenchRun, rank: &mut Rank<B>) -> anyhow::Result<()> {
    let info = rank.info.model.as_ref().context("a rank reports its model")?;
    let contract = Contract::parse(&with_defaults(&run.kv.wire(), info))?;
    for &depth in &run.depths {
        let mut points = Vec::new();
        for _ in 0..run.repeat.max(1) {
            points.push(measure(rank, kind, run, &contract, depth)?);
        }
        points.sort_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
        print(&points[points.len() / 2], run.json);
    }
    Ok(())
}

fn measure<B: Backend>(
    rank: &mut Rank<B>,
    kind: &'static str,
    run: &BenchRun,
    contract: &Contract,
    depth: usize,
) -> anyhow::Result<Point> {
    reset_peak();
    let vocabulary = rank.runner.decoder().config().vocabulary as u32;
    let mut session = Session::open(&mut rank.runner, contract.clone())?;
    // Token ids without structure: the engine's time does not depend on what they say.
    let prompt: Vec<u32> = (0..depth as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocabulary).collect();
    let bar = term::progress(depth as u64, kind);
    let mut stride_seconds = Vec::new();
    let mut last = 0;
    let started = Instant::now();
    for piece in prompt.chunks(session.stride()) {
        let piece_started = Instant::now();
        let logits = if last + piece.len() == depth { Logits::Last } else { Logits::None };
        session.feed(piece, logits)?;
        stride_seconds.push(piece_started.elapsed().as_secs_f64());
        last += piece.len();
        bar.inc(piece.len() as u64);
    }
    bar.finish_and_clear();
    let mut tokens_per_second = depth as f64 / started.elapsed().as_secs_f64();
    if kind == "decode" {
        let started = Instant::now();
        for i in 0..run.tokens {
            session.feed(&[prompt[i % depth]], Logits::Last)?;
        }
        tokens_per_second = run.tokens as f64 / started.elapsed().as_secs_f64();
        stride_seconds.clear();
    }
    if !run.strides {
        stride_seconds.clear();
    }
    session.close();
    Ok(Point {
        kind,
        depth,
        budget: contract.budget,
        policy: contract.policy.clone(),
        tokens_per_second,
        peak_rss_bytes: peak_bytes(),
        stride_seconds,
    })
}

fn print(point: &Point, json: bool) {
    let Point { kind, depth, policy, tokens_per_second, peak_rss_bytes, .. } = point;
    if json {
        let line = serde_json::json!({
            "kind": kind, "depth": depth, "budget": point.budget, "policy": policy,
            "tokens_per_second": tokens_per_second, "peak_rss_bytes": peak_rss_bytes,
            "stride_seconds": point.stride_seconds,
        });
        println!("{line}");
        return;
    }
    let budget = point.budget.map_or("all".to_string(), |b| b.to_string());
    let peak = term::bytes(*peak_rss_bytes);
    println!(
        "{kind:>8} depth {depth:>7} budget {budget:>6} {policy:>12} {tokens_per_second:>9.1} tokens/s  peak {peak}"
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
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
