//! `palimpsest inspect`: what a file holds, without loading it.

use anyhow::Context;
use palimpsest_engine::indexer::Indexer;
use palimpsest_models::Description;

use crate::args::InspectArgs;
use crate::term::bytes;

/// Prints a description of a model or an indexer.
pub fn run(args: &InspectArgs) -> anyhow::Result<()> {
    if args.path.extension().is_some_and(|e| e == "safetensors") && args.path.is_file() {
        return indexer(args);
    }
    let description = palimpsest_models::inspect(&args.path)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json(&description))?);
        return Ok(());
    }
    println!(
        "{}, {} parameters, {}",
        description.format,
        description.parameters,
        bytes(description.bytes as u64)
    );
    match &description.config {
        Ok(c) => println!(
            "{} ({}): {} layers, hidden {}, ffn {}, {} query and {} KV heads of {}, vocabulary \
             {}, context {}",
            c.name,
            c.architecture.name(),
            c.layers,
            c.hidden,
            c.ffn,
            c.heads,
            c.kv_heads,
            c.head_dim,
            c.vocabulary,
            c.context_length
        ),
        Err(why) => println!("cannot run: {why}"),
    }
    for (dtype, (count, parameters, size)) in description.by_type() {
        println!(
            "  {dtype:<6} {count:>5} tensors {parameters:>12} parameters {:>12}",
            bytes(size as u64)
        );
    }
    for (key, value) in &description.metadata {
        println!("  {key} = {value}");
    }
    Ok(())
}

fn json(description: &Description) -> serde_json::Value {
    let tensors: Vec<_> = description
        .tensors
        .iter()
        .map(|t| serde_json::json!({"name": t.name, "type": t.dtype, "shape": t.shape, "bytes": t.bytes}))
        .collect();
    let metadata: serde_json::Map<_, _> = description
        .metadata
        .iter()
        .map(|(k, v)| (k.clone(), v.clone().into()))
        .collect();
    serde_json::json!({
        "format": description.format, "parameters": description.parameters, "bytes": description.bytes,
        "problem": description.config.as_ref().err(), "metadata": metadata, "tensors": tensors,
    })
}

fn indexer(args: &InspectArgs) -> anyhow::Result<()> {
    let file = std::fs::read(&args.path)
        .with_context(|| format!("cannot read {}", args.path.display()))?;
    let scorer = Indexer::parse(&file)?;
    let metadata: std::collections::BTreeMap<_, _> = scorer.metadata.iter().collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&metadata)?);
        return Ok(());
    }
    println!("indexer (retention scorer), {}", bytes(file.len() as u64));
    for (key, value) in metadata {
        println!("  {key}: {value}");
    }
    Ok(())
}
