//! Every type that the kernels read, in a file.

use palimpsest_kernels::WeightType;

use super::writer::{Writer, text};
use super::{dense, open_bytes, whole};
use crate::TensorType;
use crate::weights::GatedWeights;

/// A Llama of one layer, 256 wide, whose matrices have type number `kind`.
fn all_of(kind: u32) -> Writer {
    let dtype = TensorType::from_ggml(kind);
    let writer = Writer::new()
        .raw("general.architecture", 8, &text("llama"))
        .size("llama.block_count", 1)
        .size("llama.context_length", 64)
        .size("llama.embedding_length", 256)
        .size("llama.feed_forward_length", 512)
        .size("llama.attention.head_count", 4)
        .size("llama.attention.head_count_kv", 2)
        .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .tensor("output_norm.weight", &[256], 0, 1024)
        .tensor("blk.0.attn_norm.weight", &[256], 0, 1024)
        .tensor("blk.0.ffn_norm.weight", &[256], 0, 1024);
    let matrices: [(&str, &[u64]); 9] = [
        ("token_embd", &[256, 10]),
        ("output", &[256, 10]),
        ("blk.0.attn_q", &[256, 256]),
        ("blk.0.attn_k", &[256, 128]),
        ("blk.0.attn_v", &[256, 128]),
        ("blk.0.attn_output", &[256, 256]),
        ("blk.0.ffn_gate", &[256, 512]),
        ("blk.0.ffn_up", &[256, 512]),
        ("blk.0.ffn_down", &[512, 256]),
    ];
    matrices.iter().fold(writer, |writer, (name, dims)| {
        let weights = dims.iter().product::<u64>() as usize;
        let bytes = dtype.bytes(weights).expect("whole blocks");
        writer.tensor(&format!("{name}.weight"), dims, kind, bytes)
    })
}

#[test]
fn files_of_every_type_open() {
    let mut opened = Vec::new();
    for kind in 0..64 {
        let Some(dtype) = TensorType::from_ggml(kind).weight_type() else {
            continue;
        };
        let model = open_bytes(&all_of(kind).bytes()).unwrap();
        let part = whole(&model);
        let layer = model.weights().layer(0, &part).unwrap();
        let head = model.weights().output(&part).unwrap().unwrap();
        let GatedWeights { gate, down, .. } = dense(layer.feed_forward);
        for matrix in [&layer.q, &layer.o, &gate, &down, &head] {
            assert_eq!(matrix.dtype, dtype);
        }
        opened.push(dtype);
    }
    let missing = WeightType::ALL.iter().find(|dtype| !opened.contains(dtype));
    assert_eq!(missing, None);
}
