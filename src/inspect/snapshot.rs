//! What the file of a snapshot holds.

use palimpsest_engine::snapshot::file::{Description, FORMAT, VERSION, describe, to_hex};
use palimpsest_proto::v1::KvContract;
use serde_json::{Value, json};

use crate::term::bytes;

/// Prints a description of a snapshot file whose checksum holds.
pub fn run(file: &[u8], as_json: bool) -> anyhow::Result<()> {
    let description = describe(file)?;
    if as_json {
        let value = json(&description, file.len());
        println!("{}", serde_json::to_string_pretty(&value)?);
    } else {
        print!("{}", text(&description, file.len()));
    }
    Ok(())
}

fn text(description: &Description, size: usize) -> String {
    let Description {
        header,
        entries,
        parts,
    } = description;
    let (least, most) = (entries.iter().min(), entries.iter().max());
    let all: usize = entries.iter().sum();
    let mut lines = vec![
        format!("snapshot, {}, its checksum holds", bytes(size as u64)),
        format!("{header}"),
        format!("  name: {}", to_hex(&header.name)),
        format!("  model and scorers: {}", to_hex(&header.model)),
        format!("  KV contract: {}", contract(&header.contract)),
        format!("  stride: {} tokens", header.stride),
        format!(
            "  entries: {all} in {} heads, {} to {} each",
            entries.len(),
            least.unwrap_or(&0),
            most.unwrap_or(&0)
        ),
    ];
    for (part, size) in parts {
        lines.push(format!("  {part:<14} {:>12}", bytes(*size as u64)));
    }
    lines.join("\n") + "\n"
}

fn contract(contract: &palimpsest_proto::contract::Contract) -> String {
    let wire = KvContract::from(contract);
    let Some(bounded) = contract.bounded() else {
        return wire.policy;
    };
    format!(
        "{}, budget {}, head budget {}, {} sinks, window {}, {} positions, memory {} of {} entries",
        wire.policy,
        wire.budget,
        wire.head_budget,
        bounded.sinks,
        bounded.window,
        wire.positions,
        wire.memory,
        bounded.memory_slots()
    )
}

fn json(description: &Description, size: usize) -> Value {
    let Description {
        header,
        entries,
        parts,
    } = description;
    let (extent, wire) = (&header.extent, KvContract::from(&header.contract));
    json!({
        "format": FORMAT, "version": VERSION, "bytes": size,
        "name": to_hex(&header.name), "model": to_hex(&header.model),
        "position": header.position, "next_rotary": header.next_rotary, "stride": header.stride,
        "element": header.shape.dtype.name(), "head_dim": header.shape.head_dim,
        "layers": extent.layers, "kv_heads": extent.total_kv_heads, "group": extent.group,
        "first_kv_head": extent.kv_heads.start, "end_kv_head": extent.kv_heads.end,
        "first_query_head": extent.queries.start, "end_query_head": extent.queries.end,
        "policy": header.policy,
        "contract": {
            "policy": wire.policy, "budget": wire.budget, "head_budget": wire.head_budget,
            "sinks": wire.sinks, "window": wire.window, "positions": wire.positions,
            "memory": wire.memory, "memory_slots": wire.memory_slots,
        },
        "entries": entries, "parts": parts,
    })
}
