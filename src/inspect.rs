//! `palimpsest inspect`: what a file holds, without loading it.

mod snapshot;

use std::path::Path;

use anyhow::Context;
use palimpsest_engine::indexer::Indexer;
use palimpsest_engine::snapshot::file::is_snapshot;
use palimpsest_models::Description;
use palimpsest_models::gguf::GgufValue;
use serde_json::{Value, json};

use crate::term::bytes;

/// Prints a description of a model, an indexer or a snapshot.
pub fn run(path: &Path, as_json: bool) -> anyhow::Result<()> {
    if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
        let file =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        if is_snapshot(&file) {
            return snapshot::run(&file, as_json);
        }
        return indexer(&file, as_json);
    }
    let description = palimpsest_models::inspect(path)?;
    if as_json {
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
    for (dtype, total) in description.by_type() {
        println!(
            "  {dtype:<6} {:>5} tensors {:>12} parameters {:>12}",
            total.tensors,
            total.parameters,
            bytes(total.bytes as u64)
        );
    }
    for (key, value) in &description.metadata {
        println!("  {key} = {}", value.summary());
    }
    Ok(())
}

fn json(description: &Description) -> Value {
    let tensors: Vec<_> = description
        .tensors
        .iter()
        .map(|t| json!({"name": t.name, "type": t.dtype, "shape": t.shape, "bytes": t.bytes}))
        .collect();
    let metadata: serde_json::Map<_, _> = description
        .metadata
        .iter()
        .map(|(key, value)| (key.clone(), value_json(value)))
        .collect();
    json!({
        "format": description.format, "parameters": description.parameters,
        "bytes": description.bytes, "problem": description.config.as_ref().err(),
        "metadata": metadata, "tensors": tensors,
    })
}

/// A value of the metadata with its type; of an array only what it holds.
fn value_json(value: &GgufValue) -> Value {
    match value {
        GgufValue::Unsigned(value) => json!(value),
        GgufValue::Signed(value) => json!(value),
        GgufValue::Float(value) => json!(value),
        GgufValue::Bool(value) => json!(value),
        GgufValue::Text(text) => json!(text),
        GgufValue::Array { .. } => json!(value.summary()),
    }
}

fn indexer(file: &[u8], as_json: bool) -> anyhow::Result<()> {
    let scorer = Indexer::parse(file)?;
    let metadata: std::collections::BTreeMap<_, _> = scorer.metadata.iter().collect();
    if as_json {
        println!("{}", serde_json::to_string_pretty(&metadata)?);
        return Ok(());
    }
    println!("indexer (retention scorer), {}", bytes(file.len() as u64));
    for (key, value) in metadata {
        println!("  {key}: {value}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_encoded_once() {
        assert_eq!(
            value_json(&GgufValue::Text("ll\"ama".into())),
            json!("ll\"ama")
        );
        assert_eq!(value_json(&GgufValue::Unsigned(7)), json!(7));
        let array = GgufValue::Array {
            kind: 4,
            len: 3,
            range: 0..12,
        };
        assert_eq!(value_json(&array), json!(array.summary()));
    }
}
