"""Blocks of every quantised GGUF type and what the authors of llama.cpp make of them: the oracle
of kernels/tests/dequantized.rs. Also the grids of the IQ types, as Rust.

Writes tests/fixtures/dequantized/TYPE.bin (blocks as files hold them, then their weights as f32,
little-endian) and kernels/src/quant/grids.rs. Codes are random, and together the blocks of a type
use every entry of its grid; scales are of either sign, some are zero or subnormal. The seed
fuzz/corpus/gguf/types is a Llama of one layer with eight of the types.

    python3 -m venv .venv && .venv/bin/pip install gguf==0.19.0 numpy==2.4.6
    .venv/bin/python tests/oracle/make_dequantized.py
"""

import pathlib

import gguf
import numpy as np
from gguf import quants
from gguf.constants import GGMLQuantizationType as Type

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "dequantized"
SEED = ROOT / "fuzz" / "corpus" / "gguf" / "types"
GRIDS = ROOT / "kernels" / "src" / "quant" / "grids.rs"

# Where a block keeps its halves: scales, and minima where it has any.
HALVES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ2_XXS: [0],
    Type.IQ2_XS: [0],
    Type.IQ2_S: [0],
    Type.IQ3_XXS: [0],
    Type.IQ3_S: [0],
    Type.IQ1_S: [0],
    Type.IQ1_M: [],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
    Type.TQ1_0: [52],
    Type.TQ2_0: [64],
    Type.MXFP4: [],
}
# Scales that show how zeros, subnormals and signs are read.
ODD = [0.0, -0.0, 6e-8, -3e-5, 1.0, -1.0]

HEAD = """//! The grids of the IQ types: which combinations of magnitudes their codes stand for.
//! Written by `tests/oracle/make_dequantized.py` from PyPI's `gguf` 0.19.0 (MIT licence, by the
//! authors of llama.cpp); they are facts of the formats.
//!
//! An entry holds eight digits of two bits (IQ1, IQ2) or four of four bits (IQ3), the first weight
//! in the lowest bits.
"""


def halves_of(count, rng):
    """Random scales of about 1e-2, the odd ones first."""
    values = rng.uniform(0.002, 0.02, count) * rng.choice([-1, 1], count)
    values[: len(ODD)] = ODD[:count]
    return values.astype(np.float16)


def use_grid(kind, blocks):
    """Overwrites indices so that together the blocks use every entry of the type's grid."""
    entries = {"IQ2_XXS": 256, "IQ2_XS": 512, "IQ2_S": 1024, "IQ3_XXS": 256, "IQ3_S": 512}
    size = entries.get(kind.name, 2048)
    each = np.arange(size).reshape(-1, 64 if kind.name.startswith("IQ3") else 32)
    # The last blocks, so that the first ones have both odd scales and random indices.
    blocks = blocks[-len(each) :]
    if kind == Type.IQ2_XXS:
        blocks[:, 2:66].reshape(-1, 8, 8)[..., :4] = each.reshape(-1, 8, 4)
    elif kind == Type.IQ2_XS:
        words = blocks[:, 2:66].copy().view(np.uint16)
        blocks[:, 2:66] = (words & 0xFE00 | each.astype(np.uint16)).view(np.uint8)
    elif kind == Type.IQ2_S:
        high = (each >> 8).reshape(-1, 8, 4)
        blocks[:, 2:34] = each & 255
        blocks[:, 66:74] = (high << np.array([0, 2, 4, 6])).sum(-1)
    elif kind == Type.IQ3_XXS:
        blocks[:, 2:66] = each
    elif kind == Type.IQ3_S:
        blocks[:, 2:66] = each & 255
        blocks[:, 66:74] = ((each >> 8).reshape(-1, 8, 8) << np.arange(8)).sum(-1)
    elif kind == Type.IQ1_S:
        high = ((each >> 8).reshape(-1, 8, 4) << np.array([0, 3, 6, 9])).sum(-1)
        words = blocks[:, 34:50].copy().view(np.uint16)
        blocks[:, 2:34] = each & 255
        blocks[:, 34:50] = (words & 0xF000 | high.astype(np.uint16)).view(np.uint8)


def blocks_of(kind, rng):
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    count = 16 if weights == 32 else 6
    grid = {"IQ2_XXS": 8, "IQ2_XS": 16, "IQ2_S": 32, "IQ3_XXS": 4, "IQ3_S": 8, "IQ1_S": 64}
    count = max(count, len(ODD) + grid.get(kind.name, 0))
    if kind == Type.MXFP4:
        count = 256
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    if kind.name in grid:
        use_grid(kind, blocks)
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = halves_of(count, rng).view(np.uint8).reshape(-1, 2)
    if kind == Type.MXFP4:
        blocks[:, 0] = np.arange(256)
    if kind == Type.IQ1_M:
        bits = halves_of(count, rng).view(np.uint16)
        for k in range(4):
            high = (bits >> (4 * k)) & 15
            blocks[:, 49 + 2 * k] = blocks[:, 49 + 2 * k] & 15 | (high << 4).astype(np.uint8)
    return blocks


def write_fixtures():
    FIXTURES.mkdir(parents=True, exist_ok=True)
    total = 0
    with np.errstate(over="ignore"):
        for kind in HALVES:
            blocks = blocks_of(kind, np.random.default_rng(kind.value))
            weights = gguf.dequantize(blocks, kind)
            data = blocks.tobytes() + weights.astype("<f4").tobytes()
            (FIXTURES / f"{kind.name}.bin").write_bytes(data)
            total += len(data)
    print(f"{len(HALVES)} types, {total} bytes")


def write_grids():
    of = {"IQ1_S": "IQ1_S and IQ1_M"}
    text = HEAD
    for name in ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]:
        entries = np.frombuffer(bytes.fromhex(getattr(quants, name).grid_hex.decode()), "<u2")
        text += f"\n/// Of {of.get(name, name)}.\n#[rustfmt::skip]\n"
        text += f"pub(super) static {name}: [u16; {len(entries)}] = [\n"
        for start in range(0, len(entries), 12):
            row = entries[start : start + 12]
            text += "    " + " ".join(f"0x{entry:04x}," for entry in row) + "\n"
        text += "];\n"
    GRIDS.write_text(text)


def write_seed():
    width, ffn, vocabulary = 256, 32, 4
    writer = gguf.GGUFWriter(SEED, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    for name, kind, rows, cols in [
        ("token_embd", Type.Q5_K, vocabulary, width),
        ("blk.0.attn_q", Type.Q2_K, 32, width),
        ("blk.0.attn_k", Type.Q3_K, 32, width),
        ("blk.0.attn_v", Type.IQ1_S, 32, width),
        ("blk.0.attn_output", Type.MXFP4, width, 32),
        ("blk.0.ffn_gate", Type.IQ2_XXS, ffn, width),
        ("blk.0.ffn_up", Type.TQ1_0, ffn, width),
        ("blk.0.ffn_down", Type.IQ4_NL, width, ffn),
    ]:
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        data = np.zeros((rows, cols // weights * size), np.uint8)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write_seed()
    write_grids()
    write_fixtures()
